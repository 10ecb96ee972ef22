"""The pages on own data and own networks, run from top to bottom as a reader would."""

# ruff: noqa: F401, F811  # pytest finds imported fixtures by the names of arguments

import json
import os
import re
import subprocess
import sys

import awkward as ak
import numpy as np
import pytest
import torch
from test_docs import DOCS, blocks
from torch import nn
from train_scripts import checkout, with_path

FILE = re.compile(r"`([^`\s]+)`:\n\n```(?:yaml|python)\n(.*?)^```$", re.M | re.S)


@pytest.fixture
def read_along(checkout):
    """Write the files of a page, run its commands one after the other, and then its Python."""

    def read_along(name):
        page = DOCS / "guide" / name
        files = dict(FILE.findall(page.read_text()))
        assert files
        for path, text in files.items():
            (checkout / path).parent.mkdir(parents=True, exist_ok=True)
            (checkout / path).write_text(text)
        python = [x for x in blocks(page, "python") if "jetzoo.load(" in x]
        assert python
        (checkout / "page.py").write_text("\n".join(python))
        commands = ["set -euo pipefail", *blocks(page, "sh"), "python page.py"]
        environment = {
            **{k: v for k, v in os.environ.items() if k not in ("COMMENT", "JETZOO_PATH")},
            "PATH": with_path(checkout),
            "VIRTUAL_ENV": sys.prefix,
        }
        done = subprocess.run(
            ["bash", "-c", "\n".join(commands)],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return checkout / "mine"

    return read_along


@pytest.mark.slow
def test_own_data(read_along):
    folder = read_along("own-data.md")
    assert json.loads((folder / "metrics.json").read_text())["auc"] > 0.7
    # weaver, the network and the engine give the same scores; weaver those of the selected jets.
    scores, fast = (scores_of(folder / f"{name}.parquet") for name in ("scores", "fast"))
    np.testing.assert_allclose(fast, scores, atol=1e-5)
    assert len(scores) == 1600
    assert np.abs(scores_of(folder / "int8.parquet") - scores).max() < 0.2
    found = json.loads((folder / "int8.json").read_text())
    assert abs(found["int8"]["auc"] - found["float32"]["auc"]) < 0.01
    assert (folder / "net.onnx").is_file()


@pytest.mark.slow
def test_own_network(read_along):
    folder = read_along("network.md")
    assert json.loads((folder / "metrics.json").read_text())["auc"] > 0.7
    assert (folder / "net.onnx").is_file() and (folder / "profile" / "index.html").is_file()
    found = json.loads((folder / "int8.json").read_text())
    assert abs(found["int8"]["auc"] - found["float32"]["auc"]) < 0.01


def scores_of(path):
    """The scores in a file of `jetzoo predict`, (num_jets, num_classes)."""
    return ak.to_numpy(ak.from_parquet(path, columns=["scores"]).scores)


def test_layer_that_folds():
    """The example of the page on networks gives the same in one product."""
    (code,) = (x for x in blocks(DOCS / "guide" / "network.md", "python") if "def fold" in x)
    names = {"nn": nn}
    exec(code, names)
    layer = names["NormedLinear"](5, 3)
    with torch.no_grad():
        layer(torch.randn(64, 5) * 3 + 1)
        layer.norm.weight.uniform_(0.5, 2)
        layer.norm.bias.normal_()
    layer.eval().requires_grad_(False)
    x = torch.randn(7, 5)
    expected = layer(x)
    layer.fold()
    torch.testing.assert_close(layer(x), expected)
