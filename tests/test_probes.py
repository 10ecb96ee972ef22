"""Observables of jets, linear probes, and the command `jetzoo probe`."""

import csv
import json

import numpy as np
import pytest
import torch
from explained import CONFIG, OPTIONS, SAMPLE, checkpoint, needs_fastjet, tagger_of

from jetzoo import UserError, interpret
from jetzoo.cli import main
from jetzoo.interpret import observables, probes
from jetzoo.interpret.observables import correlators, soft_drop_mass, two_angle_correlator
from jetzoo.interpret.sample import Batch
from jetzoo.interpret.states import Place, logit_lens, record_states


def batch_of(*jets, types=None):
    """A batch of jets of massless particles, each (pT, eta, phi)."""
    n = max(map(len, jets))
    vectors = np.zeros((len(jets), 4, n), np.float32)
    mask = np.zeros((len(jets), n), bool)
    for k, jet in enumerate(jets):
        pt, eta, phi = np.array(jet).T
        momenta = (pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta))
        vectors[k, :, : len(jet)] = momenta
        mask[k, : len(jet)] = True
    unknown = torch.full(mask.shape, -1)
    zeros = torch.zeros(mask.shape)
    inputs = (None, None, torch.from_numpy(vectors), None)
    types = unknown if types is None else torch.tensor(types)
    return Batch(inputs, torch.from_numpy(mask), zeros, zeros, zeros, types, None, None)


def triangle(pt=(10.0, 10.0, 10.0), side=0.1):
    """Three particles at equal distances."""
    height = side * np.sqrt(3) / 2
    return list(zip(pt, (0, side, side / 2), (0, 0, height), strict=True))


def test_correlators_of_an_equilateral_triangle():
    found = observables.observables(batch_of(triangle(), triangle((20.0, 10.0, 10.0), 0.4)))
    for jet, (z, side) in enumerate((((1, 1, 1), 0.1), ((2, 1, 1), 0.4))):
        a, b, c = np.array(z) / sum(z)
        pairs, triple = a * b + a * c + b * c, a * b * c
        for beta in (0.5, 1, 2):
            assert found[f"e2_{beta:g}"][jet] == pytest.approx(np.log(pairs * side**beta), abs=1e-4)
            expected = np.log(triple * side ** (3 * beta))
            assert found[f"e3_{beta:g}"][jet] == pytest.approx(expected, abs=1e-4)
        assert np.exp(found["c2"][jet]) == pytest.approx(triple * side / pairs**2, rel=1e-4)
        assert np.exp(found["d2"][jet]) == pytest.approx(triple / pairs**3, rel=1e-4)
        assert np.exp(found["n2"][jet]) == pytest.approx(triple / pairs**2, rel=1e-4)
        assert found["ptd"][jet] == pytest.approx(np.sqrt(a * a + b * b + c * c))
    assert found["multiplicity"].tolist() == [3, 3]
    assert "leptons" not in found


def test_correlators_beside_sums_over_triples():
    rng = np.random.default_rng(1)
    z, at = rng.dirichlet(np.ones(6)), rng.normal(size=(6, 2))
    theta = np.hypot(*(at[:, None] - at[None]).transpose(2, 0, 1))
    triples = [(i, j, k) for i in range(6) for j in range(i) for k in range(j)]
    sides = [sorted((theta[i, j], theta[i, k], theta[j, k])) for i, j, k in triples]
    shares = [z[i] * z[j] * z[k] for i, j, k in triples]
    padded_z = torch.zeros(1, 8, dtype=torch.float64)
    padded_theta = torch.zeros(1, 8, 8, dtype=torch.float64)
    padded_z[0, :6], padded_theta[0, :6, :6] = torch.tensor(z), torch.tensor(theta)
    _, e3 = correlators(padded_z, padded_theta, 0.5)
    expected = sum(s * np.prod(x) ** 0.5 for s, x in zip(shares, sides, strict=True))
    assert e3.item() == pytest.approx(expected)
    expected = sum(s * x[0] * x[1] for s, x in zip(shares, sides, strict=True))
    assert two_angle_correlator(padded_z, padded_theta).item() == pytest.approx(expected)


