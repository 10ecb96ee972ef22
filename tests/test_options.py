"""Options, devices and network files: what cannot be is refused in one sentence, with code 2."""

import numpy as np
import pytest
import torch
from test_outputs import command, refused, write_jets
from zoo import LINEAR, SMALL, build, stir

import jetzoo
from jetzoo import UserError, cli, repository
from jetzoo.export import export

KIN = "QuarkGluon/qg_kin"
TINY = {**SMALL, "num_layers": 1, "num_cls_layers": 1}


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """Weights of a small ParT, and jets."""
    folder = tmp_path_factory.mktemp("part")
    torch.save(stir(build("ParT", **TINY)).state_dict(), folder / "net.pt")
    write_jets(folder)
    return folder


def predict(folder, output, options, *more, network="ParT"):
    words = command((network, folder / "net.pt"), "predict", "--output", output, *more)
    for key, value in options.items():
        words += ["--network-option", key, value]
    return [*words, folder / "jets.parquet"]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("num_layers", "'a'", "num_layers 'a'"),
        ("num_layers", "-1", "num_layers must be at least 1, not -1"),
        ("num_layers", "None", "num_layers None"),
        ("num_heads", "0", "num_heads 0"),
        ("num_heads", "3", "num_heads 3"),
        ("num_heads", "'eight'", "num_heads 'eight'"),
        ("embed_dims", "3", "embed_dims 3"),
        ("embed_dims", "()", "embed_dims ()"),
        ("embed_dims", "(0,)", "embed_dims (0,)"),
        ("embed_dims", "('a',)", "embed_dims ('a',)"),
        ("embed_dims", "(10**9, 10**9)", "must be a Python literal"),
        ("dropout", "'much'", "dropout 'much'"),
        ("dropout", "1.5", "dropout must be at least 0"),
        ("fc_params", "3", "fc_params 3"),
        ("seed", "'a'", "seed 'a'"),
        ("attention", "'flesh'", "unknown attention backend 'flesh'; choose from auto"),
        ("attention", "3", "unknown attention backend 3"),
        ("attention", "triton", "must be a Python literal"),
        ("for_inference", "True", "for_inference is for export"),
        ("device", "'cpu'", "device is no option of a network"),
        ("checkpoint", "'x.pt'", "checkpoint is no option of a network"),
        ("network", "'PN'", "network is no option of a network"),
        ("data_config", "'x'", "data_config is no option of a network"),
        ("num_layer", "1", "no option 'num_layer'; did you mean 'num_layers'?"),
        ("", "1", "no option ''"),
    ],
)
def test_network_options(part, tmp_path, capsys, key, value, message):
    options = {name: repr(x) for name, x in TINY.items()} | {key: value}
    assert message in refused(capsys, predict(part, tmp_path / "pred.root", options))
    assert not list(tmp_path.iterdir())


def test_a_backend_that_is_not_for_this_device(part, tmp_path, capsys, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("is for a machine without a GPU")

    def on_gpus_only(*arguments, **options):
        raise ValueError("the triton backend computes on cuda, not on cpu")

    monkeypatch.setattr("jetzoo.attention.dispatch._check", on_gpus_only)
    options = {name: repr(x) for name, x in TINY.items()} | {"attention": "'triton'"}
    found = refused(capsys, predict(part, tmp_path / "pred.root", options))
    assert "ParT cannot run on cpu with the option" in found and "attention 'triton'" in found


@pytest.mark.parametrize("device", ["meta", "hpu", "nonsense", "cuda:99", "cpu:x", "", "3,4"])
@pytest.mark.parametrize("fast", [True, False])
def test_devices(part, tmp_path, capsys, device, fast):
    options = {name: repr(x) for name, x in TINY.items()}
    more = ["--device", device, *(["--fast"] if fast else [])]
    words = predict(part, tmp_path / "pred.root", options, *more)
    if device == "":
        assert cli.main(list(map(str, words))) in (0, 2)
        return
    assert f"The device {device!r} cannot be used" in refused(capsys, words)


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_model(:\n", "cannot be imported as a network file: SyntaxError"),
        ("\0", "cannot be imported as a network file"),
        ("import nonsense_package\n", "ModuleNotFoundError: No module named 'nonsense_package'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)\n", "cannot be imported as a network file: SystemExit: 0"),
        ("", "it defines no get_model"),
        ("get_model = 3\n", "it defines no get_model"),
        ("def get_model(config):\n    return 1 / 0\n", "Net cannot be built: ZeroDivisionError"),
        ("def get_model(config):\n    raise SystemExit\n", "Net cannot be built: SystemExit"),
        ("def get_model(config):\n    return None\n", "Net cannot be built: TypeError"),
        ("def get_model(config):\n    return 1, 2\n", "Net cannot be built: AttributeError"),
        ("def get_model():\n    pass\n", "Net cannot be built: TypeError"),
    ],
)
def test_network_files(part, tmp_path, capsys, text, message):
    path = tmp_path / "Net.py"
    path.write_text(text)
    words = predict(part, tmp_path / "pred.root", {}, network=path)
    assert message in refused(capsys, words)
    assert list(tmp_path.glob("*.root")) == []


