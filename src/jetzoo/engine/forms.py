"""Folded networks that are called in a way of their own."""

import functools

import torch
from torch import nn

from ..nn.collections import by_collection, side_by_side
from ..nn.inputs import is_arranged
from ..nn.packing import pack

# Rows that go through an embedding together, so that memory does not grow with the batch.
EMBEDDED_ROWS = {"cpu": 4096, "cuda": 2**18}


class Form(nn.Module):
    """What hands its inputs on to a core that takes (points, features, lorentz_vectors, mask).

    Parameters
    ----------
    core : nn.Module
        A folded network, which may be lowered to kernels.
    """

    def __init__(self, core):
        super().__init__()
        self.core = core


class CollectionsForm(Form):
    """:class:`jetzoo.nn.collections.CollectionTransformer`, folded.

    Parameters
    ----------
    collections : sequence of str
    embeds : sequence of nn.Module
        Folded, for each of them.
    core : nn.Module
        Of tokens.
    """

    def __init__(self, collections, embeds, core):
        super().__init__(core)
        self.collections = tuple(collections)
        self.embeds = nn.ModuleList(embeds)

    def forward(self, *inputs):
        """Features, four-vectors and mask of each collection to (B, num_classes)."""
        return self.core(*self.side_by_side(by_collection(inputs, self.collections)))

    def side_by_side(self, groups, layout=pack):
        """See :func:`jetzoo.nn.collections.side_by_side`."""
        embeds = [functools.partial(_in_parts, embed) for embed in self.embeds]
        return side_by_side(embeds, groups, torch.empty(0), layout)


class ArrangedForm(Form):
    """A network that takes its inputs in the order of a data config, folded.

    Parameters
    ----------
    arrangement : jetzoo.nn.inputs.Arrangement
    core : nn.Module
    """

    def __init__(self, arrangement, core):
        super().__init__(core)
        self.arrangement = arrangement

    def forward(self, *inputs):
        """All inputs of the data config to (B, num_classes)."""
        return self.core(*self.arrangement(self, inputs))


def _in_parts(embed, x):
    """Features (..., C) to tokens (..., D)."""
    if torch.jit.is_tracing():  # the number of parts would become a constant
        return embed(x)
    rows = x.flatten(0, -2).split(EMBEDDED_ROWS[x.device.type])
    return torch.cat([embed(part).float() for part in rows]).unflatten(0, x.shape[:-1])


def takes_usual(network):
    """Whether a network is called with (points, features, lorentz_vectors, mask)."""
    return not (forms_of(network) or is_arranged(network))


def forms_of(network):
    """List the forms within a network, but for those within another form."""
    forms = [module for module in network.modules() if isinstance(module, Form)]
    inner = {id(module) for form in forms for module in form.core.modules()}
    return [form for form in forms if id(form) not in inner]
