"""ONNX files that run without this project: padded batches, any length, float32 and int8."""

import handmade
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from jets import make_jets, repad
from zoo import CONFIG, NETWORKS, SIZES, build, stir

from jetzoo import UserError, cli
from jetzoo.export import export

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Jets to calibrate with."""
    folder = tmp_path_factory.mktemp("export")
    handmade.write_parquet(folder / "jets.parquet", [30, 7, 50, 12] * 10, np.random.default_rng(4))
    return folder


def trained(name, folder):
    """A network with for_inference, and its checkpoint."""
    options = dict(SIZES.get(name, {}))
    if "num_layers" in options:
        options["num_layers"] = 1
    model = stir(build(name, **options))
    path = folder / f"{name}.pt"
    torch.save(model.state_dict(), path)
    network = build(name, for_inference=True, **options)
    network.load_state_dict(model.state_dict())
    return network, path, options


def run(path, jets):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    assert names == ["pf_points", "pf_features", "pf_vectors", "pf_mask"]
    (out,) = session.run(["softmax"], dict(zip(names, map(np.asarray, jets), strict=True)))
    return torch.from_numpy(out)


BATCHES = (((40, 7, 50, 30), 128), ((8,), 12), ((45, 20), 150))


@torch.no_grad()
@pytest.mark.parametrize("name", ["ParT", "PN-FineTune"])  # for all see test_contracts
def test_float32(name, folder):
    network, checkpoint, options = trained(name, folder)
    path = folder / f"{name}.onnx"
    export(name, checkpoint, CONFIG, path, **options)
    for counts, length in BATCHES:
        jets = repad(make_jets(counts), length)
        torch.testing.assert_close(run(path, jets), network(*jets), atol=1e-4, rtol=1e-4)
    assert run(path, [x[:0] for x in jets]).shape == (0, 2)


@torch.no_grad()
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "ParT",
        "PFN",
        *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n not in ("ParT", "PFN")),
    ],
)
def test_int8(name, static, folder):
    network, checkpoint, options = trained(name, folder)
    path = folder / f"{name}-{static}.onnx"
    calibration = [folder / "jets.parquet"] if static else None
    export(name, checkpoint, CONFIG, path, int8=True, calibration=calibration, **options)
    graph = onnx.load(path).graph
    in_int8 = sum(
        np.prod(x.dims) for x in graph.initializer if x.data_type == onnx.TensorProto.INT8
    )
    assert in_int8 > 0.7 * sum(p.numel() for p in network.parameters() if p.ndim > 1)
    for counts, length in BATCHES:
        jets = repad(make_jets(counts), length)
        probabilities = run(path, jets)
        assert probabilities.isfinite().all()
        difference = (probabilities - network(*jets)).abs()
        assert 0 < difference.max() < 0.2 and difference.mean() < 0.05
        # The padding does not matter beyond a rounding.
        longer = run(path, repad(jets, length + 10, 1e3))
        torch.testing.assert_close(longer, probabilities, atol=0.02, rtol=0)


def command(checkpoint, path, options, *more):
    words = ["export", "PFN", f"--checkpoint={checkpoint}", f"--data-config={CONFIG}"]
    for key, value in options.items():
        words += ["--network-option", key, repr(value)]
    return [*words, f"--onnx={path}", *map(str, more)]


def test_command_line(folder, tmp_path, capsys):
    _, checkpoint, options = trained("PFN", folder)
    path = tmp_path / "new" / "net.onnx"
    assert cli.main(command(checkpoint, path, options)) == 0
    size = path.stat().st_size
    jets = folder / "jets.parquet"
    assert cli.main(command(checkpoint, path, options, "--int8", "--calibration", jets)) == 0
    assert path.stat().st_size < 0.5 * size
    assert capsys.readouterr().out.splitlines() == [f"wrote {path}"] * 2


@pytest.mark.parametrize(
    "name, more, message",
    [
        ("net.pt", [], "should end in .onnx"),
        ("net.onnx", ["--calibration", "jets.parquet"], "for an export in int8"),
        ("net.onnx", ["--int8", "--calibration", "none.parquet"], "no file none.parquet"),
    ],
)
def test_misuse(name, more, message, folder, tmp_path, capsys):
    _, checkpoint, options = trained("PFN", folder)
    assert cli.main(command(checkpoint, tmp_path / name, options, *more)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_weights_of_another_network(folder, tmp_path):
    _, checkpoint, _ = trained("PFN", folder)
    with pytest.raises(UserError, match="does not fit PN"):
        export("PN", checkpoint, CONFIG, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
