"""Folding: a trained network rewritten for inference, with the same logits.

Jets are sorted by length and cut into micro-batches that stay in the cache of a CPU (on a GPU, into
few large ones), so that hardly any padding is computed and memory does not grow with the batch. The
pair interaction is computed for one triangle of the pairs, in blocks. Batch norms, the affine part
and the centring of layer norms, ``c_attn`` and 1/sqrt(d) are folded into neighbouring matrices. A
class token looks at the particles through two small matrices per jet, in place of projections of
all particles.
"""

import copy
import logging

import torch
from torch import nn

from ..modules import unmodified
from ..nn.inputs import is_arranged, take_arrangement
from .batching import TOKENS, MicroBatches
from .dense import half_precision
from .forms import ArrangedForm, CollectionsForm
from .layers import FoldedEmbed
from .transformer import FoldedTransformer

logger = logging.getLogger("jetzoo")


def freeze(model, device=None):
    """Copy a network for inference: in eval mode, in float32, without gradients.

    Parameters
    ----------
    model : nn.Module
        Left as it is. DataParallel, DistributedDataParallel and torch.compile are left out of the
        copy.
    device : str or torch.device, optional
        By default that of the model.

    Returns
    -------
    nn.Module
    """
    device = torch.device(device or next(model.parameters()).device)
    frozen = copy.deepcopy(_unwrapped(model))
    for module in list(frozen.modules()):
        for name, child in module.named_children():
            setattr(module, name, _unwrapped(child))
    return frozen.to(device).float().eval().requires_grad_(False)


def _unwrapped(module):
    """The network within what only calls it."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif hasattr(module, "_orig_mod"):  # of torch.compile
            module = module._orig_mod
        else:
            return module


def fold(frozen, dtype=torch.float32):
    """Rewrite a frozen network for inference.

    Parameters
    ----------
    frozen : nn.Module
        See :func:`freeze`; the folded network may share its parameters.
    dtype : torch.dtype
        Of the matrix products.

    Returns
    -------
    nn.Module or None
        None if there is no fast form of the network; the reason is logged.
    """
    if is_arranged(frozen):
        plain = copy.deepcopy(frozen)
        arrangement = take_arrangement(plain)
        folded = fold(plain, dtype)
        return None if folded is None else ArrangedForm(arrangement, folded).eval()
    core, head = frozen, nn.Identity()
    if hasattr(frozen, "core_and_head") and _computes_as_owner(frozen, "core_and_head"):
        core, head = frozen.core_and_head()
    if hasattr(core, "collections"):
        if _unmodified(core, core.parts()) and (part := _part(core.part, head, dtype)):
            embeds = [FoldedEmbed(embed, dtype) for embed in core.embeds()]
            return CollectionsForm(core.collections, embeds, part).eval()
    elif hasattr(core, "cls_blocks") and (part := _part(core, head, dtype)):
        return part
    if getattr(core, "micro_batched", False):
        return MicroBatches(MicroBatched(frozen, dtype)).eval()
    return None


def _part(part, head, dtype):
    """The folded form of a Particle Transformer and what follows it, or None."""
    if _unmodified(part, part.parts()):
        return MicroBatches(FoldedTransformer(part, head, dtype)).eval()
    return None


def _unmodified(core, parts):
    """Whether modules compute what their classes say; which of them do not is logged."""
    modified = [module for module, kind in parts if not unmodified(module, kind)]
    if modified:
        logger.info("no folding: %s computes something else", _names(core, modified))
    return not modified


def _names(core, modules):
    names = {id(module): name or "the network" for name, module in core.named_modules()}
    return ", ".join(names[id(module)] for module in modules[:3])


class MicroBatched(nn.Module):
    """A network nearly as it is, in micro-batches.

    Parameters
    ----------
    network : nn.Module
        In eval mode. Modules of it with a method ``fold`` are folded.
    dtype : torch.dtype
        Of the matrix products.
    """

    def __init__(self, network, dtype):
        super().__init__()
        modules = list(network.modules())
        for module in modules if all(unmodified(m, type(m)) for m in modules) else ():
            if hasattr(module, "fold") and _computes_as_owner(module, "fold"):
                module.fold()
        self.network = network
        self.precision = half_precision(network, dtype)
        self.tokens = TOKENS[next(network.parameters()).device.type]

    def forward(self, points, features, lorentz_vectors, mask):
        """(b, 2, n), (b, C, n), (b, 4, n) and a mask of bool, (b, n), to (b, num_classes)."""
        with self.precision():
            logits = self.network(points, features, lorentz_vectors, mask[:, None])
        return logits.float()


def _computes_as_owner(module, method):
    """Whether a module computes as the class that defines a method, and its layers as theirs."""
    owner = next(cls for cls in type(module).__mro__ if method in vars(cls))
    return unmodified(module, owner)
