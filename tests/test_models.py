"""The weights of `models/`: cards, checksums, names, and the download of the published ones."""

import hashlib
import io
import json
import re

import awkward as ak
import numpy as np
import pytest
import torch
from conftest import ROOT

import jetzoo
from jetzoo import UserError, cli, data_config, models, repository
from jetzoo.metrics import numbers
from jetzoo.repository import network_module

RECORD = {
    "model": "PFN",
    "dataset": "QuarkGluon",
    "features": "kin",
    "seed": 3,
    "command": "./train_QuarkGluon.sh PFN kin --network-option seed 3",
    "jets": {"train": 4200, "val": 600, "test": 1200},
    "budget": {"epochs": 2, "samples": 640, "samples_val": 128, "batch_size": 64},
    "seconds": 90,
    "machine": {"device": "a processor"},
}
METRICS = {
    "accuracy": 0.8,
    "accuracy_error": 0.01,
    "auc": 0.87,
    "rejections": [
        {
            "signal": "jet_isQ",
            "background": "jet_isG",
            "signal_efficiency": 0.5,
            "rejection": 27.64,
            "error": 5.01,
            "lower_limit": None,
        },
        {
            "signal": "jet_isQ",
            "background": "jet_isG",
            "signal_efficiency": 0.3,
            "rejection": None,
            "error": None,
            "lower_limit": 200.4,
        },
    ],
}


def write_run(folder, **changes):
    """A finished run with a PFN of random weights, whose file is read back."""
    folder.mkdir(parents=True, exist_ok=True)
    model, _ = network_module("PFN").get_model(data_config.read("QuarkGluon/qg_kin"), seed=5)
    torch.save(model.state_dict(), folder / "net.pt")
    (folder / "run.json").write_text(json.dumps(RECORD | changes))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A models folder in place of the project's."""
    folder = tmp_path / "models"
    monkeypatch.setattr(repository, "models", lambda: folder)
    monkeypatch.setattr(repository, "published_models", lambda: folder / "published")
    return folder


def test_add_writes_weights_and_card(folder, tmp_path, capsys):
    model = write_run(tmp_path / "run")
    assert cli.main(["models", "--add", str(tmp_path / "run")]) == 0
    path = folder / "PFN_QuarkGluon_kin.pt"
    text = (folder / "README.md").read_text()
    for word in (
        f"sha256 `{hashlib.sha256(path.read_bytes()).hexdigest()}`",
        "seed 3; 1,280 jets seen in 2 epochs, batch size 64",
        "0.8000 ± 0.0100, 0.8700",
        "27.6 ± 5.0 (quark against gluon at 50%), > 200 (quark against gluon at 30%)",
        RECORD["command"],
        "4,200 jets to train",
    ):
        assert word in text
    # Half the size, and the network of single precision to rounding.
    size = sum(p.numel() for p in model.parameters())
    assert 2 * size < path.stat().st_size < 2.3 * size + 5000
    tagger = jetzoo.load("PFN_QuarkGluon_kin")
    for ours, theirs in zip(tagger.model.parameters(), model.parameters(), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=2**-11, atol=2**-24)
    assert tagger.classes == ["jet_isQ", "jet_isG"]


def test_another_run_of_the_same_model_replaces_the_first(folder, tmp_path):
    for seed in (3, 4):
        write_run(tmp_path / "run", seed=seed)
        models.add(tmp_path / "run")
    write_run(tmp_path / "other", model="PN", dataset="JetClass")
    models.add(tmp_path / "other")
    cards = models.read_cards()
    assert list(cards) == ["PFN_QuarkGluon_kin", "ParticleNet_kin"]
    assert cards["PFN_QuarkGluon_kin"]["seed"] == 4


