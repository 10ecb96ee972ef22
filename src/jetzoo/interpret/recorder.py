"""Attention of a trained network, seen and changed from outside: the model code stays as it is.

Modules of a network say what can be seen: one with the method ``attend`` computes its output from
attention weights, which :func:`replaced` may change; ``attention_weights`` and ``neighbours``,
called with the inputs of the forward pass, return weights (B, H, n, n) to look at.
"""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from jetzoo import UserError
from jetzoo.attention.reference import scores as attention_scores
from jetzoo.attention.reference import weights as attention_weights


@dataclass
class Record:
    """What one layer did with one batch; zero wherever a row or a column is padding.

    Attributes
    ----------
    kind : {"particle", "class"}
        Particles that look at each other, or the class token that looks at itself and at them.
    layer : int
        From 0, within its kind. A class token among the particles, as weaver-core's option
        ``include_global_token`` has it, makes records of both kinds in each layer; what particles
        give to it is then missing in their rows.
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

    @property
    def name(self):
        """Name in tables and figures, counted from 1: ``L2`` of particles, ``C1`` of the class."""
        return f"{'L' if self.kind == 'particle' else 'C'}{self.layer + 1}"


def transformer(model):
    """Return the part of a network with particle blocks and class-attention blocks, or None."""
    return next((module for module in model.modules() if hasattr(module, "cls_blocks")), None)


def check_states(model, network):
    """Raise a :class:`jetzoo.UserError` if the states of a transformer cannot be read and changed.

    The engine's form of what only weaver-core's transformer has shows its attention alone.
    """
    if not all(hasattr(block, "residuals") for block in transformer(model).blocks):
        raise UserError(
            f"{network} has options of weaver's transformer that the zoo's does not have: "
            "its attention can be looked at, but not the states between its layers."
        )


def modules_with(model, method):
    """List the modules of a network that have a method, but none within another that has it.

    Parameters
    ----------
    model : nn.Module
    method : str

    Returns
    -------
    list of nn.Module
    """
    if hasattr(model, method):
        return [model]
    return [found for child in model.children() for found in modules_with(child, method)]


def is_graph(model):
    """Whether particles have neighbours in a network, in place of attention."""
    return bool(modules_with(model, "neighbours"))


def sites(model):
    """Find the attentions of a network that :func:`replaced` reaches.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    dict of Site to nn.Module
    """
    core = transformer(model)
    if core is None:
        return {}
    return {
        Site(kind, layer): block.attn
        for kind, blocks in (("particle", core.blocks), ("class", core.cls_blocks))
        for layer, block in enumerate(blocks)
        if hasattr(block.attn, "attend")
    }


@contextmanager
def set_on(values, name):
    """While open, an attribute of some modules has other values; errors put it back, too.

    Parameters
    ----------
    values : dict of nn.Module to object
    name : str
        Of the attribute.
    """
    earlier = {module: vars(module).get(name) for module in values}
    try:
        for module, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for module, value in earlier.items():
            if value is not None:
                setattr(module, name, value)
            elif name in vars(module):
                delattr(module, name)


def replaced(model, weights):
    """Context in which ``weights`` decides the attention weights of a network.

    Parameters
    ----------
    model : nn.Module
    weights : callable
        ``weights(site, q, k, bias, mask)`` gives (B, H, L, S); the :class:`Site`, and arguments as
        for :func:`jetzoo.attention`.
    """

    def attend_at(site, layer):
        def attend(q, k, v, bias, mask):
            q, k, v = map(layer.heads, (q, k, v))
            return (weights(site, q, k, bias, mask) @ v).transpose(1, 2).flatten(2)

        return attend

    return set_on({layer: attend_at(site, layer) for site, layer in sites(model).items()}, "attend")


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
    records, places = [], sites(model)

    def watched(site, q, k, bias, mask):
        scores = attention_scores(q, k)
        weights = attention_weights(q, k, bias, mask)
        real = mask[:, None, None, :]  # (B, 1, 1, S)
        if site.kind == "particle":
            real = real & mask[:, None, :, None]  # (B, 1, n, n)
        seen = [
            None if x is None else x.detach().masked_fill(~real, 0) for x in (weights, scores, bias)
        ]
        particles = mask if site.kind == "particle" else mask[:, 1:]
        if getattr(places[site], "has_token", False):
            particles = mask[:, 1:]
            records.append(Record("class", site.layer, particles, *(x[:, :, :1] for x in seen[:2])))
            seen = [None if x is None else x[:, :, 1:, 1:] for x in seen]
        records.append(Record(site.kind, site.layer, particles, *seen))
        return weights

    shown = [
        (method, layer, module)
        for method in ("attention_weights", "neighbours")
        for layer, module in enumerate(modules_with(model, method))
    ]
    if not shown and not places:
        raise UserError("This network has no attention to look at.")
    with ExitStack() as stack:
        stack.enter_context(replaced(model, watched))
        for method, layer, module in shown:
            stack.callback(_look_at(module, method, layer, records).remove)
        yield records


def _look_at(module, method, layer, records):
    def hook(module, args, kwargs):
        layout = next(x for x in (*args, *kwargs.values()) if hasattr(x, "mask"))
        with torch.no_grad():
            weights = getattr(module, method)(*args, **kwargs)
        real = layout.mask[:, None, None, :] & layout.mask[:, None, :, None]
        records.append(Record("particle", layer, layout.mask, weights.masked_fill(~real, 0)))

    return module.register_forward_pre_hook(hook, with_kwargs=True)