def test_mass_width_and_leptons():
    # Two particles and a soft one that weighs nothing.
    jet = [(100.0, 0.2, 0.0), (100.0, -0.2, 0.0), (1e-6, 0.0, 0.0)]
    found = observables.observables(batch_of(jet, types=[[3, 4, 2]]))
    mass = np.sqrt(2 * 100 * 100 * (np.cosh(0.4) - 1))
    assert found["mass"][0] == pytest.approx(np.log(mass), abs=1e-5)
    assert found["pt"][0] == pytest.approx(np.log(200))
    assert found["width"][0] == pytest.approx(0.2, rel=1e-4)
    assert found["leptons"][0] == 2


@needs_fastjet
def test_prongs_are_counted_by_subjettiness():
    two = [(100.0, 0.2, 0.0), (90.0, 0.22, 0.0), (80.0, -0.2, 0.0), (70.0, -0.22, 0.0)]
    three = [(100.0, 0.2, 0.0), (90.0, -0.2, 0.0), (80.0, 0.0, 0.3), (70.0, 0.0, 0.32)]
    found = observables.observables(batch_of(two, three))
    assert found["tau21"][0] < 0.06 < 0.3 < found["tau21"][1]
    assert found["tau32"][1] < 0.06
    narrow = [(100.0, 0.0, 0.0), (99.0, 0.01, 0.0), (98.0, 0.0, 0.01)]
    # tau3 of three particles is zero, since each of them is an axis.
    assert observables.observables(batch_of(narrow))["tau32"][0] == pytest.approx(0, abs=1e-6)


@needs_fastjet
def test_soft_drop_takes_away_what_is_soft_and_wide():
    prongs = [(100.0, 0.2, 0.0), (80.0, -0.2, 0.0)]
    batch = batch_of([*prongs, (2.0, 0.0, 0.7)], prongs, [(100.0, 0.0, 0.0), (5.0, 0.5, 0.0)])
    vectors, mask = batch.inputs[2].transpose(1, 2).numpy(), batch.mask.numpy()
    mass = np.sqrt(2 * 100 * 80 * (np.cosh(0.4) - 1))
    np.testing.assert_allclose(soft_drop_mass(vectors, mask), [mass, mass, 0], rtol=1e-4, atol=1e-2)


def test_small_jets_have_no_observables():
    found = observables.observables(batch_of(triangle(), triangle()[:2]))
    assert all(np.isfinite(x[0]) and np.isnan(x[1]) for x in found.values())


def test_states_are_those_of_the_network(tagger, jets):
    """The last state, through the end of the network, gives its scores."""
    batch = next(interpret.batches(tagger, jets))
    with record_states(tagger.model) as states, torch.inference_mode():
        scores = tagger.model(*batch.inputs).softmax(1)
        assert list(map(str, states)) == ["embedding", "layer 1", "layer 2", "class layer 1"]
        lens = logit_lens(tagger.model, states[Place("class", 1)])
    torch.testing.assert_close(lens, scores)
    assert not any(m._forward_hooks for m in tagger.model.modules())
    with pytest.raises(UserError, match="no residual stream"), record_states(torch.nn.Linear(1, 1)):
        pass


def test_ridge_finds_what_is_there_and_no_more():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 12))
    planted = x @ rng.normal(size=12)
    noisy = planted + planted.std() * rng.normal(size=600)
    targets = np.stack([planted, noisy, rng.normal(size=600), np.full(600, 7.0)], 1)
    r2, error = probes.ridge_r2(x, 1e-3 * targets)
    assert r2[0] == pytest.approx(1, abs=1e-4)
    assert r2[1] == pytest.approx(0.5, abs=0.08) and error[1] < 0.06
    assert abs(r2[2]) < 0.05 and np.isnan(r2[3])


