"""Attention of a trained network, seen and changed from outside: the model code stays as it is."""

import inspect
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from jetzoo import UserError
from jetzoo.attention.reference import scores as attention_scores
from jetzoo.attention.reference import weights as attention_weights
from jetzoo.nn.blocks import Attention
from jetzoo.nn.transformer import ParticleTransformer


@dataclass
class Record:
    """What one layer did with one batch; zero wherever a row or a column is padding.

    Attributes
    ----------
    kind : {"particle", "class"}
        Particles that look at each other, or the class token that looks at itself and at them.
    layer : int
        From 0, within its kind.
    mask : Tensor of bool, (B, n)
    weights : Tensor, (B, H, n, n) or (B, H, 1, 1 + n)
        After the softmax. The class token is the first key.
    scores : Tensor or None
        A = q.k / sqrt(d), the shape of ``weights``.
    bias : Tensor or None
        The pair interaction U, the shape of ``weights``.
    """

    kind: str
    layer: int
    mask: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor | None = None
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class Site:
    """Place of an attention in a network: its kind, as in :class:`Record`, and its layer."""

    kind: str
    layer: int


def transformer(model):
    """The :class:`ParticleTransformer` inside a network, or None."""
    found = (m for m in model.modules() if isinstance(m, ParticleTransformer))
    return next(found, None)


def sites(model):
    """The attentions of a network that :func:`replaced` reaches.

    Returns
    -------
    dict
        :class:`Site` to :class:`jetzoo.nn.blocks.Attention`.
    """
    core = transformer(model)
    if core is None:
        return {}
    blocks = [("particle", core.blocks), ("class", core.cls_blocks)]
    return {
        Site(kind, layer): block.attn
        for kind, group in blocks
        for layer, block in enumerate(group)
        if isinstance(block.attn, Attention)
    }


@contextmanager
def replaced(model, weights):
    """While open, ``weights`` decides the attention weights of a network.

    Parameters
    ----------
    model : nn.Module
    weights : callable
        ``weights(site, q, k, bias, mask)`` gives (B, H, L, S); arguments as for
        :func:`jetzoo.attention`, and the :class:`Site`.
    """

    def attend_at(site, layer):
        def attend(q, k, v, bias, mask):
            q, k, v = map(layer.heads, (q, k, v))
            return (weights(site, q, k, bias, mask) @ v).transpose(1, 2).flatten(2)

        return attend

    layers = sites(model)
    for site, layer in layers.items():
        layer.attend = attend_at(site, layer)
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.attend


@contextmanager
def record(model):
    """While open, what the network looks at is recorded; attention is computed by the reference.

    ParT and its fine-tuning: all particle and class attention. ReformerParT: the weights of its
    hashed attention. ParticleNet: its neighbours, each with a weight of 1/k. The other
    transformers: class attention.

    Parameters
    ----------
    model : nn.Module

    Yields
    ------
    list of Record
        In the order of the layers; grows with each call of the model.

    Raises
    ------
    UserError
        If there is nothing to record.

    Examples
    --------
    >>> with record(tagger.model) as records:
    ...     tagger.predict(jets[:8])
    >>> records[0].weights  # (8, H, n, n)
    """
    records = []

    def watched(site, q, k, bias, mask):
        scores = attention_scores(q, k)
        weights = attention_weights(q, k, bias, mask)
        real = mask[:, None, None, :]  # (B, 1, 1, S)
        if site.kind == "particle":
            real = real & mask[:, None, :, None]  # (B, 1, n, n)
        seen = (
            None if x is None else x.detach().masked_fill(~real, 0) for x in (weights, scores, bias)
        )
        particles = mask if site.kind == "particle" else mask[:, 1:]
        records.append(Record(site.kind, site.layer, particles, *seen))
        return weights

    with ExitStack() as stack:
        watchers = 0
        if sites(model):
            stack.enter_context(replaced(model, watched))
            watchers += 1
        for name, watch in (("ReformerAttention", _watch_hashing), ("EdgeConv", _watch_neighbours)):
            for layer, module in enumerate(modules_named(model, name)):
                stack.callback(watch(module, layer, records))
                watchers += 1
        if not watchers:
            raise UserError(f"{_name(model)} has no attention to look at.")
        yield records


def modules_named(model, name):
    """Modules whose class has this name; classes of network files are made anew at each load."""
    return [module for module in model.modules() if type(module).__name__ == name]


def _name(model):
    name = type(model).__name__
    return type(model.mod).__name__ if name == "JetClassifier" else name


def _watch_hashing(module, layer, records):
    def hook(lsh, args, kwargs, output):
        mask = kwargs["input_mask"].unflatten(0, (-1, module.num_heads))[:, 0]  # (B, m)
        length = max(int(mask.sum(1).max()), 1)
        mask = mask[:, :length]
        weights = output[1].unflatten(0, (-1, module.num_heads))[..., :length, :length]
        real = mask[:, None, None, :] & mask[:, None, :, None]
        records.append(Record("particle", layer, mask, weights.detach().masked_fill(~real, 0)))

    handle = module.lsh.register_forward_hook(hook, with_kwargs=True)
    returned, module.lsh._return_attn = module.lsh._return_attn, True

    def stop():
        handle.remove()
        module.lsh._return_attn = returned

    return stop


def _watch_neighbours(module, layer, records):
    nearest = inspect.getmodule(type(module)).nearest

    def hook(module, args):
        points, x, layout = args
        neighbours = nearest(layout.pad(points), layout.mask, module.k)  # (B, n, k)
        length = layout.mask.shape[1]
        weights = points.new_zeros(len(neighbours), length, length + module.k)
        weights = weights.scatter(2, neighbours, 1.0)[..., :length]
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
        weights = weights.masked_fill(~layout.mask[:, :, None], 0)[:, None]  # (B, 1, n, n)
        records.append(Record("particle", layer, layout.mask, weights))

    return module.register_forward_pre_hook(hook).remove
