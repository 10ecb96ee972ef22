"""Measures of `jetzoo.interpret` against planted attention, and the jets they are taken of."""

import math

import awkward as ak
import numpy as np
import pytest
import torch
from explained import needs_fastjet, planted

from jetzoo import interpret
from jetzoo.interpret import measures, streaming
from jetzoo.interpret.recorder import Record
from jetzoo.interpret.sample import TYPES, Batch, batch
from jetzoo.interpret.subjets import exclusive_subjets

# Three particles and a place of padding; rows look at 1, 2 and 2 particles.
WEIGHTS = [[0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0.75, 0.25, 0], [0, 0, 0, 0]]
MUON = TYPES.index("Muon")


def test_every_measure_finds_what_was_planted():
    one, records = planted(
        WEIGHTS,
        3,
        types=[0, MUON, 2, MUON],
        subjets=[0, 0, 1, -1],
        positions=[[0.0, 0.0], [0.3, 0.4], [0.3, 0.0], [9.0, 9.0]],
    )
    accumulator = streaming.RowMeasures()
    accumulator.update(one, records)
    found = {name: float(values[0, 0]) for name, values in accumulator.result().items()}
    rows = [0, math.log(2), -0.75 * math.log(0.75) - 0.25 * math.log(0.25)]
    expected = {
        "non_binary": 2 / 3,
        "entropy": sum(rows) / 3,
        "effective_number": sum(map(math.exp, rows)) / 3,
        "distance": (0.5 + (0.5 * 0.5 + 0.5 * 0.4) + 0.75 * 0.4) / 3,
        "same_subjet": (1 + 0.5 + 0.25) / 3,
        "same_subjet_chance": (2 + 2 + 1) / 9,
        "same_subjet_ratio": 1.75 / 3 / (5 / 9),
        "to_leptons": (1 + 0 + 0.75) / 3,
        "to_leptons_chance": 1 / 3,
        "lepton_ratio": 1.75,
    }
    assert found == pytest.approx(expected, rel=1e-6)


def test_uniform_attention_is_at_chance():
    one, records = planted(np.full((5, 5), 0.2), 5, types=[0, 3, 0, 4, 1], subjets=[0, 0, 0, 1, 1])
    accumulator = streaming.RowMeasures()
    accumulator.update(one, records)
    found = accumulator.result()
    assert found["effective_number"].item() == pytest.approx(5, rel=1e-6)
    assert found["same_subjet_ratio"].item() == pytest.approx(1, rel=1e-6)
    assert found["lepton_ratio"].item() == pytest.approx(1, rel=1e-6)
    assert found["non_binary"].item() == 1


def test_argmax_moved_by_rows_and_by_particles():
    scores = torch.tensor(
        [[[[2.0, 1, 9], [0, 1, 9], [9, 9, 9]], [[2, 1, 9], [0, 1, 9], [9, 9, 9]]]]
    )
    bias = torch.zeros_like(scores)
    bias[0, 1, 0, 1] = 5  # head 2 moves the first particle's look; column 3 is padding
    bias[0, :, :, 2] = 99
    mask = torch.tensor([[True, True, False]])
    moved = measures.argmax_moved(scores, bias, mask)
    assert moved[0, :, :2].tolist() == [[False, False], [True, False]]
    one, records = planted(np.zeros((2, 3, 3)), 2, scores=scores, bias=bias)
    particles, rows = streaming.MovedParticles(), streaming.RowMeasures()
    for accumulator in (particles, rows):
        accumulator.update(one, records)
    assert particles.result()[0] == 0.5 and particles.result()[1].tolist() == [0.5]
    np.testing.assert_allclose(rows.result()["argmax_moved"], [[0, 0.5]])


