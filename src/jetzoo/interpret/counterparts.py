"""What takes the place of attention in the other architectures, as matrices.

Mixers say what they have by methods: ``slot_projection()``, and ``shared_buckets`` and
``implied_attention``, which are called with the inputs of the forward pass.
"""

import torch

from .recorder import modules_with


def slot_projections(model):
    """Matrices that mix particles into slots, as in LinformerParT (arXiv 2006.04768, eq. 7).

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    list of Tensor, (seq_len, slots)
        One per layer, for the keys; rows are ranks in pT. Empty for a network without slots.
    """
    return [mixer.slot_projection() for mixer in modules_with(model, "slot_projection")]


def shared_buckets(model, batch):
    """How often two particles have the same hash, as in ReformerParT (arXiv 2001.04451, eq. 5).

    Parameters
    ----------
    model : nn.Module
    batch : Batch

    Returns
    -------
    list of Tensor, (B, n, n)
        One per layer: the share of heads and rounds. Empty for a network without hashes.
    """
    return _matrices(model, batch, "shared_buckets")


def implied_attention(model, batch):
    """Attention that selective scans imply, as in MambaParT (arXiv 2403.01590, eq. 11).

    Parameters
    ----------
    model : nn.Module
    batch : Batch

    Returns
    -------
    list of Tensor, (B, n, n)
        One per layer: the mean over channels of the size of the coefficient with which the scan
        carries a particle to another; the sum of both directions where there are two. Empty for a
        network without scans.
    """
    return _matrices(model, batch, "implied_attention")


@torch.inference_mode()
def _matrices(model, batch, method):
    """What a method of the mixers returns for a batch, one matrix per layer."""
    found, handles = [], []

    def hook(mixer, args, kwargs):
        found.append(getattr(mixer, method)(*args, **kwargs))

    try:
        for mixer in modules_with(model, method):
            handles.append(mixer.register_forward_pre_hook(hook, with_kwargs=True))
        if handles:
            model(*batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