def test_binary_network_files(part, tmp_path, capsys):
    path = tmp_path / "Net.py"
    path.write_bytes(bytes(range(256)))
    words = predict(part, tmp_path / "pred.root", {}, network=path)
    assert "cannot be imported as a network file" in refused(capsys, words)


def test_a_network_without_a_score_for_each_class(tmp_path, part, capsys):
    path = tmp_path / "Net.py"
    path.write_text(LINEAR.replace("(input_dim, num_classes)", "(input_dim, num_classes + 1)"))
    words = predict(part, tmp_path / "pred.root", {"scale": "2"}, network=path)
    assert "outputs per jet that the data config asks for" in refused(capsys, words)


def test_the_message_names_all_options_that_may_be_wrong():
    config = jetzoo.data_config.read(KIN)
    with pytest.raises(UserError, match="ParT cannot be built with the option embed_dims 3, num_h"):
        repository.build_network("ParT", config, embed_dims=3, num_heads=2)


# Commands on what is no network in float32


def test_what_is_in_int8_stays_so(part, tmp_path, capsys):
    jets, int8 = part / "jets.parquet", tmp_path / "int8.pt"
    options = [x for k, v in TINY.items() for x in ("--network-option", k, repr(v))]
    given = ("--calibration", jets, "--data", jets, "--output")
    words = command(("ParT", part / "net.pt"), "quantize", *options, *given, int8)
    assert cli.main(list(map(str, words))) == 0
    words = ["predict", int8, "--output", tmp_path / "pred.parquet", jets]
    assert cli.main(list(map(str, words))) == 0
    before = sorted(tmp_path.iterdir())
    for words in (
        ["quantize", int8, *given, tmp_path / "8.pt"],
        ["export", int8, "--onnx", tmp_path / "8.onnx"],
        [*command(("ParT", int8), "quantize"), *given, tmp_path / "8.pt"],
        [*command(("ParT", int8), "export"), "--onnx", tmp_path / "8.onnx"],
    ):
        assert "in int8 already" in refused(capsys, words)
    words = ["predict", int8, "--output", tmp_path / "x.root", jets, "--device"]
    assert "runs on the CPU, not on 'meta'" in refused(capsys, [*words, "meta"])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["predict", "quantize", "export"])
def test_nan_weights(part, tmp_path, capsys, name):
    jets, weights = part / "jets.parquet", tmp_path / "net.pt"
    state = torch.load(part / "net.pt")
    torch.save({k: v * torch.nan if v.ndim > 1 else v for k, v in state.items()}, weights)
    more = {
        "predict": ["--output", tmp_path / "x.root", jets],
        "quantize": ["--calibration", jets, "--data", jets, "--output", tmp_path / "x.pt"],
        "export": ["--onnx", tmp_path / "x.onnx"],
    }[name]
    options = [x for k, v in TINY.items() for x in ("--network-option", k, repr(v))]
    words = command(("ParT", weights), name, *options, *more)
    assert "has weights that are NaN or infinite" in refused(capsys, words)
    assert list(tmp_path.iterdir()) == [weights]


# Export