def test_cosine_rollout_and_class_importance():
    eye, swap = np.eye(2), np.eye(2)[::-1]
    weights = torch.tensor(np.stack([eye, swap, (eye + swap) / 2]))[None]
    half = math.sqrt(0.5)
    expected = [[1, 0, half], [0, 1, half], [half, half, 1]]
    np.testing.assert_allclose(measures.head_cosine(weights)[0], expected)
    layers = [torch.tensor(eye)[None, None], torch.tensor(swap.copy())[None, None]]
    np.testing.assert_allclose(measures.rollout(layers)[0], np.full((2, 2), 0.5))
    # The class token gives half to itself: of the rest, 80% goes to the first particle.
    look = torch.tensor([[[[0.5, 0.4, 0.1]]]])
    np.testing.assert_allclose(measures.class_importance([look]), [[0.8, 0.2]], rtol=1e-6)


def test_keep_top():
    weights = torch.tensor([[0.5, 0.2, 0.3], [0.0, 0.0, 0.0]])
    kept = measures.keep_top(weights, 2)
    np.testing.assert_allclose(kept, [[0.625, 0, 0.375], [0, 0, 0]], rtol=1e-6)
    assert torch.equal(measures.keep_top(weights, 7), weights)


def test_importance_by_type_and_rank():
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    types = torch.tensor([[0, 2, 2, 2], [2, 0, 0, 0]]).masked_fill(~mask, -1)
    cls = torch.tensor([[0.0, 0.6, 0.3, 0.1, 0], [0.5, 0.5, 0, 0, 0]])[:, None, None]
    one = Batch((), mask, mask.float(), mask.float(), mask.float(), types, np.array([1, 0]), None)
    accumulator = streaming.Importance(2)
    accumulator.update(one, [Record("class", 0, mask, cls)])
    found = accumulator.result()
    by_type, by_rank = (found["class_attention", by] for by in ("type", "rank"))
    np.testing.assert_allclose(by_type[1, [0, 2]], [0.6 * 3, 0.4 / 2 * 3], rtol=1e-6)
    np.testing.assert_allclose(by_type[0, [0, 2]], [0, 2])
    assert np.isnan(by_type[:, [1, 3, 4]]).all()
    np.testing.assert_allclose(by_rank[:, :3], [[1, 0, np.nan], [0.6, 0.3, 0.1]], rtol=1e-6)


def test_histograms_count_real_pairs_only():
    one, records = planted(
        WEIGHTS, 3, scores=torch.full((1, 1, 4, 4), 10.0), bias=torch.full((1, 1, 4, 4), 0.01)
    )
    real = one.mask[:, None, :, None] & one.mask[:, None, None, :]
    records[0].scores.masked_fill_(~real, 0), records[0].bias.masked_fill_(~real, 0)
    weights, ratios = streaming.WeightHistogram(), streaming.RatioHistogram()
    for accumulator in (weights, ratios):
        accumulator.update(one, records)
    expected = np.zeros((1, 20))
    expected[0, [0, 5, 10, 15, 19]] = [4, 1, 2, 1, 1]
    np.testing.assert_array_equal(weights.result(), expected)
    ratio = ratios.result()[0]
    (filled,) = np.flatnonzero(ratio)
    assert ratio[filled] == 9
    assert streaming.RATIO_EDGES[filled] <= 3 + 1e-6 <= streaming.RATIO_EDGES[filled + 1] + 2e-6


