"""Ablations, corruptions and paths between heads, and the command `jetzoo circuit`."""

import json

import awkward as ak
import numpy as np
import pytest
import torch
from explained import CONFIG, OPTIONS, SAMPLE, checkpoint, needs_fastjet, tagger_of

from jetzoo import interpret
from jetzoo.cli import main
from jetzoo.interpret import circuits, corruptions, errors
from jetzoo.interpret.ablation import Ablation
from jetzoo.interpret.circuit_report import roles
from jetzoo.interpret.interventions import (
    Means,
    Node,
    edited,
    nodes,
    remembering,
    replacing,
    resampled,
    zeros,
)
from jetzoo.interpret.recorder import Site, transformer
from jetzoo.interpret.replay import Replay
from jetzoo.interpret.sample import batch
from jetzoo.jets import true_labels
from jetzoo.metrics.numbers import evaluate

SOURCE, READOUT = Node("head", "particle", 0, 1), Node("head", "class", 0, 0)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A tiny ParT in which two heads alone say something, one to the other, and its jets.

    The outputs of all others are multiplied by zero. The label is the larger of its own scores.
    """
    tagger = tagger_of(tmp_path_factory.mktemp("planted"))
    core = transformer(tagger.model)
    with torch.no_grad():
        for block, kept in ((core.blocks[0], 1), (core.blocks[1], None), (core.cls_blocks[0], 0)):
            for head in range(2):
                if head != kept:
                    block.attn.out_proj.weight[:, 8 * head : 8 * head + 8] = 0
        # What the particles say to each other outweighs what they are.
        core.blocks[0].post_attn_norm.weight.mul_(20)
    jets = interpret.read_jets(tagger, [SAMPLE], 60)
    counts = interpret.sample.num_particles(tagger, jets)
    jets = jets[np.argsort(counts, kind="stable")]
    score = tagger.predict(jets)[:, 0]
    labels = (score > np.median(score)).astype(int)
    return tagger, ak.with_field(jets, labels, "label")


@pytest.fixture(scope="module")
def patching(planted):
    return circuits.Patching(*planted, batch_size=32)


@pytest.fixture(scope="module")
def effects(patching):
    return circuits.ablation_effects(patching)


def test_nodes_are_in_the_order_in_which_they_work(tagger):
    names = [node.name for node in nodes(tagger.model)]
    assert names == (
        ["L1.U", "L1.H1", "L1.H2", "L1.FF", "L2.U", "L2.H1", "L2.H2", "L2.FF"]
        + ["C1.H1", "C1.H2", "C1.FF"]
    )


def test_editing_nothing_changes_nothing(tagger, jets):
    one, values = batch(tagger, jets), {}
    with torch.inference_mode():
        expected = tagger.model(*one.inputs)
        with edited(tagger.model, remembering(values)):
            torch.testing.assert_close(tagger.model(*one.inputs), expected)
        # Its own values in place of all of them.
        with edited(tagger.model, replacing(nodes(tagger.model), lambda place, _: values[place])):
            torch.testing.assert_close(tagger.model(*one.inputs), expected)
        torch.testing.assert_close(tagger.model(*one.inputs), expected, rtol=0, atol=0)
    assert set(values) == {node.place for node in nodes(tagger.model)}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tagger.model.modules())


def test_zero_ablation_is_that_of_the_attention_report(tagger, jets):
    one = batch(tagger, jets)
    for node, change in (
        (Node("head", "particle", 1, 0), Ablation("head", "particle", 1, 0)),
        (Node("head", "class", 0, 1), Ablation("head", "class", 0, 1)),
        (Node("pair_bias", "particle", 0), Ablation("pair_bias", layer=0)),
    ):
        with torch.inference_mode():
            with interpret.replaced(tagger.model, change.weights):
                expected = tagger.model(*one.inputs)
            with edited(tagger.model, replacing([node], zeros)):
                torch.testing.assert_close(tagger.model(*one.inputs), expected)


def test_a_feed_forward_part_is_replaced(tagger, jets):
    one = batch(tagger, jets)
    layer = transformer(tagger.model).blocks[1].fc2
    weight, bias = layer.weight.clone(), layer.bias.clone()
    with torch.inference_mode():
        with edited(tagger.model, replacing([Node("feed_forward", "particle", 1)], zeros)):
            found = tagger.model(*one.inputs)
        try:
            layer.weight.zero_(), layer.bias.zero_()
            torch.testing.assert_close(found, tagger.model(*one.inputs))
        finally:
            layer.weight.copy_(weight), layer.bias.copy_(bias)


def test_means_and_the_next_jet():
    head, bias = ("head", Site("particle", 0)), ("pair_bias", Site("particle", 0))
    mask = torch.tensor([[True, True], [True, False]])
    values = {
        head: torch.tensor([[[[1.0], [2.0]]], [[[6.0], [99.0]]]]),  # (B, H, n, d)
        bias: torch.arange(8.0).reshape(2, 1, 2, 2),
    }
    means = Means()
    means.update(values, mask)
    assert means(*head_and(values, head)).item() == 3  # of 1, 2 and 6
    assert means(*head_and(values, bias)).item() == 2  # of 0, 1, 2, 3 and 4
    source = resampled(values, mask, means)
    # The first jet gets the only particle of the second, and the mean for its other one.
    assert source(*head_and(values, head)).flatten().tolist() == [6, 3, 1, 2]
    assert source(*head_and(values, bias))[0].flatten().tolist() == [4, 2, 2, 2]


def head_and(values, place):
    return place, values[place]


@torch.inference_mode()
def plain(model, part, edit):
    with edited(model, edit):
        return model(*part.inputs).double()


def heads_of(model):
    return [node for node in nodes(model) if node.what == "head"]


@pytest.fixture(scope="module")
def replay(tagger, jets):
    """Of jets of 0, 1 and up to 130 particles."""
    return Replay(tagger.model, batch(tagger, jets))


def test_a_replay_is_a_whole_run(tagger, replay):
    means = Means()
    means.update(replay.values, replay.part.mask)
    for node in nodes(tagger.model):
        for source in (zeros, means, resampled(replay.values, replay.part.mask, means)):
            expected = plain(tagger.model, replay.part, replacing([node], source))
            torch.testing.assert_close(replay.run(node, source), expected, atol=2e-5, rtol=1e-5)
    heads = heads_of(tagger.model)
    for gone in ([], heads, heads[:3], heads[1:], heads[:2] + heads[-1:]):
        expected = plain(tagger.model, replay.part, replacing(gone, means))
        found = replay.without(gone, means)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert all("forward" not in vars(m) and "attend" not in vars(m) for m in tagger.model.modules())


def test_paths_are_those_of_whole_runs(tagger, replay):
    """Two whole runs: one finds what the receiver gives, the other puts it into the network."""
    model, part, values = tagger.model, replay.part, replay.values
    bad = resampled(values, part.mask, zeros)
    heads = heads_of(model)
    for sender in heads:
        later = [receiver for receiver in heads if sender.depth < receiver.depth]
        direct, received = replay.send(sender, bad, later)
        for receiver in (None, *later):
            frozen = [h for h in heads if h not in (sender, receiver)]
            freeze = replacing(frozen, lambda place, _: values[place])
            send, seen = replacing([sender], bad), {}

            def step(place, value, freeze=freeze, send=send, seen=seen):
                seen[place] = value
                return send(place, freeze(place, value))

            expected = plain(model, part, step)
            found = direct
            if receiver is not None:
                expected = plain(model, part, replacing([receiver], lambda p, _, s=seen: s[p]))
                found = replay.run(receiver, lambda place, _, r=received: r[place])
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_errors_of_changes_on_the_same_jets():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    logits = rng.normal(size=(600, 3)) + 1.5 * np.eye(3)[labels]
    before, after = (
        np.exp(x) / np.exp(x).sum(1, keepdims=True)
        for x in (logits, logits + 0.5 * rng.normal(size=logits.shape))
    )

    def auc(rows, scores):
        return evaluate(labels[rows], scores[rows], ["a", "b", "c"])["auc"]

    everything = np.arange(600)
    brought = errors.placements(labels, before)
    # A jet of each class is in a third of the pairs, twice each.
    by_class = [brought[labels == c].mean() for c in range(3)]
    assert sum(by_class) / 2 == pytest.approx(auc(everything, before))
    rows = [rng.integers(0, 600, 600) for _ in range(200)]
    drawn = np.array([auc(r, after) - auc(r, before) for r in rows])
    assert errors.auc_error(labels, before, after) == pytest.approx(drawn.std(), rel=0.15)
    above, below = before[:, 0], after[:, 0]
    drawn = np.array([above[r].mean() / below[r].mean() for r in rows])
    assert errors.ratio_error(above, below) == pytest.approx(drawn.std(), rel=0.15)
    assert errors.ratio_error(above, above) < 1e-12 and errors.mean_error(above[:1]) == 0


def test_only_what_was_planted_has_an_effect(patching, effects):
    assert patching.auc(patching.logits) == 1
    for e in effects:
        node = e["node"]
        if node.what == "head" and node not in (SOURCE, READOUT):
            assert e["size"] < 1e-5 and abs(e["auc_change"]) < 1e-6
    for node in (SOURCE, READOUT):
        for mode in circuits.MODES:
            (e,) = (e for e in effects if e["node"] == node and e["mode"] == mode)
            assert e["size"] > 0.1 and e["auc_change"] < -0.05
    # The second layer has no attention that a bias could change.
    assert all(e["size"] < 1e-5 for e in effects if e["node"] == Node("pair_bias", "particle", 1))


def test_the_planted_circuit_is_found(patching, effects):
    heads, auc = circuits.smallest_circuit(patching, effects, 0.95)
    assert set(heads) == {SOURCE, READOUT}
    assert auc == pytest.approx(1)


@needs_fastjet
def test_paths_of_the_planted_circuit(patching, effects):
    other = Node("head", "particle", 1, 0)
    edges = circuits.path_effects(patching, [SOURCE, READOUT, other])
    found = {(e["corruption"], e["sender"], e["receiver"]): e["effect"] for e in edges}
    assert len(edges) == 2 * (3 + 3)
    for name in corruptions.CORRUPTIONS:
        assert abs(found[name, SOURCE, READOUT]) > 0.05
        assert found[name, SOURCE, None] == pytest.approx(0, abs=1e-6)
        assert abs(found[name, READOUT, None]) > 0.05
        # Silent heads neither send nor receive.
        for pair in ((SOURCE, other), (other, READOUT), (other, None)):
            assert found[name, *pair] == pytest.approx(0, abs=1e-6)
    kept = [e for e in edges if other not in (e["sender"], e["receiver"])]
    circuit = circuits.Circuit(1.0, effects, [SOURCE, READOUT], 1.0, kept, 60)
    assert roles(circuit) == {SOURCE: "source", READOUT: "readout"}
    circuit.heads.append(other)
    assert roles(circuit)[other] == "not patched"


def test_threads_find_what_one_finds(planted, monkeypatch):
    """Each with a network of its own; the last batch is a small one."""
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        some = circuits.Patching(*planted, batch_size=13)
        assert len(some.models) == threads and len(some.batches) == 5
        effects = circuits.ablation_effects(some, ("mean",))
        heads, auc = circuits.smallest_circuit(some, effects, 0.95)
        paths = circuits.path_effects(some, [SOURCE, READOUT], ("other_class",))
        found.append((heads, auc, [e["size"] for e in effects], [e["effect"] for e in paths]))
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)


def test_labels_of_a_figure_do_not_overlap():
    def head(name):
        kind = "particle" if name[0] == "L" else "class"
        return Node("head", kind, int(name[1]) - 1, int(name[-1]) - 1)

    grid = [head(f"{layer}.H{k}") for layer in ("L1", "L2", "L3", "C1") for k in range(1, 9)]
    effects = [{"node": node, "mode": "mean"} for node in grid]
    paths = {
        ("L1.H8", "L2.H7"): -0.02,
        ("L1.H7", "L2.H7"): 0.07,
        ("L1.H8", "L2.H1"): 0.05,
        ("L1.H7", "L2.H1"): 0.03,
        ("L1.H4", "L2.H1"): 0.06,
        ("L1.H7", "L2.H2"): 0.03,
        ("L2.H7", "C1.H8"): -0.25,
        ("L2.H1", "C1.H1"): 0.12,
    }
    edges = [
        {"corruption": "rotation", "sender": head(a), "receiver": head(b), "effect": effect}
        for (a, b), effect in paths.items()
    ]
    heads = [*dict.fromkeys(head(name) for pair in paths for name in pair)]
    edges += [
        {"corruption": "rotation", "sender": node, "receiver": None, "effect": -0.21}
        for node in heads
    ]
    circuit = circuits.Circuit(0.9, effects, heads, 0.9, edges, 1)
    figure = interpret.figures.circuit_graph(circuit, roles(circuit))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    assert len(boxes) == len(heads) + len(paths)
    overlaps = [
        (one.x0, one.y0)
        for k, one in enumerate(boxes)
        for other in boxes[:k]
        if one.overlaps(other)
    ]
    assert overlaps == []


def test_matched_jets_are_of_the_other_class(planted):
    tagger, jets = planted
    other = corruptions.matched(tagger, jets)
    assert (true_labels(tagger, other) != true_labels(tagger, jets)).all()
    mass, pt = corruptions.masses_and_pts(jets)
    other_mass, other_pt = corruptions.masses_and_pts(other)
    assert np.median(abs(np.log(other_mass / mass))) < 0.2
    assert np.median(abs(np.log(other_pt / pt))) < 0.1


@needs_fastjet
def test_turned_particles_stay_physical(planted):
    tagger, jets = planted
    turned = corruptions.rotated(tagger, jets)
    old, mask = corruptions.momenta(jets)
    new, _ = corruptions.momenta(turned)
    pt, transverse, rapidity, phi = corruptions._coordinates(old)
    new_pt, new_transverse, new_rapidity, new_phi = corruptions._coordinates(new)
    np.testing.assert_allclose(new_pt[mask], pt[mask], rtol=1e-6)
    np.testing.assert_allclose(new_transverse[mask], transverse[mask], rtol=1e-6)
    assert np.median(abs(new_rapidity - rapidity)[mask]) > 1e-3
    subjets = interpret.sample.exclusive_subjets(old, mask, 2)
    for jet in range(0, len(old), 9):
        for k in (0, 1):
            members = subjets[jet] == k
            axis = old[jet, members].sum(0)
            _, _, y, p = corruptions._coordinates(axis)
            before = np.hypot(rapidity[jet, members] - y, wrapped(phi[jet, members] - p))
            after = np.hypot(new_rapidity[jet, members] - y, wrapped(new_phi[jet, members] - p))
            np.testing.assert_allclose(after, before, atol=1e-6)
    # The positions that the file gives move as the momenta do.
    moved = ak.to_numpy(ak.flatten(turned["part_dphi"] - jets["part_dphi"]))
    np.testing.assert_allclose(abs(moved), abs(wrapped(new_phi - phi))[mask], atol=1e-5)


def wrapped(angle):
    return (angle + np.pi) % (2 * np.pi) - np.pi


def circuit(path, out, *extra, network="ParT", data=SAMPLE):
    words = ["circuit", network, "--checkpoint", str(path), "--data-config", CONFIG]
    words += ["--data", str(data), "--out", str(out), "--device", "cpu", *extra]
    for key, value in OPTIONS.get(network, {}).items():
        words += ["--network-option", key, repr(value)]
    return main(words)


@needs_fastjet
def test_command(tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert circuit(checkpoint(tmp_path), out, "--jets", "40", "--keep", "0.9") == 0
    written = {file.name for file in out.iterdir()}
    figures = {f"{name}.{kind}" for name in ("circuit", "effects") for kind in ("png", "pdf")}
    assert written == figures | {"effects.csv", "paths.csv", "circuit.json", "index.html"}
    content = json.loads((out / "circuit.json").read_text())
    assert len(content["effects"]) == 11 * 3
    assert set(content["roles"]) == set(content["circuit"])
    assert content["circuit_auc"] >= 0.5 + 0.9 * (content["auc"] - 0.5)
    assert "of 6 heads keep 90%" in capsys.readouterr().out.replace("\n", " ")


def test_misuse(tmp_path, capsys, jets):
    part = checkpoint(tmp_path)
    bare = jets[[name for name in jets.fields if name != "label"]]
    ak.to_parquet(bare, tmp_path / "bare.parquet")
    for network, weights, data, words in (
        ("PFN", checkpoint(tmp_path, "PFN"), SAMPLE, "no heads of particle attention"),
        ("MambaParT", checkpoint(tmp_path, "MambaParT"), SAMPLE, "no heads of particle attention"),
        ("ParT", part, tmp_path / "bare.parquet", "two known classes"),
    ):
        assert circuit(weights, tmp_path / "out", network=network, data=data) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("jetzoo: ") and words in error and error.endswith(".")
        assert not (tmp_path / "out").exists()
