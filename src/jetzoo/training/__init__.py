"""What weaver's training lacks: it stops at NaN, writes whole files, and goes on where it stopped.

The loops themselves are weaver's. Around them, :class:`TrainingLoop` checks every loss, and the
weights of every epoch, and writes beside weaver's two files of an epoch a third one,
``net_epoch-N_resume.pt``, with what weaver forgets when it is stopped:

- the slow weights of Lookahead, of which the optimizer's file holds nothing;
- the random states (dropout, order of the jets) and the loss scale of fp16;
- which epoch was the best, without which the first epoch of a resumed training always is.

This file is written last, after the validation: an epoch is whole when it has all three.
"""

from .loop import TrainingLoop

__all__ = ["TrainingLoop"]
