"""Networks and data of a user in the training scripts: any network file, any data config."""

# ruff: noqa: F401, F811  # pytest finds imported fixtures by the names of arguments

import ast
import json
import runpy
import shlex
import sys
from pathlib import Path

import awkward as ak
import handmade
import numpy as np
import pytest
import torch
from train_scripts import (
    ROOT,
    assert_misuse,
    checkout,
    dry_run,
    files_below,
    network_file,
    published,
    run,
    touch,
)

import jetzoo
from jetzoo import cli, tables

# A network file as users of weaver have it; it knows nothing of jetzoo.
FOREIGN = '''
"""weaver's own ParT, small, in the usual wrapper."""

import torch
from weaver.nn.model.ParticleTransformer import ParticleTransformer


class ParticleTransformerWrapper(torch.nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.mod = ParticleTransformer(**kwargs)

    def forward(self, points, features, lorentz_vectors, mask):
        return self.mod(features, v=lorentz_vectors, mask=mask)


def get_model(data_config, **kwargs):
    cfg = dict(
        input_dim=len(data_config.input_dicts["pf_features"]),
        num_classes=len(data_config.label_value),
        pair_input_dim=4,
        embed_dims=[16],
        pair_embed_dims=[8],
        num_heads=2,
        num_layers=1,
        num_cls_layers=1,
        cls_block_params={"dropout": 0, "attn_dropout": 0, "activation_dropout": 0},
        fc_params=[],
        trim=True,
        for_inference=False,
    )
    cfg.update(**kwargs)
    model_info = {
        "input_names": list(data_config.input_names),
        "input_shapes": {k: ((1,) + s[1:]) for k, s in data_config.input_shapes.items()},
        "output_names": ["softmax"],
        "dynamic_axes": {
            **{k: {0: "N", 2: "n_" + k.split("_")[0]} for k in data_config.input_names},
            "softmax": {0: "N"},
        },
    }
    return ParticleTransformerWrapper(**cfg), model_info


def get_loss(data_config, **kwargs):
    return torch.nn.CrossEntropyLoss()
'''
CONFIG = """
treename: Events
selection: Jet_pt > 1
new_variables:
   cand_mask: ak.ones_like(JetPFCands_pt)
   cand_px: JetPFCands_pt * np.cos(JetPFCands_phi)
   cand_py: JetPFCands_pt * np.sin(JetPFCands_phi)
   cand_pz: JetPFCands_pt * np.sinh(JetPFCands_eta)
   cand_energy: np.sqrt((JetPFCands_pt * np.cosh(JetPFCands_eta))**2 + JetPFCands_mass**2)
   cand_logpt: np.log(JetPFCands_pt)
   is_b: Jet_flavour == 5
   is_c: Jet_flavour == 4
   is_top: Jet_flavour == 6
preprocess:
   method: manual
inputs:
   pf_points: {length: 32, pad_mode: wrap, vars: [JetPFCands_eta, JetPFCands_phi]}
   pf_features: {length: 32, pad_mode: wrap, vars: [cand_logpt, JetPFCands_charge, JetPFCands_d0]}
   pf_vectors: {length: 32, pad_mode: wrap, vars: [cand_px, cand_py, cand_pz, cand_energy]}
   pf_mask: {length: 32, pad_mode: constant, vars: [cand_mask]}
labels:
   type: simple
   value: [is_b, is_c, is_top]
observers: [Jet_pt]
"""


@pytest.fixture
def foreign(tmp_path):
    """A network file in a folder of odd name, which lies in the folder that scripts start from."""
    path = tmp_path / "it's mine" / "My Net.py"
    path.parent.mkdir()
    path.write_text(FOREIGN)
    return path.relative_to(tmp_path)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """Three flat ROOT files of 60 jets each, and a data config; made by scripts/flat_root.py."""
    folder = tmp_path_factory.mktemp("flat jets")
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        source = folder / f"source_{split}.root"
        handmade.write_root(source, rng.integers(3, 30, 60), rng, rng.choice([1, 2, 8], 60))
        assert run_script("flat_root.py", source, "--output", folder / f"{split}.root") == 0
        source.unlink()
    (folder / "flavour.yaml").write_text(CONFIG)
    return folder


