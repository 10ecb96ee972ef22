"""Per-module statistics: share of the time, rates, and what bounds them."""

import re
from dataclasses import dataclass

from .kinds import OTHER, PART_KINDS, REST
from .steps import NETWORK, STEP

# Names under which a network stands in what only wraps it.
WRAPPERS = re.compile(r"^((mod|network|kernels|engine|folded|\(network\))(\.|$))+")

# Share of the time that a bound must explain.
EXPLAINED = 0.02


@dataclass
class Row:
    """One module in one run, or what belongs to none: seconds, FLOPs and bytes of one call.

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
    kind, operation : str
        See :class:`jetzoo.profiling.kinds.Kinds`.
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
    kind: str = REST
    operation: str = OTHER

    @property
    def seconds(self):
        """Seconds of the forward and the backward pass."""
        return self.forward_seconds + self.backward_seconds

    @property
    def intensity(self):
        """FLOPs per byte, or None without bytes."""
        return self.flops / self.bytes_moved if self.bytes_moved else None

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

    def bound(self, limits):
        """Find what bounds the time: the largest of three times that the work takes at least.

        Parameters
        ----------
        limits : Limits

        Returns
        -------
        verdict : str
            "compute-bound", "memory-bound" or "launch-bound"; empty if none explains the time, for
            example of a kernel outside of PyTorch that does not tell what it does.
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


def merged_name(name):
    """Name under which repeated layers are one: ``blocks.*.fc1`` of ``blocks.3.fc1``."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def merge(rows):
    """Add up repeated layers: ``blocks.0.fc1`` and ``blocks.1.fc1`` become ``blocks.*.fc1``.

    Parameters
    ----------
    rows : sequence of Row

    Returns
    -------
    list of Row
        Sorted by descending time.
    """
    merged = {}
    for row in rows:
        key = merged_name(row.module), row.type
        new = Row(*key, fused=row.fused, kind=row.kind, operation=row.operation)
        total = merged.setdefault(key, new)
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
    """Add up the seconds of rows by an attribute such as ``kind``, in order of appearance."""
    total = {}
    for row in rows:
        key = getattr(row, attribute)
        total[key] = total.get(key, 0.0) + row.seconds
    return total
