"""What a user adds in a folder of their own works everywhere, without touching another file.

The folder holds an eighth architecture and a data config; a row of `BACKENDS` is an attention
backend.
"""

import os
import shlex
import subprocess
import sys

import awkward as ak
import numpy as np
import pytest
import torch
from conftest import ROOT
from jets import make_jets
from train_scripts import network_file
from weaver.train import parser
from zoo import CONFIG, SMALL

import jetzoo
from jetzoo import cli, repository, tagger
from jetzoo.attention import BACKENDS, attention, check_backend
from jetzoo.attention.backends import Backend
from jetzoo.int8 import file as int8_file

NETWORK = '''
"""Every other block replaces attention by the mean over the particles."""

import itertools
from functools import partial

from torch import nn

from jetzoo.nn.blocks import Attention
from jetzoo.nn.packing import mean_over_particles
from jetzoo.nn.transformer import JetClassifier, ParticleTransformer
from jetzoo.plugin import build, get_evaluate_fn, get_loss, get_train_fn  # noqa: F401


class MeanMixer(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout):
        super().__init__()
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x, layout, bias=None):
        mean = mean_over_particles(x, layout)[:, None]  # (B, 1, D)
        return self.proj(layout.unpad(mean.expand(-1, layout.mask.shape[1], -1)))


class MeanParT(ParticleTransformer):
    def __init__(self, input_dim, num_classes, *, attention="auto", **options):
        mixers = itertools.cycle((MeanMixer, partial(Attention, backend=attention)))
        super().__init__(
            input_dim,
            num_classes,
            mixer=lambda *sizes: next(mixers)(*sizes),
            attention=attention,
            **options,
        )


def get_model(data_config, **kwargs):
    part, info = build(MeanParT, data_config, **kwargs)
    return JetClassifier(part), info
'''

BACKEND = '''
"""The reference, and a list of the lengths that it was asked for."""

from jetzoo.attention.reference import reference

lengths = []


def tallied(q, k, v, **options):
    lengths.append(q.shape[2])
    return reference(q, k, v, **options)
'''
ROW = {"function": "tallying:tallied", "summary": "for a test"}

