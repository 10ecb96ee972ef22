"""Tiny networks to explain, and jets with planted attention."""

import awkward as ak
import handmade
import numpy as np
import pytest
import torch

import jetzoo
from jetzoo import data_config, repository
from jetzoo.interpret.recorder import Record
from jetzoo.interpret.sample import Batch
from jetzoo.interpret.subjets import has_fastjet
from jetzoo.repository import network_module

CONFIG = "QuarkGluon/qg_kin"
needs_fastjet = pytest.mark.skipif(not has_fastjet(), reason="needs the fastjet package")
SAMPLE = repository.sample_jets()
TINY = {"num_layers": 2, "num_heads": 2, "embed_dims": (16,), "num_cls_layers": 1}
OPTIONS = {
    "ParT": TINY | {"pair_embed_dims": (8,)},
    "LinformerParT": TINY,
    "ReformerParT": TINY | {"bucket_size": 4},
    "MambaParT": TINY,
    "PN": {"conv_params": ((3, (8,)), (3, (8,)))},
}


def checkpoint(folder, network="ParT", seed=0):
    """Weights of a tiny network, its batch norms as after some training."""
    torch.manual_seed(seed)
    config = data_config.read(CONFIG)
    model, _ = network_module(network).get_model(config, **OPTIONS.get(network, {}))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.4)
    path = folder / f"{network}.pt"
    torch.save(model.state_dict(), path)
    return path


def tagger_of(folder, network="ParT"):
    return jetzoo.load(network, checkpoint(folder, network), CONFIG, "cpu", **OPTIONS[network])


def write_jets(path):
    """Write jets of 0, 1 and more particles, with types and labels, in no order."""
    handmade.write_parquet(path, (9, 0, 20, 1, 3, 12, 130, 7), np.random.default_rng(3))
    return path


def planted(weights, real, types=None, subjets=None, positions=None, scores=None, bias=None):
    """A batch of one jet of `real` particles, and the record of its attention."""
    weights = torch.tensor(weights, dtype=torch.float32)
    weights = weights.reshape(1, *((1,) if weights.ndim == 2 else ()), *weights.shape)
    n = weights.shape[-1]
    mask = torch.arange(n)[None] < real
    positions = torch.zeros(n, 2) if positions is None else torch.tensor(positions)
    one = Batch(
        inputs=(),
        mask=mask,
        pt=torch.arange(n, 0, -1.0)[None],
        eta=positions[None, :, 0],
        phi=positions[None, :, 1],
        types=torch.full((1, n), -1) if types is None else torch.tensor([types]),
        labels=np.zeros(1, int),
        subjets=None if subjets is None else torch.tensor([subjets]),
    )
    return one, [Record("particle", 0, mask, weights, scores, bias)]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """A tiny ParT."""
    return tagger_of(tmp_path_factory.mktemp("part"))


@pytest.fixture(scope="module")
def jets(tmp_path_factory):
    """The jets of :func:`write_jets`."""
    return ak.from_parquet(write_jets(tmp_path_factory.mktemp("jets") / "jets.parquet"))
