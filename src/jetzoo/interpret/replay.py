"""One batch, run again and again with some values replaced: what does not change is remembered.

The plain way to the same logits is a whole run with :func:`jetzoo.interpret.interventions.edited`.
"""

import torch

from .ablation import remembered, skipping
from .interventions import edited, nodes, remembering, replacing
from .recorder import transformer


class Replay:
    """A batch whose values in a network are known.

    Parameters
    ----------
    model : nn.Module
    part : Batch
    places : collection, optional
        Of the values to remember, see :class:`Node`; by default all.
    stages : sequence of nn.Module, optional
        Those with outputs to remember; by default all. A run starts at the first that is not, or at
        the first change.

    Attributes
    ----------
    values : dict of tensor, by place
    logits : Tensor, (B, classes)
    """

    @torch.inference_mode()
    def __init__(self, model, part, places=None, stages=None):
        self.model, self.part, self.core = model, part, transformer(model)
        self.values, self.outputs = {}, {}
        stages = self.core.stages() if stages is None else stages
        edit = remembering(self.values)
        with remembered(stages, self.outputs), edited(model, edit, places):
            self.logits = model(*part.inputs).double()

    def run(self, node, source):
        """Logits (B, classes) with one node replaced, see :func:`replacing`."""
        known = {node.place: self.values[node.place]} if node.what == "head" else {}
        return self._run(node, replacing([node], source), {node.place}, known)

    def send(self, sender, source, receivers):
        """Replace a head while all later heads keep their values.

        Parameters
        ----------
        sender : Node
        source : callable
            Of its value, see :func:`replacing`.
        receivers : sequence of Node
            Heads of later layers.

        Returns
        -------
        logits : Tensor, (B, classes)
        received : dict of Tensor, by place
            What the layers of the receivers would give.
        """
        send, received = replacing([sender], source), {}
        asked = {node.place for node in receivers}
        heads = [node for node in nodes(self.model) if node.what == "head"]
        places = {head.place for head in heads if head.depth >= sender.depth}

        def edit(place, value):
            if place == sender.place:
                return send(place, value)
            if place in asked:
                received[place] = value
                return self.values[place]
            return value

        known = {place: self.values[place] for place in places - asked}
        return self._run(sender, edit, places, known), received

    def without(self, heads, means):
        """Logits (B, classes) with heads at their means, from :class:`Means`."""
        by_place = {}
        for head in heads:
            by_place.setdefault(head.place, []).append(head)
        known = {}
        for place, some in by_place.items():
            mean = means(place, self.core.cls_token)  # (1, H, 1, d)
            if len(some) == mean.shape[1]:
                kind = some[0].kind
                length = self.part.mask.shape[1] if kind == "particle" else 1
                known[place] = mean.expand(len(self.part), -1, length, -1)
        first = nodes(self.model)[0]
        return self._run(first, replacing(heads, means), set(by_place), known)

    @torch.inference_mode()
    def _run(self, first, edit, places, known):
        """Logits from the stage of the node ``first`` on; see :func:`edited`."""
        with skipping(self.core, first, self.outputs), edited(self.model, edit, places, known):
            return self.model(*self.part.inputs).double()