def run_script(name, *arguments):
    """The exit code of a Python script of the project."""
    script = runpy.run_path(str(ROOT / "scripts" / name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        return script["main"]()


def check_run(capsys, *arguments):
    """What scripts/check_run.py prints, or the sentence it ends with."""
    code = run_script("check_run.py", *arguments)
    captured = capsys.readouterr()
    assert code == (2 if captured.err else 0)
    return captured.err or captured.out


def test_network_by_path(dry_run, run, foreign, tmp_path):
    _, args = dry_run("QuarkGluon", foreign, "kin", "--gpus", "0", "--seed", "3")
    assert network_file(args) == str(foreign)
    assert (args.start_lr, args.batch_size, args.use_amp) == (1e-3, 512, False)
    assert args.optimizer_option == [] and args.load_model_weights is None
    assert ["seed", "3"] in args.network_option
    folder = Path(args.model_prefix).parent.parent
    assert folder.parts[-4:] == ("training", "QuarkGluon", "My Net", "kin")
    words = ["--use-amp", "--gpus", "0", "--quantize", "dynamic"]
    _, args = dry_run("JetClass", tmp_path / foreign, *words)
    assert args.use_amp and network_file(args) == str(tmp_path / foreign)
    settings = ast.literal_eval(dict(args.network_option)["quantize"])
    assert settings["network"] == str(tmp_path / foreign)


def test_network_of_the_zoo_by_path(run, published):
    """It is trained as by name, with the settings of its row."""
    start = {"COMMENT": "x"}
    found = []
    for name in ("ParT", ROOT / "networks" / "ParT.py"):
        result = run("QuarkGluon", name, "kin", "--gpus", "0", "--dry-run", **start)
        assert result.returncode == 0, result.stderr
        found.append([x for x in shlex.split(result.stdout) if "/training/" not in x])
    assert found[0] == found[1] and "--use-amp" in found[0]
    assert_misuse(run("JetClass", ROOT / "networks" / "ParT-FineTune.py"), "no model")


def test_data_config_by_path(dry_run, tmp_path):
    (tmp_path / "mine.yaml").touch()
    _, args = dry_run("QuarkGluon", "PFN", "mine.yaml")
    assert args.data_config == "mine.yaml"
    assert Path(args.model_prefix).parent.parent.parts[-3:] == ("QuarkGluon", "PFN", "mine")


@pytest.mark.parametrize(
    "network, fragments",
    [
        ("absent/Net.py", ["'absent/Net.py'"]),
        ("folder.py", ["'folder.py'"]),
        ("./notes.txt", ["'./notes.txt'"]),
        ("./a:b.py", ["a:b.py"]),
        ("./.py", [".py"]),
    ],
)
def test_no_network_file(network, fragments, run, checkout, tmp_path):
    (tmp_path / "folder.py").mkdir()
    for name in ("notes.txt", "a:b.py", ".py"):
        (tmp_path / name).touch()
    before = files_below(checkout)
    assert_misuse(run("QuarkGluon", network, "kin"), *fragments)
    assert files_below(checkout) == before


def test_own_data(dry_run, flat):
    files = ["--data-train", flat / "train.root", "--data-test", flat / "t*.root"]
    _, args = dry_run("", "ParT", flat / "flavour.yaml", *files, "--batch-size", "8")
    assert args.network_config.endswith("networks/ParT.py")
    assert args.data_config == str(flat / "flavour.yaml")
    assert args.data_train == [str(flat / "train.root")]
    assert args.data_test == [str(flat / "t*.root")] and args.data_val == []
    # A ROOT file can be split: four fifths of its 60 jets are an epoch.
    assert args.train_val_split == 0.8
    assert (args.samples_per_epoch, args.samples_per_epoch_val) == (48, 12)
    assert args.in_memory and args.fetch_step == 1
    folder = Path(args.model_prefix).parent.parent
    assert folder.parts[-4:] == ("training", "own", "ParT", "flavour")

    _, args = dry_run(
        "", "PFN", "QuarkGluon/qg_kin", *files, "--data-val", f"a:{flat}/val.root", "--demo",
        "--regression-mode",
    )  # fmt: skip
    assert args.data_config.endswith("data/QuarkGluon/qg_kin.yaml") and args.regression_mode
    assert args.data_val == [f"a:{flat}/val.root"]
    assert (args.num_epochs, args.samples_per_epoch, args.batch_size) == (3, 3200, 64)
    samples = ["--samples-per-epoch", "1000", "--samples-per-epoch-val", "-1"]
    words = ["PFN", "QuarkGluon/qg_kin", *files, *samples, "--gpus", "0"]
    _, args = dry_run("", *words, DDP_NGPUS=1)
    assert (args.samples_per_epoch, args.backend) == (1000, "nccl")
    # weaver cannot validate on each jet once while it keeps them in memory.
    assert args.samples_per_epoch_val == -1 and not args.in_memory_val


def test_misuse_of_own_data(run, flat, checkout, tmp_path):
    config = flat / "flavour.yaml"
    train, test = ["--data-train", flat / "train.root"], ["--data-test", flat / "test.root"]
    touch(tmp_path / "one.parquet")
    touch(tmp_path / "net.pt")
    before = files_below(checkout)
    for words, fragments in (
        ([], ["NETWORK and CONFIG"]),
        (["ParT", "absent.yaml", *train, *test], ["'absent.yaml'"]),
        (["ParT", "QuarkGluon/qg_min", *train, *test], ["'QuarkGluon/qg_min'"]),
        (["ParT", config, *test], ["--data-train"]),
        (["ParT", config, *train], ["--data-test"]),
        (["ParT", config, *train, "--data-test", "no*.root"], ["no*.root"]),
        (["ParT", config, "--predict", "--load", "net.pt"], ["--data-test"]),
        (["ParT-FineTune", config, *train, *test], ["--load"]),
        # weaver cannot cut the validation jets out of this file.
        (["ParT", config, "--data-train", "one.parquet", *test], ["one.parquet", "--data-val"]),
        (
            ["ParT", config, *train, *test, "--batch-size", "16"],
            ["12 jets to validate", "--batch-size"],
        ),
        (["ParT", config, *train, *test], ["48 jets to train", "--batch-size"]),
    ):
        assert_misuse(run("", *words), *fragments)
    assert files_below(checkout) == before


def test_predict_with_own_data(dry_run, flat, tmp_path):
    touch(tmp_path / "net.pt")
    test = ["--data-test", f"b:{flat}/test.root"]
    _, args = dry_run("", "PFN", flat / "flavour.yaml", *test, "--predict", "--load", "net.pt")
    assert args.predict and args.data_train == [] and args.data_test == test[1:]


def test_what_only_python_can_tell(capsys, flat, foreign, tmp_path):
    network, config = tmp_path / foreign, flat / "flavour.yaml"
    files = ["--train", flat / "train.root", flat / "val.root", "--test", flat / "test.root"]
    assert check_run(capsys, network, config, *files) == "120 0\n"
    assert check_run(capsys, network, config, *files, "--share", "0.8") == "96 24\n"
    assert check_run(capsys, "PFN", config, "--option", "phi_dims", "(8,)") == "0 0\n"

    found = check_run(capsys, network, "QuarkGluon/qg_kin", *files)
    assert "train.root has no branch" in found and "jet_pt" in found
    found = check_run(capsys, network, config, "--option", "depth", "3")
    assert found.startswith("My Net cannot be built with the option depth 3") and "depth" in found
    cut = tmp_path / "cut.root"
    cut.write_bytes((flat / "train.root").read_bytes()[:2000])
    assert "cut.root" in check_run(capsys, network, config, "--train", cut)
    assert "--samples-per-epoch" in check_run(capsys, network, config, "--train", "a.awkd")

    # The network says whether it takes a backend.
    assert check_run(capsys, "LinformerParT", config, "--attention") == "0 0\n"
    assert "--attention is not for PFN" in check_run(capsys, "PFN", config, "--attention")
    assert "--attention is not for My Net" in check_run(capsys, network, config, "--attention")
    swallows = tmp_path / "Swallows.py"
    swallows.write_text(FOREIGN.replace("cfg.update(**kwargs)", ""))
    assert "does nothing with" in check_run(capsys, swallows, config, "--attention")

    # It must take the inputs of the data config, unless loops of its own hand it others.
    strange = tmp_path / "Strange.py"
    strange.write_text(FOREIGN.replace("def forward(self", "def forward(self, another"))
    found = check_run(capsys, strange, config)
    assert found.startswith("Strange cannot run on cpu with the inputs pf_")
    assert "forward()" in found
    strange.write_text(f"{strange.read_text()}\nget_train_fn = get_evaluate_fn = get_model\n")
    assert check_run(capsys, strange, config) == "0 0\n"


def test_jets_of_hdf5_are_counted(capsys, flat, tmp_path):
    pytables = pytest.importorskip("tables")
    with pytables.open_file(tmp_path / "a.h5", "w") as file:
        for name in ("x", "y"):
            file.create_array("/", name, np.zeros(7))
    script = runpy.run_path(str(ROOT / "scripts" / "check_run.py"))
    assert script["describe"](tmp_path / "a.h5", None) == (["x", "y"], 7)
    (tmp_path / "b.h5").write_bytes(b"\x89HDF")
    with pytest.raises(jetzoo.UserError, match=r"b\.h5 cannot be read"):
        script["describe"](tmp_path / "b.h5", None)


def test_flat_jets_are_the_same_jets(capsys, tmp_path):
    source = tmp_path / "source.parquet"
    jets = handmade.write_parquet(source, [0, 1, 40], np.random.default_rng(1))
    assert run_script("flat_root.py", source, "--output", tmp_path / "flat.root") == 0
    branches, _ = tables.describe(tmp_path / "flat.root")
    flat = tables.read(tmp_path / "flat.root", [x for x in branches if x[0] == "J"])
    assert flat.Jet_flavour.tolist() == [1, 21, 1]
    pt, eta, phi = (ak.values_astype(flat[f"JetPFCands_{x}"], float) for x in ("pt", "eta", "phi"))
    found = {
        "px": pt * np.cos(phi),
        "py": pt * np.sin(phi),
        "pz": pt * np.sinh(eta),
        "energy": np.sqrt((pt * np.cosh(eta)) ** 2 + flat.JetPFCands_mass**2),
    }
    for name, values in found.items():
        expected = ak.flatten(jets[f"part_{name}"]).to_numpy()
        np.testing.assert_allclose(ak.flatten(values).to_numpy(), expected, rtol=1e-5)
    assert ak.all(flat.JetPFCands_pdgId == jets["part_pid"])
    capsys.readouterr()
    assert run_script("flat_root.py", tmp_path / "flat.root", "--output", source) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run_script("flat_root.py", tmp_path / "flat.root", "--output", tmp_path / "x.root") == 2
    assert "no jets of a data set" in capsys.readouterr().err
    assert not (tmp_path / "x.root").exists()


def trained(result):
    """The output folder of a run, which has succeeded."""
    assert result.returncode == 0, result.stderr
    command = shlex.split(result.stderr.splitlines()[0].removeprefix("+ "))
    return Path(command[command.index("--log-file") + 1]).parent


def probabilities(path, classes):
    """The scores in a file, (num_jets, num_classes)."""
    names = [f"score_{name}" for name in classes]
    table = tables.read(path, names)
    return np.stack([table[name] for name in names], axis=1)


@pytest.fixture
def words(flat, foreign):
    """Of a short training of the foreign network."""
    files = ["--data-train", flat / "train.root", "--data-test", f"a:{flat}/test.root"]
    options = ["--gpus", "", "--num-workers", "0", "--seed", "3", "--batch-size", "8"]
    return ["", foreign, flat / "flavour.yaml", *files, f"b:{flat}/val.root", *options]


def test_training_of_a_foreign_network(words, run, flat, foreign, tmp_path):
    """Train, predict two groups and evaluate; then the same scores by a command and in Python."""
    folder = trained(run(*words, "--num-epochs", "1"))
    metrics = json.loads((folder / "predict_output" / "metrics.json").read_text())
    assert metrics["num_jets"] == 120
    assert (folder / "net_epoch-0_resume.pt").is_file()  # the loop is that of jetzoo

    three = [tmp_path / foreign, folder / "net_best_epoch_state.pt", flat / "flavour.yaml"]
    tagger = jetzoo.load(*three, device="cpu")
    jets = tables.read(flat / "test.root", tagger.branches)
    scores = tagger.predict(jets)
    assert scores.shape == (60, 3) and np.isfinite(scores).all()
    by_weaver = probabilities(folder / "predict_output" / "pred_a.root", tagger.classes)
    np.testing.assert_allclose(by_weaver, scores, atol=1e-5)

    command = ["predict", three[0], "--checkpoint", three[1], "--data-config", three[2]]
    command += ["--device", "cpu", "--fast", "--output", tmp_path / "fast.root", flat / "test.root"]
    assert cli.main(list(map(str, command))) == 0
    assert cli.main(["evaluate", str(tmp_path / "fast.root")]) == 0
    fast = probabilities(tmp_path / "fast.root", tagger.classes)
    # The engine has the pair features in float64, which weaver rounds in float32.
    inputs = (torch.from_numpy(x).double() for x in tagger.inputs(jets).values())
    with torch.inference_mode():
        exact = tagger.model.double()(*inputs).softmax(1).numpy()
    np.testing.assert_allclose(fast, exact, atol=1e-5)


@pytest.mark.slow
def test_foreign_network_resumes_and_predicts(words, run):
    """A training that was stopped ends as one that was not, bit for bit.

    But for weaver's trimming, which counts its first steps outside of the state of the network.
    """
    words = [*words, "--lr-scheduler", "none", "-o", "trim", "False"]
    whole, folder = (
        trained(run(*words, "--num-epochs", epochs, COMMENT=f"_{epochs}")) for epochs in (2, 1)
    )
    assert trained(run(*words, "--num-epochs", "2", "--resume", folder)) == folder
    expected, found = (
        torch.load(x / "net_epoch-1_state.pt", weights_only=True) for x in (whole, folder)
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)

    weights = folder / "net_best_epoch_state.pt"
    again = trained(run(*words, "--predict", "--load", weights))
    metrics = [
        json.loads((x / "predict_output" / "metrics.json").read_text()) for x in (folder, again)
    ]
    assert metrics[0] == metrics[1]
