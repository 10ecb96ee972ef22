"""Kinds of layers of a network, and kinds of operations: the network says most of it itself.

A module may have a dict ``layer_kinds``, of names within it ("" is the module itself) to kinds such
as "embedding", so that different networks can be compared. What a kind is said of, it is said of
all that is within, unless that says another. ``mixes_particles`` marks what does the work of an
attention. Where nobody says a kind, it is the operation that PyTorch's layer is for.
"""

from torch import nn

from jetzoo.engine import stock

from .steps import AUTOGRAD, LOSS, NETWORK, OPTIMIZER, STEP

REST, FUSED = "batching, packing, Python", "fused kernel"
# In the order of the figures; networks may have others, which follow.
KINDS = (
    "embedding",
    "pair embedding",
    "attention",
    "feed-forward",
    "class attention",
    "head",
    REST,
)
PART_KINDS = {LOSS: "loss", OPTIMIZER: "optimizer", AUTOGRAD: "autograd"}

OTHER = "other"
OPERATIONS = {
    "attention": (nn.MultiheadAttention,),
    "norms": (
        nn.LayerNorm,
        nn.RMSNorm,
        nn.GroupNorm,
        nn.modules.batchnorm._NormBase,
    ),
    "activations": (
        nn.GELU,
        nn.ReLU,
        nn.SiLU,
        nn.Sigmoid,
        nn.Tanh,
        nn.Softmax,
        nn.modules.dropout._DropoutNd,
    ),
    "matrix products": (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd),
}

# What the parts of the folded engine and the stages of its kernels are.
FOLDED = {
    "embed": "embedding",
    "pair_embed": "pair embedding",
    "mixers": "attention",
    "feed_forwards": "feed-forward",
    "cls_mixers": "class attention",
    "cls_feed_forwards": "class attention",
    "head": "head",
    "blocks.attn": "attention",
    "blocks.fc": "feed-forward",
    "cls_blocks": "class attention",
}

# What the parts of weaver-core's own networks are.
WEAVER = {
    "embed": "embedding",
    "pf_embed": "embedding",
    "sv_embed": "embedding",
    "pf_conv": "embedding",
    "sv_conv": "embedding",
    "bn_fts": "embedding",
    "pair_embed": "pair embedding",
    "blocks": "feed-forward",
    "cls_blocks": "class attention",
    "edge_convs": "edge convolutions",
    "norm": "head",
    "fc": "head",
}
WEAVER_ATTENTION = ("attn", "pre_attn_norm", "post_attn_norm")


def kinds_of_weavers(network):
    """Kinds of what is in weaver-core's own networks, and the modules that mix particles.

    Parameters
    ----------
    network : nn.Module
        See :func:`jetzoo.engine.stock.find`.

    Returns
    -------
    dict of str to str, set of nn.Module
    """
    said, mixers = {}, set()
    for outer, tagger in stock.find(network).items():
        for inner, module in tagger.named_modules(prefix=outer):
            if not stock.is_weavers(module):
                continue
            parts = {name: kind for name, kind in WEAVER.items() if hasattr(module, name)}
            for i, block in enumerate(getattr(module, "blocks", ())):
                parts |= {f"blocks.{i}.{name}": "attention" for name in WEAVER_ATTENTION}
                mixers.add(block.attn)
            mixers.update(block.attn for block in getattr(module, "cls_blocks", None) or ())
            mixers.update(getattr(module, "edge_convs", ()))
            said |= {".".join(filter(None, (inner, name))): kind for name, kind in parts.items()}
    return said, mixers


class Kinds:
    """Kind and operation of every module of a network, by its name.

    Parameters
    ----------
    network : nn.Module
    """

    def __init__(self, network):
        self.modules = dict(network.named_modules())
        self.said, self.mixers = kinds_of_weavers(network)
        for name, module in self.modules.items():
            folded = hasattr(module, "cls_mixers")
            kinds = FOLDED if folded or hasattr(module, "stage_seconds") else {}
            for inner, kind in getattr(module, "layer_kinds", kinds).items():
                self.said[".".join(filter(None, (name, inner)))] = kind
            if folded:
                self.mixers.update(module.mixers, module.cls_mixers)

    def kind(self, name, fused=False):
        """Kind of layer that a module belongs to.

        Parameters
        ----------
        name : str
            As :class:`jetzoo.profiling.watch.Watch` names modules, parts and stages.
        fused : bool
            Whether it works outside of PyTorch.

        Returns
        -------
        str
        """
        if name in PART_KINDS:
            return PART_KINDS[name]
        place = _place(name)
        while place and place not in self.said:
            place = place.rpartition(".")[0]
        if place in self.said:
            return self.said[place]
        operation = self.operation(name)
        if operation != OTHER:
            return operation
        return FUSED if fused else REST

    def operation(self, name):
        """Kind of operation that a module itself does, one of ``OPERATIONS`` or ``OTHER``."""
        module = self.modules.get(_place(name))
        if module is None or name == STEP:
            return OTHER
        for operation, layers in OPERATIONS.items():
            if isinstance(module, layers):
                return operation
        if getattr(module, "mixes_particles", False) or module in self.mixers:
            return "attention"
        weight = getattr(module, "weight", None)
        is_leaf = next(module.children(), None) is None
        return "matrix products" if is_leaf and getattr(weight, "ndim", 0) > 1 else OTHER


def _place(name):
    """Name within the network, "" for the network itself."""
    return name.removeprefix(NETWORK).removeprefix(".")