# Lets the interpreters of a subprocess have the row, too.
CUSTOMIZE = f"""
from jetzoo.attention.backends import BACKENDS, Backend
BACKENDS["tallied"] = Backend(**{ROW!r})
"""
DATA = "QuarkGluon/qg_angles"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of `JETZOO_PATH`."""
    folder = tmp_path / "my zoo"
    (folder / "networks").mkdir(parents=True)
    (folder / "networks" / "MeanParT.py").write_text(NETWORK)
    (folder / "data" / "QuarkGluon").mkdir(parents=True)
    lines = CONFIG.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.lstrip().startswith(("- [part_pt_log", "- [part_e"))]
    assert len(kept) == len(lines) - 2
    (folder / "data" / f"{DATA}.yaml").write_text("".join(kept))
    monkeypatch.setenv("JETZOO_PATH", str(folder))
    return folder


@pytest.fixture
def backend(tmp_path, monkeypatch):
    """The module of the backend, which has its row."""
    (tmp_path / "tallying.py").write_text(BACKEND)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(BACKENDS, "tallied", Backend(**ROW))
    monkeypatch.delitem(sys.modules, "tallying", raising=False)
    import tallying

    return tallying


@pytest.fixture
def trained(folder):
    """A tagger with weights of its own, and the file of its weights."""
    torch.manual_seed(2)
    found = tagger.untrained("MeanParT", DATA, "cpu", **SMALL)
    path = folder / "weights.pt"
    torch.save(found.model.state_dict(), path)
    return found, path


def options(**more):
    """Words of the command line."""
    words = (("--network-option", key, repr(value)) for key, value in {**SMALL, **more}.items())
    return [word for option in words for word in option]


@pytest.fixture
def jets():
    return ak.from_parquet(repository.sample_jets())[:60]


def test_network_and_data_config_load_by_name(trained, jets, tmp_path):
    found, path = trained
    assert found.model.mod.embed.input_bn.num_features == 5
    scores = found.predict(jets)
    assert scores.std() > 0.001
    again = jetzoo.load("MeanParT", path, DATA, "cpu", **SMALL)
    np.testing.assert_array_equal(again.predict(jets), scores)
    fast = jetzoo.load("MeanParT", path, DATA, "cpu", fast=True, **SMALL)
    assert fast.model.network is not None
    np.testing.assert_allclose(fast.predict(jets), scores, atol=1e-5)

    quantized = jetzoo.accelerate(found.model, "int8", method="weight-only")
    int8_file.save(quantized, tmp_path / "int8.pt", "MeanParT", found.data_config, SMALL)
    read = jetzoo.load(tmp_path / "int8.pt").predict(jets)
    assert 0 < np.abs(read - scores).mean() < 0.1 * scores.std()
    assert len(quantized.network.layers) > 10


def test_command_line(trained, jets, tmp_path, capsys):
    _, path = trained
    ak.to_parquet(jets, tmp_path / "jets.parquet")
    given = ["MeanParT", "--checkpoint", str(path), "--data-config", DATA, *options()]
    output = tmp_path / "scores.parquet"
    command = ["predict", *given, str(tmp_path / "jets.parquet"), "--output", str(output)]
    assert cli.main(command) == 0
    scores = ak.from_parquet(output)["scores"].to_numpy()
    np.testing.assert_allclose(scores, trained[0].predict(jets), atol=1e-6)


@pytest.mark.parametrize(
    "kind, name", [("networks", "MeanParT"), ("data", DATA), ("backends", "tallied")]
)
def test_lists(kind, name, folder, backend, capsys):
    assert cli.main(["list", kind]) == 0
    found = capsys.readouterr().out.splitlines()
    assert name in found and len(found) > 3


def test_a_backend_is_a_row(backend, monkeypatch):
    q, k, v = torch.randn(3, 2, 4, 9, 8)
    expected = attention(q, k, v, backend="reference")
    torch.testing.assert_close(attention(q, k, v, backend="tallied"), expected, rtol=0, atol=0)
    assert backend.lengths == [9]
    with pytest.raises(ValueError, match="choose from auto, .*, tallied"):
        check_backend("talied")
    for limit, message in (
        ({"bias": False}, "takes no pair bias; set pair_bias=False or choose sdpa"),
        ({"dropout": False}, "the tallied backend has no dropout"),
        ({"dtypes": ("float64",)}, "computes in float64 on cpu or cuda, not in torch.float32"),
        ({"cpu_gradients": False}, "no gradients on the CPU"),
        ({"package": "no_such_package", "install": "pip install it"}, "no_such_package: pip ins"),
    ):
        monkeypatch.setitem(BACKENDS, "tallied", Backend(**ROW, **limit))
        with pytest.raises(ValueError, match=message):
            attention(q.requires_grad_(), k, v, bias=q @ k.mT, dropout_p=0.1, backend="tallied")


def test_a_network_trains_with_the_backend(folder, backend):
    found = tagger.untrained("MeanParT", DATA, "cpu", attention="tallied", **SMALL)
    inputs = make_jets((9, 4))
    inputs[1] = inputs[1][:, 2:]
    backend.lengths.clear()
    found.model.train()(*inputs).sum().backward()
    assert backend.lengths == [9, 1, 1]  # one of two blocks has attention; two class blocks
    assert all(p.grad.isfinite().all() for p in found.model.parameters())


def test_profile(folder, backend, tmp_path, capsys):
    command = ["profile", "MeanParT", "--data-config", DATA, *options(num_layers=2)]
    command += ["--compare", "base", "tallied", "fast", "--batch-size", "16", "--repeats", "1"]
    assert cli.main([*command, "--device", "cpu", "--out", str(tmp_path / "profile")]) == 0
    assert "tallied" in capsys.readouterr().out
    assert len(backend.lengths) > 0
    assert (tmp_path / "profile" / "index.html").is_file()


def subprocess_environment(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(CUSTOMIZE)
    (tmp_path / "tallying.py").write_text(BACKEND)
    return {
        **os.environ,
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "DATADIR_QuarkGluon": str(repository.samples("QuarkGluon")),
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.parametrize(
    "model, backends", [("MeanParT", []), ("ParT", ["--attention", "tallied"])]
)
def test_training_script(model, backends, folder, tmp_path):
    result = subprocess.run(
        [ROOT / "train_QuarkGluon.sh", model, "angles", *backends, "--dry-run"],
        env=subprocess_environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    words = shlex.split(result.stdout)
    args = parser.parse_args(
        words[next(i for i, w in enumerate(words) if w.endswith("weaver")) + 1 :]
    )
    assert args.data_config == str(folder / "data" / f"{DATA}.yaml")
    if backends:
        assert ["attention", "'tallied'"] in args.network_option
    else:
        assert network_file(args) == str(folder / "networks" / "MeanParT.py")


def test_contracts(folder, tmp_path):
    """Those of all networks: `JETZOO_PATH=FOLDER pytest tests/test_contracts.py -k MeanParT`."""
    chosen = ["-k", "MeanParT and not learns"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    result = subprocess.run(
        [*command, ROOT / "tests" / "test_contracts.py"],
        env=subprocess_environment(tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout and "failed" not in result.stdout