def test_names_are_those_the_scripts_look_for():
    script = (ROOT / "scripts" / "models.sh").read_text()
    assert "models/${pretrained}_$kind.pt" in script
    rows = re.findall(r'^ +"(\S+)-FineTune .* (\S+)"$', script, re.MULTILINE)
    assert [model for model, _ in rows] == ["ParT", "PN"]
    for model, stem in rows:
        record = {"model": model, "dataset": "JetClass", "features": "kin"}
        assert models.card_name(record) == f"{stem}_kin"


@pytest.mark.parametrize("name", ["ParT", "PN"])
def test_fine_tuning_starts_from_files_of_half_precision(name):
    config = data_config.read("QuarkGluon/qg_kin")
    pretrained, _ = network_module(name).get_model(config, seed=1)
    tuned, _ = network_module(f"{name}-FineTune").get_model(config, seed=2)
    state = {key: models.half(value) for key, value in pretrained.state_dict().items()}
    tuned.load_state_dict(state, strict=False)  # as weaver does
    ours, theirs = tuned.state_dict(), pretrained.state_dict()
    common = ours.keys() & theirs.keys()
    assert len(common) >= len(ours) - 2  # but for the last layer
    for key in common:
        torch.testing.assert_close(ours[key], theirs[key], rtol=2**-11, atol=2**-24)


def test_large_numbers_stay_in_single_precision():
    kept = models.half(torch.tensor([1e5, 1.0]))
    assert kept.dtype == torch.float32 and kept[0] == 1e5
    assert models.half(torch.tensor([3.0])).dtype == torch.float16
    assert models.half(torch.tensor(7)).dtype == torch.int64


def test_list_finds_damage(folder, tmp_path, capsys):
    write_run(tmp_path / "run")
    path = models.add(tmp_path / "run")
    assert cli.main(["models"]) == 0
    assert "PFN_QuarkGluon_kin" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert cli.main(["models"]) == 2
    assert "PFN_QuarkGluon_kin.pt (damaged)" in capsys.readouterr().err
    with pytest.raises(UserError, match="damaged"):
        jetzoo.load("PFN_QuarkGluon_kin")
    path.unlink()
    assert cli.main(["models"]) == 2
    assert "(missing)" in capsys.readouterr().err


def test_misuse(folder, tmp_path, capsys):
    assert cli.main(["models", "--add", str(tmp_path)]) == 2
    assert "not a finished run" in capsys.readouterr().err
    assert not folder.exists()
    assert cli.main(["models", "--fetch", "ParT"]) == 2
    assert "published are ParT_full" in capsys.readouterr().err
    with pytest.raises(UserError, match="no model 'Part'"):
        jetzoo.load("Part")
    with pytest.raises(UserError, match="--fetch ParT_kin"):
        jetzoo.load("published/ParT_kin")
    with pytest.raises(UserError, match="go together"):
        jetzoo.load("ParT", "net.pt")


@pytest.fixture
def published(server, monkeypatch):
    """Weights on a server, in place of the published ones; they begin a ParticleNet."""
    model, _ = network_module("PN").get_model(data_config.read("JetClass/JetClass_kin"))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    body = buffer.getvalue()
    server.files["good/ParticleNet_kin.pt"] = body
    blob = hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()
    monkeypatch.setitem(models.PUBLISHED, "ParticleNet_kin", blob)
    monkeypatch.setattr(models, "PUBLISHED_URLS", (f"{server.url}/good",))
    return body


def test_fetch(folder, published, server, capsys):
    assert cli.main(["models", "--fetch", "ParticleNet_kin"]) == 0
    path = folder / "published" / "ParticleNet_kin.pt"
    assert path.read_bytes() == published
    assert cli.main(["models", "--fetch", "ParticleNet_kin"]) == 0  # nothing left to do
    assert len(server.gets()) == 1
    assert not (folder / "ParticleNet_kin.pt").exists()
    tagger = jetzoo.load("published/ParticleNet_kin")
    assert len(tagger.classes) == 10
    path.write_bytes(b"something else")
    assert cli.main(["models"]) == 2
    assert "published/ParticleNet_kin.pt (damaged)" in capsys.readouterr().err
    assert cli.main(["models", "--fetch", "ParticleNet_kin"]) == 2
    assert path.read_bytes() == b"something else"  # it may be the user's


