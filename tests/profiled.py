"""Steps to profile: small stacks of layers, and a tiny ParT."""

import torch
from torch import nn

from jetzoo import data_config, profiling
from jetzoo.profiling import runs
from jetzoo.profiling.kinds import Kinds
from jetzoo.profiling.steps import Step
from jetzoo.profiling.tally import Tally, tally
from jetzoo.repository import network_module

CONFIG = "QuarkGluon/qg_kin"
TINY = {"num_layers": 2, "num_heads": 2, "embed_dims": (16,), "num_cls_layers": 1}
TINY |= {"pair_embed_dims": (8,)}
SMALL = [word for key, value in TINY.items() for word in ("--network-option", key, str(value))]
LIMITS = profiling.Limits(flops=1e10, peak=2e10, memory=1e9, cache=1e10, call=1e-6)


class Jets(nn.Module):
    """Calls its layers one after the other on the features, as a network of the zoo is called."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, points, features, vectors, mask):
        x = features
        for layer in self.layers:
            x = layer(x)
        return x


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def step_of(*layers, features=None, labels=None):
    features = torch.randn(6, 5, 8) if features is None else features
    return Step(Jets(*layers), (None, features, None, None)[1:2] + (features,) * 3, labels)


def count(*layers, **options):
    step = step_of(*layers, **options)
    with Tally(step) as counted:
        step(counted)
    return counted


def rows_of(step, timer):
    """Rows of a step, by the name of the module."""
    rows = runs.make_rows([timer], tally(step), Kinds(step.network))
    return {row.module: row for row in rows}


def part(**options):
    config = data_config.read(CONFIG)
    torch.manual_seed(0)
    return network_module("ParT").get_model(config, **(TINY | options))[0]


def inputs(counts, length=None, seed=0):
    """Inputs of a network with the features of kin."""
    rng = torch.Generator().manual_seed(seed)
    length = length or max(counts)
    mask = (torch.arange(length) < torch.tensor(counts)[:, None])[:, None].float()
    momentum = torch.randn(len(counts), 3, length, generator=rng)
    vectors = torch.cat((momentum, momentum.norm(dim=1, keepdim=True) + 0.1), 1)
    features = torch.randn(len(counts), 7, length, generator=rng)
    return [x * mask for x in (features[:, :2], features, vectors)] + [mask]
