"""What is said about a module: its share of the time, its rates, and what bounds them."""

import re
from dataclasses import dataclass

from .modules import AUTOGRAD, LOSS, NETWORK, OPTIMIZER, STEP, merged_name

REST, FUSED = "batching, packing, Python", "fused kernel"
# Kinds of layers, by the beginning of a module's name in weaver's networks, the zoo's and the
# engine's, so that these can be compared.
KINDS = {
    "embedding": r"embed",
    "pair embedding": r"pair_embed",
    "attention": r"blocks(\.(\d+|\*))?\.(attn|pre_attn_norm|post_attn_norm)|mixers",
    "feed-forward": r"blocks|feed_forwards?",
    "class attention": r"cls_\w+",
    "head": r"norm|fc|head",
    REST: r"trimmer",
}
PART_KINDS = {LOSS: "loss", OPTIMIZER: "optimizer", AUTOGRAD: "autograd"}
WRAPPERS = re.compile(r"^((mod|network|engine|run|folded|\(network\))(\.|$))+")

OPERATIONS = {
    "attention": r"Attention|Mixer|Attn",
    "norms": r"Norm",
    "activations": r"GELU|ReLU|SiLU|Softmax|Dropout",
    "matrix products": r"Linear|Conv|Dense",
}
OTHER = "other"

# Share of the time that a bound must explain.
EXPLAINED = 0.02


@dataclass
class Row:
    """One module, or what belongs to none, in one run; seconds, FLOPs and bytes of one call.

    Attributes
    ----------
    module, type : str
        Name within the network, and class.
    calls : int
    forward_seconds, backward_seconds : float
        Of the module itself, without those within.
    inclusive_seconds : float
        Of the forward pass, those within included.
    flops, bytes_moved, operations : int
        Of the module itself; the backward pass of a training step is included.
    fused : bool
        It works outside of PyTorch.
    """

    module: str
    type: str = ""
    calls: int = 0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    inclusive_seconds: float = 0.0
    flops: int = 0
    bytes_moved: int = 0
    operations: int = 0
    fused: bool = False

    @property
    def seconds(self):
        """Forward and backward."""
        return self.forward_seconds + self.backward_seconds

    @property
    def intensity(self):
        """FLOPs per byte, or None without bytes."""
        return self.flops / self.bytes_moved if self.bytes_moved else None

    @property
    def kind(self):
        """Kind of layer that it belongs to."""
        if self.module in PART_KINDS:
            return PART_KINDS[self.module]
        name = WRAPPERS.sub("", self.module)
        for kind, pattern in KINDS.items():
            if re.match(rf"({pattern})(\.|$)", name):
                return kind
        if name in ("", STEP, NETWORK):
            return FUSED if self.fused else REST
        return name.split(".")[0]

    @property
    def short(self):
        """Name without the modules that only wrap a network."""
        if self.module in (*PART_KINDS, STEP):
            return self.module
        return WRAPPERS.sub("", self.module) or NETWORK

    @property
    def layer(self):
        """Layer of the network that it belongs to, such as ``blocks.3``."""
        name = WRAPPERS.sub("", self.module)
        if self.module in PART_KINDS or name in ("", STEP, NETWORK):
            return self.kind
        return re.match(r"[^.]+(\.(\d+|\*))?", name)[0]

    @property
    def operation(self):
        """Kind of operation, by the class of the module."""
        for operation, pattern in OPERATIONS.items():
            if re.search(pattern, self.type):
                return operation
        return OTHER

    def bound(self, limits):
        """What bounds the time: the largest of three times that it takes at least.

        Parameters
        ----------
        limits : Limits

        Returns
        -------
        verdict : str
            "compute-bound", "memory-bound" or "launch-bound". Empty if none explains the time, as
            where a kernel outside of PyTorch does not tell what it does.
        share : float
            The bound over the time; 1 is as fast as the machine can.
        """
        if not (self.flops or self.bytes_moved or self.operations) or self.seconds <= 0:
            return "", 0.0
        memory = self.bytes_moved / limits.memory
        if memory > self.seconds:  # then the data did not come from memory
            memory = self.bytes_moved / limits.cache
        bounds = {
            "compute-bound": self.flops / limits.flops,
            "memory-bound": memory,
            "launch-bound": self.operations * limits.call,
        }
        verdict = max(bounds, key=bounds.get)
        share = bounds[verdict] / self.seconds
        return (verdict, share) if share > EXPLAINED else ("", 0.0)


def merge(rows):
    """Add up repeated layers, ``blocks.0.fc1`` and ``blocks.1.fc1`` being ``blocks.*.fc1``.

    Returns
    -------
    list of Row
        In falling order of time.
    """
    merged = {}
    for row in rows:
        key = merged_name(row.module), row.type
        total = merged.setdefault(key, Row(*key, fused=row.fused))
        for name in (
            "calls",
            "forward_seconds",
            "backward_seconds",
            "inclusive_seconds",
            "flops",
            "bytes_moved",
            "operations",
        ):
            setattr(total, name, getattr(total, name) + getattr(row, name))
    return sorted(merged.values(), key=lambda row: row.seconds, reverse=True)


def seconds_by(rows, attribute):
    """Seconds of rows added up by an attribute such as ``kind``, in order of appearance."""
    total = {}
    for row in rows:
        key = getattr(row, attribute)
        total[key] = total.get(key, 0.0) + row.seconds
    return total
