"""Measures of attention, as pure functions of padded tensors.

Rows are the particles that look, columns those that are looked at. ``weights`` (B, H, n, n) is zero
in the padding, as in :class:`jetzoo.interpret.Record`; results are undefined in rows that are
padding. No measure depends on the order of the particles.
"""

import torch

# Largest weight below which a row is not binary (arXiv 2512.00210).
BINARY = 0.8


def non_binary(weights, threshold=BINARY):
    """Rows whose largest weight is below a threshold (arXiv 2512.00210).

    Returns
    -------
    Tensor of bool, (B, H, n)
    """
    return weights.amax(-1) < threshold


def argmax_moved(scores, bias, mask):
    """Rows in which adding the bias changes the particle of the largest score (arXiv 2512.00210).

    Parameters
    ----------
    scores, bias : Tensor, (B, H, n, n)
    mask : Tensor of bool, (B, n)

    Returns
    -------
    Tensor of bool, (B, H, n)
    """
    padding = ~mask[:, None, None, :]
    without = scores.masked_fill(padding, float("-inf")).argmax(-1)
    return without != (scores + bias).masked_fill(padding, float("-inf")).argmax(-1)


def entropy(weights):
    """Shannon entropy of each row in nats (Vig and Belinkov, arXiv 1906.04284).

    Returns
    -------
    Tensor, (B, H, n)
    """
    return torch.special.entr(weights).sum(-1)


def effective_number(weights):
    """Number of particles attended to, exp(entropy): k for k equal weights (Hill, 1973).

    Returns
    -------
    Tensor, (B, H, n)
    """
    return entropy(weights).exp()


def same_subjet(weights, subjets):
    """Attention that a particle gives to its own subjet (arXiv 2412.03673), itself included.

    Parameters
    ----------
    weights : Tensor, (B, H, n, n)
    subjets : Tensor of int, (B, n)
        Negative for particles of none.

    Returns
    -------
    Tensor, (B, H, n)
    """
    return (weights * _same(subjets)[:, None]).sum(-1)


def same_subjet_chance(subjets, mask):
    """:func:`same_subjet` of uniform attention: the share of the jet's particles in the subjet.

    Returns
    -------
    Tensor, (B, n)
    """
    return _same(subjets).sum(-1) / mask.sum(1, keepdim=True).clamp(min=1)


def _same(subjets):
    return (subjets[:, :, None] == subjets[:, None, :]) & (subjets >= 0)[:, None, :]  # (B, n, n)


def to_leptons(weights, leptons):
    """Attention given to electrons and muons; against chance, the lepton attention ratio.

    The ratio of its mean to the share of leptons among the particles is 1 for uniform attention
    (after arXiv 2412.03673).

    Parameters
    ----------
    weights : Tensor, (B, H, n, n)
    leptons : Tensor of bool, (B, n)

    Returns
    -------
    Tensor, (B, H, n)
    """
    return (weights * leptons[:, None, None, :]).sum(-1)


def distance(weights, eta, phi):
    """Mean distance dR = hypot(deta, dphi) to what is attended to.

    The attention distance of Vision Transformers (arXiv 2010.11929, section 4.5) in the plane of
    the jet.

    Parameters
    ----------
    weights : Tensor, (B, H, n, n)
    eta, phi : Tensor, (B, n)
        Relative to the jet axis.

    Returns
    -------
    Tensor, (B, H, n)
    """
    return (weights * pair_distance(eta, phi)[:, None]).sum(-1)


def pair_distance(eta, phi):
    """Distances dR of all pairs, (B, n, n)."""
    return torch.hypot(eta[:, :, None] - eta[:, None, :], phi[:, :, None] - phi[:, None, :])


def head_cosine(weights):
    """Cosine between the attention matrices of two heads; 1 for heads that do the same.

    The similarity of heads as in Kovaleva et al., arXiv 1908.08593, section 4.

    Returns
    -------
    Tensor, (B, H, H)
    """
    flat = torch.nn.functional.normalize(weights.flatten(2), dim=-1)
    return flat @ flat.transpose(1, 2)


def rollout(layers):
    """Attention rollout: how much of each particle is in each token after all layers.

    The product of (W + 1) / 2 over the layers, with W the mean over heads (Abnar and Zuidema, arXiv
    2005.00928).

    Parameters
    ----------
    layers : sequence of Tensor, (B, H, n, n)
        From the first to the last.

    Returns
    -------
    Tensor, (B, n, n)
        Rows of real particles sum to one.
    """
    total = None
    for weights in layers:
        identity = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
        mixed = (weights.mean(1) + identity) / 2
        total = mixed if total is None else mixed @ total
    return total


def class_importance(layers):
    """Share of each particle in what the class token looks at, the token itself left out.

    The mean over class-attention layers and heads (arXiv 2103.17239).

    Parameters
    ----------
    layers : sequence of Tensor, (B, H, 1, 1 + n)

    Returns
    -------
    Tensor, (B, n)
        Sums to one over the particles of a jet.
    """
    seen = torch.stack([weights[:, :, 0, 1:].mean(1) for weights in layers]).mean(0)
    return seen / seen.sum(-1, keepdim=True).clamp(min=torch.finfo(seen.dtype).tiny)


def keep_top(weights, k):
    """The ``k`` largest weights of each row, scaled to sum to one: a softmax over ``k`` keys.

    Returns
    -------
    Tensor, the shape of ``weights``
    """
    top, index = weights.topk(min(k, weights.shape[-1]), dim=-1)
    top = top / top.sum(-1, keepdim=True).clamp(min=torch.finfo(top.dtype).tiny)
    return torch.zeros_like(weights).scatter(-1, index, top)
