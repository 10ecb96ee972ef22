"""Runs a folded Particle Transformer in its kernels in C++ (``part.cpp``)."""

from ctypes import addressof, c_double

import torch
from torch import nn

from jetzoo import UserError

from . import load
from .calls import address, call, serial_after_fork
from .part_weights import PackedWeights
from .structures import JetArguments

# Tokens that go through the network together. The more, the less often the weights pass through
# the cache; their activations should fit into 1 MiB beside them. A multiple of 48.
TOKENS = 240

CPU = torch.device("cpu")

# Of `enum Stage`, named as the layers of the network.
STAGES = ("embed", "pair_embed", "blocks.attn", "blocks.fc", "cls_blocks")


def library():
    """The kernels, or None where they cannot be compiled."""
    return load("part")


def obstacle(folded):
    """Why the kernels cannot run a folded network here, or None; see :func:`unfit`."""
    return unfit(folded) or ("they are not compiled" if library() is None else None)


def unfit(folded):
    """Why the kernels cannot run a folded network anywhere, or None.

    Parameters
    ----------
    folded : FoldedTransformer
    """
    if not folded.full:
        return "its particles are not mixed by full attention"
    if folded.dtype != torch.float32:
        return "they compute in float32 and int8"
    if not len(folded.mixers) or not len(folded.cls_mixers):
        return "it lacks blocks of particles, or of the class token"
    dims = [layer.weight.shape[0] for layer in (*folded.embed.layers, folded.feed_forwards[0].fc1)]
    num_heads = folded.mixers[0].num_heads
    dim = folded.cls_token.shape[-1]
    if any(size % 8 for size in (*dims, dim // num_heads)) or num_heads > 56:
        return "its widths and those of its heads are not multiples of 8"
    return None


class NativePart(nn.Module):
    """A folded Particle Transformer that runs in C++ on a CPU.

    Its weights are read now: later changes of ``folded`` have no effect, but for those that come by
    a method of this module, such as ``load_state_dict``. Several threads may call it at once, and
    processes that were forked.

    Parameters
    ----------
    folded : FoldedTransformer
        Without an :func:`obstacle`. Its layers are float32, or int8.
    """

    def __init__(self, folded):
        super().__init__()
        self.folded = folded
        self.tokens = TOKENS
        self._seconds = (c_double * len(STAGES))()
        self._pack()

    def _pack(self):
        # There may be no compiler where a pickled engine is read.
        self._weights = None if library() is None else PackedWeights(self.folded)

    def __getstate__(self):
        """Without addresses, which mean nothing in a copy."""
        own = ("_weights", "_seconds")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state):
        """Read the weights again."""
        super().__setstate__(state)
        self._seconds = (c_double * len(STAGES))()
        self._pack()

    def load_state_dict(self, *arguments, **options):
        """Load weights into the folded network, and read them."""
        found = super().load_state_dict(*arguments, **options)
        self._pack()
        return found

    def _apply(self, function, *arguments, **options):
        """What ``to``, ``half`` and the like do; refused unless it stays float32 on a CPU."""
        probe = function(torch.empty(0))
        if probe.device.type != "cpu" or probe.dtype != torch.float32:
            raise UserError(
                "The kernels of the accelerated ParT compute in float32 and int8 on a CPU, not in "
                f"{probe.dtype} on {probe.device}: convert the network before it is accelerated."
            )
        found = super()._apply(function, *arguments, **options)
        self._pack()
        return found

    def train(self, mode=True):
        """Only ``train(False)``, which is ``eval()``, is possible."""
        if mode:
            raise UserError("An accelerated network cannot be trained: train the network itself.")
        return super().train(mode)

    def forward(self, points, features, lorentz_vectors, mask):
        """Logits of a batch of jets.

        A jet with a feature or a momentum of a real particle that is not finite gets NaN.

        Parameters
        ----------
        points : Tensor, (B, 2, N)
            Not used.
        features : Tensor, (B, C, N)
        lorentz_vectors : Tensor, (B, 4, N)
            px, py, pz, energy in GeV.
        mask : Tensor, (B, 1, N)
            Not zero for real particles. What stands in the padding does not matter.

        Returns
        -------
        Tensor, (B, num_classes)

        Raises
        ------
        TypeError
            If an argument is no tensor of real numbers.
        ValueError
            If an argument is on another device or of another shape.
        """
        self._check(features, lorentz_vectors, mask)
        weights = self._weights
        if weights is None:
            raise RuntimeError(
                "the kernels of this engine cannot be compiled here: accelerate the network anew"
            )
        with serial_after_fork() as threads, torch.inference_mode():
            batch_size, num_features, length = features.shape
            features, vectors = (x.float().contiguous() for x in (features, lorentz_vectors))
            mask = mask.contiguous()
            if mask.dtype not in (torch.bool, torch.float32):
                mask = mask.bool()
            cls = features.new_empty(batch_size, weights.struct.dim)
            seconds = (c_double * len(STAGES))()
            jets = JetArguments(
                batch=batch_size,
                length=length,
                tokens=self.tokens,
                features=address("features", features, (batch_size, num_features, length)),
                vectors=address("lorentz_vectors", vectors, (batch_size, 4, length)),
                mask=address("mask", mask, (batch_size, 1, length), mask.dtype),
                mask_of_floats=mask.dtype == torch.float32,
                out=cls.data_ptr(),
                seconds=addressof(seconds),
            )
            call(library().part_forward, weights.struct, jets, threads=threads)
            self._seconds = seconds
            logits = self.folded.head(cls)
            with torch.inference_mode(False):
                return logits.clone()  # the caller may want to do more with it

    def _check(self, features, lorentz_vectors, mask):
        channels = len(self.folded.embed.scale)
        if (
            getattr(mask, "ndim", 0) == 3
            and features.shape == (len(mask), channels, mask.shape[2])
            and lorentz_vectors.shape == (len(mask), 4, mask.shape[2])
            and mask.shape[1] == 1
            and features.device == lorentz_vectors.device == mask.device == CPU
            and features.layout == lorentz_vectors.layout == mask.layout == torch.strided
            and not any(map(torch.is_complex, (features, lorentz_vectors, mask)))
        ):
            return
        inputs = {"features": features, "lorentz_vectors": lorentz_vectors, "mask": mask}
        for name, x in inputs.items():
            if not isinstance(x, torch.Tensor) or x.is_complex():
                kind = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
                raise TypeError(f"{name} should be a tensor of real numbers, not {kind}")
            if x.device.type != "cpu" or x.layout != torch.strided:
                raise ValueError(f"{name} should be a dense tensor on a CPU, not on {x.device}")
        channels = {"features": channels, "lorentz_vectors": 4, "mask": 1}
        batch_size, length = features.shape[0:1], features.shape[2:3]
        for name, x in inputs.items():
            expected = (*batch_size, channels[name], *length)
            if x.dim() != 3 or x.shape != expected:
                raise ValueError(
                    f"{name} should have the shape (B, {channels[name]}, N), with the B and N of "
                    f"features {tuple(features.shape)}, not {tuple(x.shape)}"
                )

    def stage_seconds(self):
        """Seconds of each stage of the last call, the sum over threads, for `jetzoo profile`."""
        return dict(zip(STAGES, self._seconds, strict=True))

    def flops(self, points, features, lorentz_vectors, mask):
        """FLOPs of the matrix products of each stage; the projection after attention is in fc."""
        counts = mask.sum((1, 2))
        jets, tokens = len(counts), int(counts.sum())
        pairs = int((counts * (counts + 1) / 2).sum())
        scores = 4 * int(counts.square().sum()) * self.folded.cls_token.shape[-1]
        of_class = sum(len(mixer.key) for mixer in self.folded.cls_mixers)
        of_class *= 4 * (tokens + jets) * self.folded.cls_token.shape[-1]
        work = dict.fromkeys(STAGES, 0)
        rows = {"pair_embed": pairs, "cls_blocks": jets}
        for stage, weights in self._matrices().items():
            work[stage] = 2 * rows.get(stage, tokens) * sum(x.numel() for x in weights)
        work["blocks.attn"] += scores * len(self.folded.mixers)
        work["cls_blocks"] += of_class
        return work

    def bytes_moved(self, points, features, lorentz_vectors, mask):
        """Bytes from memory: inputs once, weights once for each group of jets."""
        groups = -(-int(mask.sum()) // self.tokens)
        moved = {
            stage: groups * sum(x.nbytes for x in weights)
            for stage, weights in self._matrices().items()
        }
        moved["embed"] += features.nbytes
        moved["pair_embed"] = moved.get("pair_embed", 0) + lorentz_vectors.nbytes
        return moved

    def _matrices(self):
        folded = self.folded
        blocks = list(zip(folded.mixers, folded.feed_forwards, strict=True))
        cls_blocks = list(zip(folded.cls_mixers, folded.cls_feed_forwards, strict=True))
        return {
            "embed": [layer.weight for layer in folded.embed.layers],
            "pair_embed": [layer.weight for layer in getattr(folded.pair_embed, "layers", ())],
            "blocks.attn": [mixer.in_proj.weight for mixer, _ in blocks],
            "blocks.fc": [
                layer.weight for mixer, f in blocks for layer in (mixer.out_proj, f.fc1, f.fc2)
            ],
            "cls_blocks": [
                weight
                for mixer, f in cls_blocks
                for weight in (
                    *(layer.weight for layer in (mixer.query, mixer.out, f.fc1, f.fc2)),
                    *mixer.key,
                    *mixer.value,
                )
            ],
        }