@pytest.mark.parametrize(
    "given, message",
    [
        (
            ["--onnx", "net.onnx", "--calibration", "jets.parquet"],
            "--calibration is",
        ),
        (["--cpp", "library", "--opset", "15"], "--opset is an option of --onnx"),
        (["--cpp", "library", "--output", "logits"], "--output is an option of --onnx"),
    ],
)
def test_options_of_the_other_kind_of_export(part, tmp_path, monkeypatch, capsys, given, message):
    monkeypatch.chdir(tmp_path)
    words = command(("ParT", part / "net.pt"), "export", *given)
    assert message in refused(capsys, words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attention", ["jagged", "triton", "sdpa"])
def test_export_computes_in_pytorch_whatever_the_training_did(part, tmp_path, attention):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "net.onnx"
    export("ParT", part / "net.pt", KIN, path, **TINY, attention=attention)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    assert names == ["pf_points", "pf_features", "pf_vectors", "pf_mask"]
    tagger = jetzoo.load("ParT", part / "net.pt", KIN, "cpu", **TINY)
    jets = jetzoo.tables.read(part / "jets.parquet", tagger.branches)
    (found,) = session.run(None, tagger.inputs(jets))
    np.testing.assert_allclose(found, tagger.predict(jets), atol=1e-5)
    with pytest.raises(UserError, match="unknown attention backend 'flesh'"):
        export("ParT", part / "net.pt", KIN, path, **TINY, attention="flesh")


WRONG = """
import torch
from jetzoo import plugin


class Wrong(torch.nn.Module):
    def __init__(self, input_dim, num_classes, *, for_inference=False):
        super().__init__()
        self.fc = torch.nn.Linear(input_dim, num_classes)
        self.for_inference = for_inference

    def forward(self, points, features, lorentz_vectors, mask):
        x = (features * mask).sum(2)
        if torch.jit.is_tracing():
            x = CHANGE
        logits = self.fc(x)
        return logits.softmax(1) if self.for_inference else logits


def get_model(data_config, **kwargs):
    return plugin.build(Wrong, data_config, **kwargs)
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "change, message",
    [
        ("x", None),
        ("x * 1.5", "differ by"),
        ("x.detach().clone().new_tensor(x.tolist())", "differ by|cannot run"),
        ("x / (mask.sum(2) > 0) * (1 - (mask.shape[2] == 1) * 0.5)", "differ by"),
        ("(features * mask)[:, :, :128].reshape(-1, 7, 128).sum(2)", "cannot run"),
        ("x.double().atan().float()", "cannot open"),
    ],
)
def test_a_wrong_file_does_not_appear(tmp_path, change, message):
    pytest.importorskip("onnxruntime")
    source, weights, path = (tmp_path / name for name in ("Net.py", "net.pt", "net.onnx"))
    source.write_text(WRONG.replace("CHANGE", change))
    config = jetzoo.data_config.read(KIN)
    torch.manual_seed(3)
    torch.save(repository.build_network(source, config)[0].state_dict(), weights)
    if message is None:
        export(source, weights, KIN, path)
        assert path.exists()
        return
    with pytest.raises(UserError, match=f"net.onnx is not written: .*({message})"):
        export(source, weights, KIN, path)
    assert sorted(tmp_path.glob("*net.onnx*")) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "line, message",
    [
        ("torch.linalg.eigvalsh(x[:, :, None] * x[:, None])", "cannot be written in opset 17: "),
        ("x if mask.any() else mask.missing", None),
        ("x if len(x) < 7 else mask.missing", "PyTorch cannot run the network on 7 jets"),
    ],
)
def test_export_of_networks_with_limits(tmp_path, capfd, line, message):
    pytest.importorskip("onnxruntime")
    source, weights, path = (tmp_path / name for name in ("Net.py", "net.pt", "net.onnx"))
    source.write_text(WRONG.replace("if torch.jit.is_tracing()", "if True").replace("CHANGE", line))
    config = jetzoo.data_config.read(KIN)
    torch.save(repository.build_network(source, config)[0].state_dict(), weights)
    if message is None:
        export(source, weights, KIN, path)
        assert path.exists()
        return
    with pytest.raises(UserError, match=message):
        export(source, weights, KIN, path)
    assert not path.exists()
    assert "graph(" not in "".join(capfd.readouterr())