@needs_fastjet
def test_measures_do_not_depend_on_the_order_of_particles(tagger, jets):
    one = batch(tagger, jets[2:3])
    with interpret.record(tagger.model) as records:
        tagger.model(*one.inputs)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))

    def relabelled(x):
        return None if x is None else x[:, :, order][..., order]

    mixed = Batch(
        (),
        *(getattr(one, name)[:, order] for name in ("mask", "pt", "eta", "phi", "types")),
        one.labels,
        one.subjets[:, order],
    )
    particles = [r for r in records if r.kind == "particle"]
    others = [
        Record(r.kind, r.layer, mixed.mask, *map(relabelled, (r.weights, r.scores, r.bias)))
        for r in particles
    ]
    results = []
    for jet, seen in ((one, particles), (mixed, others)):
        accumulator = streaming.RowMeasures()
        accumulator.update(jet, seen)
        results.append(accumulator.result())
    assert {"argmax_moved", "same_subjet"} <= results[0].keys() == results[1].keys()
    for name, values in results[0].items():
        np.testing.assert_allclose(results[1][name], values, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(
        measures.head_cosine(others[0].weights),
        measures.head_cosine(particles[0].weights),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        measures.rollout([r.weights for r in others]),
        measures.rollout([r.weights for r in particles])[:, order][..., order],
        rtol=1e-4,
        atol=1e-7,
    )


def test_batches_and_padding_do_not_matter(tagger, jets):
    whole = interpret.study(tagger, jets, batch_size=64)
    pieces = interpret.study(tagger, jets, batch_size=1)  # without any padding
    assert whole.num_jets == 8 and whole.num_per_class == [4, 4]
    assert whole.rows.keys() == pieces.rows.keys()
    for name, values in whole.rows.items():
        np.testing.assert_allclose(pieces.rows[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(pieces.moved[1], whole.moved[1], atol=0.01)
    np.testing.assert_allclose(pieces.cosines, whole.cosines, rtol=1e-4)
    counts = np.minimum(ak.to_numpy(ak.num(jets["part_px"])), 128)
    for one in (whole, pieces):
        for histogram in (one.histogram, one.ratios):
            assert histogram.sum(1).tolist() == [2 * (counts**2).sum()] * 2  # two heads
    for key, values in whole.importance.items():
        np.testing.assert_allclose(pieces.importance[key], values, rtol=1e-4, atol=1e-6)


@needs_fastjet
def test_subjets_of_two_planted_clusters():
    rng = np.random.default_rng(0)
    pt = np.array([5, 4, 3, 50, 2, 1], np.float32)
    eta = np.where(np.arange(6) < 3, -0.4, 0.4) + rng.normal(0, 0.01, 6)
    phi = rng.normal(0, 0.01, 6)
    vectors = np.stack(
        (pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)), axis=-1
    )
    vectors = np.concatenate((vectors, np.full((2, 4), 7.0)))[None].repeat(3, 0)  # two of padding
    mask = np.array([[1] * 6 + [0] * 2, [1] + [0] * 7, [1] * 6 + [0] * 2], bool)
    found = exclusive_subjets(vectors, mask, np.array([2, 2, 3]))
    assert found[0].tolist() == [1, 1, 1, 0, 0, 0, -1, -1]  # the harder one is the first
    assert found[1].tolist() == [-1] * 8
    assert set(found[2, :6]) == {0, 1, 2} and found[2, 3] == 0
    large = (vectors * 2.0**121).astype(np.float32)  # up to 1.5e38: their sum is no float32
    assert exclusive_subjets(large, mask, np.array([2, 2, 3])).tolist() == found.tolist()


@needs_fastjet
def test_particles_come_in_order_of_pt_with_their_types(tagger, jets):
    mixed = jets[5:6]
    order = np.random.default_rng(1).permutation(12)
    parts = [name for name in mixed.fields if name.startswith("part_")]
    shuffled = ak.Array({n: mixed[n][:, order] if n in parts else mixed[n] for n in mixed.fields})
    one, other = batch(tagger, mixed), batch(tagger, shuffled)
    assert (one.pt.diff() <= 0).all()
    for name in ("pt", "eta", "types", "subjets"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    pt = np.hypot(mixed["part_px"], mixed["part_py"])[0].to_numpy()
    hardest = int(pt.argmax())
    flags = [mixed[f"part_is{name}"][0, hardest] for name in TYPES]
    assert int(one.types[0, 0]) == (flags.index(1) if 1 in flags else -1)
    torch.testing.assert_close(one.pt[0, 0], torch.tensor(pt[hardest]))