def test_interrupted_fetch_is_resumed(folder, published, server, capsys):
    server.cuts = [100_000, 0]
    assert cli.main(["models", "--fetch", "ParticleNet_kin"]) == 2
    assert "resumes" in capsys.readouterr().err
    path = folder / "published" / "ParticleNet_kin.pt"
    assert not path.exists()
    assert cli.main(["models", "--fetch", "ParticleNet_kin"]) == 0
    assert path.read_bytes() == published
    assert server.gets()[-1][2] == "bytes=100000-"


def test_wrong_checksum_is_refused(folder, published, server, monkeypatch, capsys):
    server.files["bad/ParticleNet_kin.pt"] = published[:-1] + b"?"
    monkeypatch.setattr(models, "PUBLISHED_URLS", (f"{server.url}/bad",))
    assert cli.main(["models", "--fetch", "ParticleNet_kin"]) == 2
    assert "wrong checksum" in capsys.readouterr().err
    assert list((folder / "published").iterdir()) == []
    # The next address may have it.
    monkeypatch.setattr(models, "PUBLISHED_URLS", (f"{server.url}/bad", f"{server.url}/good"))
    assert cli.main(["models", "--fetch", "ParticleNet_kin"]) == 0


def test_no_network(folder, monkeypatch, capsys):
    monkeypatch.setattr(models, "PUBLISHED_URLS", ("http://127.0.0.1:9/models",))
    assert cli.main(["models", "--fetch", "ParT_kin"]) == 2
    assert "cannot download ParT_kin.pt" in capsys.readouterr().err


@pytest.mark.real
def test_blob_id_of_the_published_file(real_data):
    path = real_data / "ParticleNet_kin.pt"
    assert models.git_blob_id(path) == models.PUBLISHED["ParticleNet_kin"]


def test_shipped_weights_are_what_their_cards_say():
    cards = models.read_cards()
    assert [name for name, card in cards.items() if models.status(name, card) != "ok"] == []
    assert {path.stem for path in repository.models().glob("*.pt")} == set(cards)
    if cards:
        assert (repository.models() / "README.md").read_text() == models.render(cards)


@pytest.mark.parametrize(
    "name", [n for n, c in models.read_cards().items() if c["data_config"] == "QuarkGluon/qg_kin"]
)
def test_shipped_weights_tag_the_embedded_jets(name):
    """Other jets than in the card, few of them: the AUC is off by 0.03 at one sigma."""
    jets = ak.from_parquet(repository.sample_jets())[::8]
    scores = jetzoo.load(name, fast=True).predict(jets)
    metrics = numbers.evaluate(1 - jets.label.to_numpy(), scores, ["jet_isQ", "jet_isG"])
    assert metrics["auc"] == pytest.approx(models.read_cards()[name]["metrics"]["auc"], abs=0.1)


@pytest.mark.real
@pytest.mark.parametrize("name", ["ParT_full", "ParticleNet_full"])
def test_shipped_weights_know_published_tops(name, real_data):
    """Of 50 published jets each: trained on generated ones, with all features, ten classes."""
    jets = np.load(real_data / "jetclass_tops_100.npz")
    keys = ("pf_points", "pf_features_full", "pf_vectors", "pf_mask")
    tagger = jetzoo.load(name)
    with torch.no_grad():
        chosen = tagger.model(*(torch.from_numpy(jets[key]) for key in keys)).argmax(1).numpy()
    for label in (8, 9):  # t -> bqq', t -> blv
        right = (chosen == label)[jets["labels"] == label]
        print(name, label, right.mean())
        assert right.mean() > 0.75