def test_what_the_mass_says_is_taken_away():
    rng = np.random.default_rng(0)
    mass, other = rng.normal(size=(2, 500))
    left = probes.without_mass(np.stack([2 * mass**2 - mass + other, mass], 1), mass)
    assert abs(left[:, 1]).max() < 1e-9
    assert np.corrcoef(left[:, 0], other)[0, 1] > 0.99


def test_a_discriminant_of_classes():
    rng = np.random.default_rng(0)
    labels = np.repeat((0, 2), 100)
    scores = probes.discriminant(rng.normal(size=(200, 3)) + 4 * labels[:, None], labels, 3)
    assert (scores.argmax(1) == labels).mean() > 0.99
    np.testing.assert_allclose(scores.sum(1), 1)
    assert (scores[:, 1] == 0).all()


def probe(path, out, *extra, network="ParT", data=SAMPLE):
    words = ["probe", network, "--checkpoint", str(path), "--data-config", CONFIG]
    words += ["--data", str(data), "--out", str(out), "--device", "cpu", *extra]
    for key, value in OPTIONS.get(network, {}).items():
        words += ["--network-option", key, repr(value)]
    return main(words)


def test_command(tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert probe(checkpoint(tmp_path), out, "--jets", "150") == 0
    written = {file.name for file in out.iterdir()}
    figures = {f"{n}.{k}" for n in ("r2", "beyond_mass", "gain", "classes") for k in ("png", "pdf")}
    assert written == figures | {"probes.csv", "classes.csv", "probes.json", "index.html"}
    content = json.loads((out / "probes.json").read_text())
    with open(out / "probes.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(content["probes"])
    names = set(observables.OBSERVABLES)
    assert {row["observable"] for row in rows} == names
    states = ["embedding", "layer 1", "layer 2", "class layer 1"]
    assert list(dict.fromkeys(r["state"] for r in rows)) == [*states, "inputs"]
    assert len(rows) == len(names) * (2 * len(states) + 1)
    # The logarithm of pT is an input, and so is its mean over particles.
    (pt,) = (r for r in rows if r["source"] == "inputs" and r["observable"] == "pt")
    assert float(pt["r2"]) > 0.9
    assert len(content["classes_by_state"]) == 2 * len(states) + 1
    assert "observable" in capsys.readouterr().out


def test_the_last_lens_is_the_network(tagger):
    sample = interpret.read_jets(tagger, [SAMPLE], 60)
    found = probes.gather({"it": tagger.model}, tagger, sample)
    order = np.argsort(interpret.sample.num_particles(tagger, sample), kind="stable")
    np.testing.assert_allclose(
        found.lens["it", Place("class", 1)], tagger.predict(sample[order]), atol=1e-5
    )
    assert len(found.inputs) == 60 and found.labels is not None


def test_misuse(tmp_path, capsys):
    part = checkpoint(tmp_path)
    for network, weights, extra, words in (
        ("PFN", checkpoint(tmp_path, "PFN"), (), "no residual stream"),
        ("PN", checkpoint(tmp_path, "PN"), (), "no residual stream"),
        ("ParT", part, ("--jets", "20"), "take 100 jets"),
        ("ParT", part, ("--jets", "99999,"), "There is no jet 99999"),
    ):
        assert probe(weights, tmp_path / "out", *extra, network=network) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("jetzoo: ") and words in error and error.endswith(".")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("network", ["LinformerParT", "ReformerParT", "MambaParT"])
def test_every_family_has_states(network, tmp_path, jets):
    tagger = tagger_of(tmp_path, network)
    found = probes.gather({"it": tagger.model}, tagger, jets)
    assert len(found.states) == 4 and len(found.inputs) == 6
    assert all(np.isfinite(x).all() for x in found.states.values())
