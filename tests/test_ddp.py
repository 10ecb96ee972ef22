"""Two processes of DistributedDataParallel, over gloo on the CPU, against one with the joint batch.

weaver averages the gradients of processes that have read files of their own, equally many jets
each. Tokens are packed, and jets have different numbers of them, but the loss is a mean over jets:
the average of the processes is then the gradient of the joint batch. Dropout, random hashes and
batch statistics would differ, so the networks are in eval mode: SyncBatchNorm, into which weaver
turns batch norms and which joins the statistics, counting tokens, runs on GPUs only.

Run as a script, this file is one of the processes.
"""

import os
import subprocess
import sys
from pathlib import Path

import handmade
import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from weaver.utils.dataset import SimpleIterDataset
from zoo import NETWORKS

from jetzoo import data_config, plugin, repository
from jetzoo.repository import network_module

CONFIG = "QuarkGluon/qg_kin"
JETS, BATCH, STEPS = 16, 8, 2


def make_model(name):
    small = {"embed_dims": (32, 16), "num_heads": 2, "num_layers": 1} if "ParT" in name else {}
    model, _ = network_module(name).get_model(data_config.read(CONFIG), seed=1, **small)
    return model.eval()


def batches(path):
    """Inputs and labels of a file, in its order, by weaver's loader."""
    config = str(repository.home() / "data" / f"{CONFIG}.yaml")
    whole = {"fetch_by_files": True, "fetch_step": 1}
    data = SimpleIterDataset({"_": [str(path)]}, config, for_training=False, **whole)
    (label,) = data.config.label_names
    for x, y, _ in DataLoader(data, batch_size=BATCH):
        yield [x[name] for name in data.config.input_names], y[label].long()


def train(model, data):
    """Gradients of every step; each step changes the weights, so that the next depends on it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = plugin.get_loss(None)
    gradients = []
    for inputs, labels in data:
        optimizer.zero_grad()
        loss(model(*inputs), labels).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        optimizer.step()
    return gradients


def run_process(folder, rank):
    """What one of the two processes does, for all networks."""
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    data = list(batches(folder / f"jets_{rank}.parquet"))
    for name in NETWORKS:
        model = DistributedDataParallel(make_model(name), find_unused_parameters=False)
        gradients = train(model, data)
        torch.save(gradients, folder / f"{name}_{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Jets of two files, and the gradients of two processes."""
    folder = tmp_path_factory.mktemp("ddp")
    rng = np.random.default_rng(1)
    for rank in range(2):
        # The second process has longer jets: equal weight for tokens would be seen.
        counts = rng.integers(3, 20, JETS) + 30 * rank
        handmade.write_parquet(folder / f"jets_{rank}.parquet", counts, rng)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_joint_batch(name, folder):
    files = [list(batches(folder / f"jets_{rank}.parquet")) for rank in range(2)]
    joint = [
        ([torch.cat(x) for x in zip(*inputs, strict=True)], torch.cat(labels))
        for inputs, labels in (zip(*step, strict=True) for step in zip(*files, strict=True))
    ]
    expected = train(make_model(name), joint)
    alone = train(make_model(name), files[0])
    ranks = [torch.load(folder / f"{name}_{rank}.pt") for rank in range(2)]
    assert len(expected) == STEPS
    for step, gradients in enumerate(expected):
        for parameter, gradient in gradients.items():
            zero, one = (rank[step][f"module.{parameter}"] for rank in ranks)
            assert torch.equal(zero, one)
            torch.testing.assert_close(zero, gradient, rtol=1e-3, atol=1e-5)
    scale = max(g.abs().max() for g in expected[0].values())
    difference = max((alone[0][n] - g).abs().max() for n, g in expected[0].items())
    assert difference > 0.05 * scale


if __name__ == "__main__":
    run_process(Path(sys.argv[1]), int(sys.argv[2]))
