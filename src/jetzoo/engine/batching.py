"""Micro-batches of jets of similar length, which the engine works on side by side."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from ..nn.inputs import check_inputs

# Tokens of a micro-batch. On a CPU the activations, 512 wide, should stay in the second-level
# cache; on a GPU there should be enough of them to fill it.
TOKENS = {"cpu": 768, "cuda": 2**17}


class MicroBatches(nn.Module):
    """Sorts jets by length, cuts them into micro-batches and puts the answers back in order.

    On a CPU each thread works on a micro-batch of its own: no thread waits for another after every
    operation, and each finds its data in the cache of its core.

    Parameters
    ----------
    network : nn.Module
        Called as ``network(points, features, lorentz_vectors, mask)`` on jets of nearly equal
        length whose real particles stand first; ``mask`` is of bool, (b, n).
    """

    def __init__(self, network):
        super().__init__()
        self.network = network
        # glibc hands memory back to the system after each operation, which costs a quarter of the
        # time in page faults, until a block of nearly 32 MiB has been freed once.
        torch.empty(2**25 - 2**16, dtype=torch.uint8)

    def forward(self, points, features, lorentz_vectors, mask, *pairs):
        """(B, 2, N), (B, C, N), (B, 4, N) and (B, 1, N) to (B, num_classes).

        A network may take features of pairs (B, C', N, N), too.
        """
        check_inputs(points, features, lorentz_vectors, mask)
        inputs = (points, features, lorentz_vectors)
        if len(mask) == 0:
            return self(*(x.new_zeros(1, *x.shape[1:]) for x in (*inputs, mask, *pairs)))[:0]
        if mask.shape[2] == 0:
            padded = [nn.functional.pad(x, (0, 1)) for x in (*inputs, mask)]
            return self(*padded, *(nn.functional.pad(x, (0, 1, 0, 1)) for x in pairs))
        with torch.inference_mode():
            mask = mask[:, 0].bool()  # (B, N)
            lengths, jets = mask.sum(1).sort(descending=True)
            if mask[:, 1:].gt(mask[:, :-1]).any():  # real particles do not stand first
                order = mask.byte().argsort(dim=1, descending=True, stable=True)
                inputs = [x.gather(2, order[:, None].expand_as(x)) for x in inputs]
                for axis in (2, 3):
                    index = order[:, None].unsqueeze(5 - axis)  # (B, 1, N, 1) or (B, 1, 1, N)
                    pairs = [x.gather(axis, index.expand_as(x)) for x in pairs]
            rank = torch.arange(max(mask.shape[1], 1), device=mask.device)

            @torch.inference_mode()
            @torch.autocast(mask.device.type, enabled=False)
            def run(cut):
                start, stop, longest = cut
                rows, real = jets[start:stop], rank[:longest] < lengths[start:stop, None]
                return self.network(
                    *(x[:, :, :longest].index_select(0, rows) for x in inputs),
                    real,
                    *(x[:, :, :longest, :longest].index_select(0, rows) for x in pairs),
                )

            cuts = list(micro_batches(lengths.tolist(), self.network.tokens))
            threads = torch.get_num_threads()
            if mask.is_cuda or len(cuts) < threads or threads == 1:
                logits = torch.cat([run(cut) for cut in cuts])
            else:
                logits = torch.cat(parallel(run, cuts, threads))
        return torch.empty_like(logits).index_copy_(0, jets, logits)


class WholeBatch(nn.Module):
    """Hands all jets on together, with no more padding than there must be.

    Parameters
    ----------
    network : nn.Module
        As for :class:`MicroBatches`, but real particles need not stand first.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, points, features, lorentz_vectors, mask, *pairs):
        """As :meth:`MicroBatches.forward`."""
        if not torch.jit.is_tracing():
            check_inputs(points, features, lorentz_vectors, mask)
            real = mask.ne(0).flatten(0, 1).any(0).nonzero()  # columns
            end = int(real[-1]) + 1 if len(real) else 1
            points, features, lorentz_vectors, mask = (
                x[:, :, :end] for x in (points, features, lorentz_vectors, mask)
            )
            pairs = [x[:, :, :end, :end] for x in pairs]
        return self.network(points, features, lorentz_vectors, mask[:, 0].bool(), *pairs)


def parallel(function, items, threads):
    """``[function(item) for item in items]`` on several threads, each a single one for PyTorch."""
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)  # MKL keeps one number for all threads


def micro_batches(lengths, tokens):
    """Cut jets, the longest first: slices (start, stop) and the longest length in each."""
    start = 0
    while start < len(lengths):
        longest = max(lengths[start], 1)
        stop = min(start + max(tokens // longest, 1), len(lengths))
        yield start, stop, longest
        start = stop
