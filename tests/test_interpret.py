"""Recorder, measures, ablations and figures of `jetzoo.interpret`, against planted attention."""

import csv
import inspect
import io
import json
import math
import re

import awkward as ak
import handmade
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgb

from jetzoo import UserError, interpret, zoo
from jetzoo.attention.reference import weights as attention_weights
from jetzoo.cli import main
from jetzoo.evaluate import OKABE_ITO
from jetzoo.interpret import counterparts, figures, measures, streaming
from jetzoo.interpret.recorder import Record, modules_named, transformer
from jetzoo.interpret.report import measure_rows
from jetzoo.interpret.sample import TYPES, Batch, batch, exclusive_subjets, has_fastjet, typical

CONFIG = "QuarkGluon/qg_kin"
needs_fastjet = pytest.mark.skipif(not has_fastjet(), reason="needs the fastjet package")
SAMPLE = zoo.REPOSITORY / "data" / "samples" / "QuarkGluon" / "test_file_0.parquet"
TINY = {"num_layers": 2, "num_heads": 2, "embed_dims": (16,), "num_cls_layers": 1}
OPTIONS = {
    "ParT": TINY | {"pair_embed_dims": (8,)},
    "LinformerParT": TINY,
    "ReformerParT": TINY | {"bucket_size": 4},
    "MambaParT": TINY,
    "PN": {"conv_params": ((3, (8,)), (3, (8,)))},
}


def checkpoint(folder, network="ParT", seed=0):
    """Weights of a tiny network, its batch norms as after some training."""
    torch.manual_seed(seed)
    config = zoo.read_data_config(CONFIG)
    model, _ = zoo.network_module(network).get_model(config, **OPTIONS.get(network, {}))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.4)
    path = folder / f"{network}.pt"
    torch.save(model.state_dict(), path)
    return path


def tagger_of(folder, network="ParT"):
    return zoo.load(network, checkpoint(folder, network), CONFIG, "cpu", **OPTIONS[network])


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    return tagger_of(tmp_path_factory.mktemp("part"))


@pytest.fixture(scope="module")
def jets(tmp_path_factory):
    """Jets of 0, 1 and more particles, with types and labels, not in order of their length."""
    path = tmp_path_factory.mktemp("jets") / "jets.parquet"
    handmade.write_parquet(path, (9, 0, 20, 1, 3, 12, 130, 7), np.random.default_rng(3))
    return ak.from_parquet(path)


def planted(weights, real, types=None, subjets=None, positions=None, scores=None, bias=None):
    """A batch of one jet of `real` particles, and the record of its attention."""
    weights = torch.tensor(weights, dtype=torch.float32)
    weights = weights.reshape(1, *((1,) if weights.ndim == 2 else ()), *weights.shape)
    n = weights.shape[-1]
    mask = torch.arange(n)[None] < real
    positions = torch.zeros(n, 2) if positions is None else torch.tensor(positions)
    one = Batch(
        inputs=(),
        mask=mask,
        pt=torch.arange(n, 0, -1.0)[None],
        eta=positions[None, :, 0],
        phi=positions[None, :, 1],
        types=torch.full((1, n), -1) if types is None else torch.tensor([types]),
        labels=np.zeros(1, int),
        subjets=None if subjets is None else torch.tensor([subjets]),
    )
    return one, [Record("particle", 0, mask, weights, scores, bias)]


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


def test_recorded_weights_rebuild_the_output_of_the_blocks(tagger, jets):
    core = transformer(tagger.model)
    one = batch(tagger, jets)
    before, after = [], []
    hooks = []
    for block in (*core.blocks, *core.cls_blocks):
        hooks.append(block.register_forward_hook(lambda m, args, out: after.append(out)))
        hooks.append(block.register_forward_pre_hook(lambda m, args: before.append(args)))
    with torch.no_grad():
        plain = tagger.model(*one.inputs)
        for hook in hooks:
            hook.remove()
        with interpret.record(tagger.model) as records:
            recorded = tagger.model(*one.inputs)
    assert [(r.kind, r.layer) for r in records] == [("particle", 0), ("particle", 1), ("class", 0)]
    torch.testing.assert_close(recorded, plain, rtol=0, atol=1e-5)
    for block, args, out, r in zip(core.blocks, before, after, records, strict=False):
        x, layout, _ = args
        with torch.no_grad():
            bias = core.pair_embed(one.inputs[2], layout)  # (B, H, n, n)
            v = block.attn.in_proj(block.pre_attn_norm(x)).chunk(3, dim=-1)[2]
            mixed = r.weights @ block.attn.heads(layout.pad(v))
            mixed = layout.unpad(mixed.transpose(1, 2).flatten(2))
            rebuilt = block.residuals(x, block.attn.out_proj(mixed))
        torch.testing.assert_close(rebuilt, out, rtol=1e-6, atol=1e-6 * float(out.abs().max()))
        real = r.mask[:, None, :, None] & r.mask[:, None, None, :]
        torch.testing.assert_close(r.bias, bias.masked_fill(~real, 0))
        softmax = (r.scores + r.bias).masked_fill(~real, -torch.inf).softmax(-1)
        torch.testing.assert_close(r.weights, softmax.masked_fill(~real, 0))
        assert not r.weights.masked_select(~real).any()
    cls, x, layout = before[-1]
    block, r = core.cls_blocks[0], records[-1]
    with torch.no_grad():
        normed = torch.cat((block.pre_attn_norm(cls), layout.pad(block.pre_attn_norm(x))), dim=1)
        v = block.attn.heads(block.attn.in_proj(normed).chunk(3, dim=-1)[2])
        mixed = (r.weights @ v).transpose(1, 2).flatten(2)
        rebuilt = block.residuals(cls, block.attn.out_proj(mixed))
    torch.testing.assert_close(rebuilt, after[-1], rtol=1e-6, atol=1e-5)
    assert r.weights.shape == (8, 2, 1, 129) and r.bias is None
    torch.testing.assert_close(r.weights.sum(-1), torch.ones(8, 2, 1))


def test_the_model_is_left_as_it_was(tagger, jets, monkeypatch):
    called = []
    monkeypatch.setattr(
        "jetzoo.layers.attention",
        lambda q, k, v, **o: called.append("padded") or v[:, :, :1] + 0 * q,
    )
    monkeypatch.setattr(
        "jetzoo.layers.packed_attention",
        lambda qkv, *_, **o: called.append("packed") or qkv.chunk(3, dim=-1)[2],
    )
    one = batch(tagger, jets[:1])
    with interpret.record(tagger.model) as records, torch.no_grad():
        tagger.model(*one.inputs)
    assert not called and len(records) == 3
    with pytest.raises(ZeroDivisionError), interpret.record(tagger.model):
        raise ZeroDivisionError
    with torch.no_grad():
        tagger.model(*one.inputs)
    assert len(called) == len(records) == 3


def test_reformer_weights_rebuild_its_output(tmp_path, jets):
    tagger = tagger_of(tmp_path, "ReformerParT")
    one = batch(tagger, jets[2:6])
    core = transformer(tagger.model)
    seen = []
    hook = core.blocks[0].attn.lsh.register_forward_hook(lambda m, a, out: seen.append((a, out[0])))
    with torch.no_grad(), interpret.record(tagger.model) as records:
        tagger.model(*one.inputs)
    hook.remove()
    (_, v), out = seen[0]
    r = records[0]
    n = r.weights.shape[-1]
    assert n == 20 and not core.blocks[0].attn.lsh._return_attn
    rebuilt = r.weights @ v.unflatten(0, (-1, 2))[:, :, :n]
    real = r.mask[:, None, :, None]
    torch.testing.assert_close(
        rebuilt, out.unflatten(0, (-1, 2))[:, :, :n].masked_fill(~real, 0), rtol=1e-4, atol=1e-5
    )
    same = counterparts.shared_buckets(tagger.model, one)
    assert len(same) == 2 and same[0].shape == (4, 20, 20)
    diagonal = same[0].diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(diagonal, one.mask.float())
    torch.testing.assert_close(same[0], same[0].transpose(1, 2))
    assert ((same[0] > 0) & (same[0] < 1)).any()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_implied_attention_is_the_scan(tmp_path, jets, bidirectional):
    options = TINY | {"bidirectional": bidirectional}
    model, _ = zoo.network_module("MambaParT").get_model(zoo.read_data_config(CONFIG), **options)
    tagger = zoo.Tagger(model, zoo.read_data_config(CONFIG))
    one = batch(tagger, jets[2:3])
    scan = modules_named(model, "Mamba")[0]
    module = inspect.getmodule(type(scan))
    seen = []
    scan.x_proj.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    inputs = counterparts._ScanInputs(scan)
    with torch.no_grad():
        model(*one.inputs)
    u, projected = seen[0]
    with torch.no_grad():
        dt, B, C = projected.split(scan.sizes, dim=-1)
        dt = torch.nn.functional.softplus(scan.dt_proj(dt))
        A = -scan.A_log.exp()
        expected = module.padded_scan(u[None], dt[None], A, B[None], C[None])[0]
        alpha = inputs.alpha()
        torch.testing.assert_close((alpha @ u.t()[..., None])[..., 0].t(), expected)
        matrix = counterparts.implied_attention(model, one)[0]
    assert matrix.shape == (20, 20)
    below = torch.ones(20, 20).tril().bool()
    if bidirectional:
        assert (matrix > 0).all()
    else:
        torch.testing.assert_close(matrix, alpha.abs().mean(0))
        assert (matrix[below] > 0).all() and not matrix[~below].any()


def test_neighbours_are_the_nearest(tmp_path, jets):
    tagger = tagger_of(tmp_path, "PN")
    found = interpret.look(tagger, jets, 0)  # 9 particles
    weights = found.records[0].weights[0, 0]
    distance = measures.pair_distance(found.batch.eta, found.batch.phi)[0].fill_diagonal_(np.inf)
    for row in range(9):
        near = distance[row].topk(3, largest=False).indices
        assert set(weights[row].nonzero()[:, 0].tolist()) == set(near.tolist())
    torch.testing.assert_close(weights.sum(-1), torch.ones(9))
    lonely = interpret.look(tagger, jets, 3).records[0]
    assert lonely.weights.shape == (1, 1, 1, 1) and not lonely.weights.any()


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


@pytest.fixture(scope="module")
def ablated(tagger):
    sample = interpret.read_jets(tagger, [SAMPLE], 24)
    return sample, interpret.ablate(tagger, sample, batch_size=10)


def test_ablations_against_the_long_way(tagger, ablated):
    sample, results = ablated
    core = transformer(tagger.model)
    whole = batch(tagger, sample)

    def accuracy():
        with torch.no_grad():
            scores = tagger.model(*whole.inputs).softmax(1).numpy()
        return float((scores.argmax(1) == whole.labels).mean()), scores

    by_change = {
        (c.what, c.kind, c.layer, c.head, c.k): metrics["accuracy"] for c, metrics in results
    }
    assert len(by_change) == 1 + 3 + 2 * 2 + 2 + 5
    baseline, plain = accuracy()
    assert by_change["none", "particle", None, None, None] == baseline

    hook = core.pair_embed.register_forward_hook(lambda m, args, out: torch.zeros_like(out))
    assert by_change["pair_bias", "particle", None, None, None] == accuracy()[0]
    hook.remove()

    # Head 2 of the second layer is columns 8 to 15 of what the output projection reads.
    projection = core.blocks[1].attn.out_proj
    kept = projection.weight.data.clone()
    projection.weight.data[:, 8:] = 0
    without, scores = accuracy()
    projection.weight.data = kept
    assert by_change["head", "particle", 1, 1, None] == without
    assert np.abs(scores - plain).max() > 1e-3
    change = next(c for c, _ in results if (c.what, c.layer, c.head) == ("head", 1, 1))
    with interpret.replaced(tagger.model, change.weights):
        np.testing.assert_allclose(accuracy()[1], scores, atol=1e-5)

    everything = interpret.Ablation("top_k", k=128)
    with interpret.replaced(tagger.model, everything.weights):
        np.testing.assert_allclose(accuracy()[1], plain, atol=1e-6)
    assert core.blocks[0].forward.__self__ is core.blocks[0]  # nothing is replayed any more


def test_zeroed_bias_of_one_layer(tagger):
    q = k = torch.randn(1, 2, 3, 8)
    bias, mask = torch.randn(1, 2, 3, 3), torch.ones(1, 3, dtype=torch.bool)
    change = interpret.Ablation("pair_bias", layer=1)
    first, second = (interpret.recorder.Site("particle", layer) for layer in (0, 1))
    torch.testing.assert_close(
        change.weights(first, q, k, bias, mask), attention_weights(q, k, bias, mask)
    )
    torch.testing.assert_close(
        change.weights(second, q, k, bias, mask), attention_weights(q, k, None, mask)
    )


def test_smallest_k():
    results = [(interpret.Ablation("none"), {"auc": 0.9})]
    for k, auc in ((1, 0.5), (2, 0.88), (4, 0.8995), (8, 0.9)):
        results.append((interpret.Ablation("top_k", k=k), {"auc": auc}))
    assert interpret.smallest_k(results) == 4
    assert interpret.smallest_k(results, loss=1e-9) == 8
    assert interpret.smallest_k(results[:3]) is None


def drawn_jet():
    """Particle 1 looks at particle 3, the others at themselves; one is a photon."""
    weights = np.eye(4)
    weights[0] = [0, 0, 1, 0]
    one, records = planted(
        np.stack([weights, np.eye(4)]),
        4,
        types=[0, 2, MUON, 1],
        subjets=[0, 0, 1, 1],
        positions=[[-0.3, -0.3], [0.3, -0.3], [0.3, 0.3], [-0.3, 0.3]],
    )
    cls = torch.tensor([[[[0.0, 0, 0, 0, 1]]]]).expand(1, 2, 1, 5)
    records.append(Record("class", 0, one.mask, cls))
    return streaming.Drawn(0, one, records)


def pixels(figure):
    """The figure as an RGB array, and a function from data coordinates to (row, column)."""
    figure.set_dpi(100)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="raw", dpi=100)
    width, height = figure.canvas.get_width_height()
    image = np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)[..., :3]

    def at(axes, x, y):
        column, row = axes.transData.transform((x, y))
        return image[height - 1 - int(row), int(column)] / 255

    return image, at


def test_attention_maps_show_the_matrix():
    figure = figures.attention_maps(drawn_jet())
    panels = [a for a in figure.axes if a.get_title() or a.images]
    first, second = (a for a in figure.axes if a.get_title().startswith("head"))
    assert len(panels) >= 2
    _, at = pixels(figure)
    dark, bright = (np.array(first.images[0].cmap(v)[:3]) for v in (0.0, 1.0))
    for panel, matrix in ((first, drawn_jet().records[0].weights[0, 0]), (second, torch.eye(4))):
        for (row, column), weight in np.ndenumerate(matrix.numpy()):
            color = at(panel, column + 1, row + 1)
            np.testing.assert_allclose(color, bright if weight else dark, atol=0.02)


def test_attention_graph_draws_particles_and_lines():
    figure = figures.attention_graph(drawn_jet())
    image, at = pixels(figure)
    particles, cls = figure.axes
    (lines,) = (c for c in particles.collections if isinstance(c, LineCollection))
    (segment,) = lines.get_segments()  # of particles 1 and 3; looks at oneself have no line
    np.testing.assert_allclose(segment, [[-0.3, -0.3], [0.3, 0.3]])
    assert at(particles, 0.05, 0.05).max() < 0.75 and at(particles, 0.05, -0.15).min() > 0.99
    (star,) = (c for c in cls.collections if isinstance(c, LineCollection))
    (ray,) = star.get_segments()
    np.testing.assert_allclose(ray, [[0, 0], [-0.3, 0.3]])
    spots = [c for c in particles.collections if isinstance(c, PathCollection)]
    assert len(spots) == 4  # a marker of its own for each type
    assert len({tuple(c.get_paths()[0].vertices.ravel()) for c in spots}) == 4
    np.testing.assert_allclose(at(particles, -0.3, -0.3), to_rgb(OKABE_ITO[0]), atol=0.02)
    softest = at(particles, -0.3, 0.3)  # the second subjet, and fainter
    expected = 0.625 * np.array(to_rgb(OKABE_ITO[1])) + 0.375
    np.testing.assert_allclose(softest, expected, atol=0.03)
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"charged hadron", "neutral hadron", "photon", "muon"} < legend
    assert "electron" not in legend and (image < 250).any(axis=2).mean() > 0.03


def test_unknown_types_are_dots_and_the_legend_says_so():
    drawn = drawn_jet()
    drawn.batch.types = torch.full((1, 4), -1)
    drawn.batch.subjets = None
    figure = figures.attention_graph(drawn)
    (spots,) = (c for c in figure.axes[0].collections if isinstance(c, PathCollection))
    assert len(spots.get_offsets()) == 4
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "particle (type unknown)" in legend and not any("subjet" in name for name in legend)


def test_figures_of_numbers_show_the_numbers(tagger, jets, ablated):
    untrained = streaming.initial("ParT", tagger, jets, **OPTIONS["ParT"])
    found = interpret.study(tagger, jets, untrained=untrained)
    shares = found.histogram[1] / found.histogram[1].sum()
    panel = figures.weight_distribution(found).axes[1]
    fill, line, dashed = panel.patches
    np.testing.assert_allclose(fill.get_data().values, shares)
    np.testing.assert_allclose(
        np.nan_to_num(dashed.get_data().values), found.untrained[1] / found.untrained[1].sum()
    )
    ratio = figures.score_ratio(found).axes[0]
    assert len(ratio.patches) == 2 and ratio.get_xscale() == "log"
    sparsity = figures.sparsity(found)
    texts = [[t.get_text() for t in axes.texts] for axes in sparsity.axes]
    assert texts[0] == [f"{100 * v:.1f}" for v in found.rows["non_binary"].ravel()]
    assert texts[2] == [f"{100 * v:.1f}" for v in found.rows["argmax_moved"].ravel()]
    ranks = figures.importance(found).axes[1].lines
    np.testing.assert_allclose(
        ranks[0].get_ydata(), 100 * found.importance["class_attention", "rank"][0]
    )
    bias = interpret.look(tagger, jets, 2).records[0].bias[0, 1].numpy()
    image = figures.interaction(interpret.look(tagger, jets, 2)).axes[1].images[0]
    np.testing.assert_allclose(image.get_array(), bias)
    _, results = ablated
    top, zeroed, heads, _ = figures.ablation(results).axes
    aucs = [metrics["auc"] for change, metrics in results if change.what == "top_k"]
    np.testing.assert_allclose(top.lines[1].get_ydata(), aucs)
    assert len(zeroed.patches) == 3 and len(heads.texts) == 4


def test_projections_and_layers_are_drawn(tmp_path):
    tagger = tagger_of(tmp_path, "LinformerParT")
    projections = counterparts.slot_projections(tagger.model)
    images = [a.images[0] for a in figures.slots(projections).axes if a.images]
    np.testing.assert_array_equal(images[1].get_array(), projections[1].abs())
    matrix = torch.eye(3)
    (panel,) = (a for a in figures.layer_matrices([matrix], "x").axes if a.images)
    np.testing.assert_array_equal(panel.images[0].get_array(), matrix)


def attention(network, path, out, *extra, data=SAMPLE):
    words = ["attention", network, "--checkpoint", str(path), "--data-config", CONFIG]
    words += ["--data", str(data), "--out", str(out), "--device", "cpu", *extra]
    for key, value in OPTIONS.get(network, {}).items():
        words += ["--network-option", key, repr(value)]
    return main(words)


FILES = {
    "ParT": {"sparsity", "weights", "score_ratio", "importance", "ablation"}
    | {f"jet{i}_{name}" for i in (0, 1) for name in ("maps", "graph", "interaction")},
    "LinformerParT": {"importance", "slots", "jet0_graph", "jet1_graph", "ablation"},
    "ReformerParT": {"sparsity", "weights", "importance"}
    | {"jet1_maps", "jet1_graph", "jet1_buckets"},
    "MambaParT": {"importance", "jet1_graph", "jet1_scan"},
    "PN": {"jet1_neighbours"},
}


@pytest.mark.parametrize("network", FILES)
def test_command_on_every_family(network, tmp_path, capsys):
    path = checkpoint(tmp_path, network)
    out = tmp_path / "deep" / "out"
    ablate = "ablation" in FILES[network]
    extra = ("--jets", "1,0", "--ablate") if ablate else ("--jets", "1,")
    assert attention(network, path, out, *extra) == 0
    written = {file.name for file in out.iterdir()}
    tables = {"measures.csv", "measures.json", "index.html"} | (
        {"ablation.csv"} if ablate else set()
    )
    assert written == tables | {f"{n}.{kind}" for n in FILES[network] for kind in ("png", "pdf")}
    content = json.loads((out / "measures.json").read_text())
    assert content["num_jets"] == 1 + ablate == sum(content["num_jets_per_class"])
    with open(out / "measures.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(content["measures"]) > 0
    page = (out / "index.html").read_text()
    assert len(re.findall('src="data:image/png;base64,', page)) == len(FILES[network])
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "index.html" in capsys.readouterr().out.replace("\n", "")


def test_jets_are_counted_through_all_files(tagger):
    whole = ak.from_parquet(SAMPLE)
    picked = interpret.read_jets(tagger, [SAMPLE, SAMPLE], [len(whole) + 5, 0, 5])
    assert picked["jet_pt"].to_list() == [whole["jet_pt"][i] for i in (5, 0, 5)]
    assert len(interpret.read_jets(tagger, [SAMPLE, SAMPLE], len(whole) + 1)) == len(whole) + 1


def test_default_jets_and_rows(tagger, jets):
    assert typical(tagger, jets, particles=10) == [2, 5]
    found = interpret.study(tagger, jets)
    rows = measure_rows(found)
    names = {row["measure"] for row in rows}
    assert {"non_binary", "particles_moved", "head_cosine", "score_exceeds_bias"} < names
    (overall,) = (r for r in rows if r["measure"] == "non_binary" and r["layer"] == "")
    assert overall["value"] == pytest.approx(found.rows["non_binary"].mean())
    assert {row["class"] for row in rows} == {"", "jet_isQ", "jet_isG"}


def test_jets_without_labels_and_types(tagger, jets, tmp_path, capsys):
    bare = jets[[name for name in jets.fields if name != "label" and "_is" not in name]]
    file = tmp_path / "bare.parquet"
    ak.to_parquet(bare, file)
    report = interpret.explain(tagger, "ParT", [file], **OPTIONS["ParT"])
    assert [note.split(":")[0] for note in report.notes] == [
        "The jets have no particle types",
        "The jets have no labels",
    ]
    assert report.study.classes == ["all"] and not report.study.has_types
    assert "to_leptons" not in report.study.rows
    by_rank = report.study.importance["class_attention", "rank"]
    assert by_rank.shape == (1, 30) and not np.isnan(by_rank).any()
    code = attention("ParT", checkpoint(tmp_path), tmp_path / "no", "--ablate", data=file)
    assert code == 2 and "no labels" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_without_fastjet(tagger, jets, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fastjet", None)
    found = interpret.study(tagger, jets)
    assert not found.has_subjets and "same_subjet" not in found.rows


def test_misuse(tmp_path, capsys, jets):
    part, pfn = checkpoint(tmp_path), checkpoint(tmp_path, "PFN")
    ak.to_parquet(jets[:0], tmp_path / "empty.parquet")
    (tmp_path / "file").write_text("")
    for network, weights, extra, data, words in (
        ("PFN", pfn, (), SAMPLE, "PFN has no attention"),
        ("PCNN", checkpoint(tmp_path, "PCNN"), (), SAMPLE, "PCNN has no attention"),
        ("ParT", pfn, (), SAMPLE, "does not fit ParT"),
        ("ParT", tmp_path / "none.pt", (), SAMPLE, "There is no checkpoint"),
        ("ParT", part, ("--jets", "3,99999"), SAMPLE, "There is no jet 99999"),
        ("ParT", part, ("--jets", "0,"), tmp_path / "empty.parquet", "There are no jets"),
        ("ParT", part, (), tmp_path / "none.parquet", "There is no file"),
    ):
        assert attention(network, weights, tmp_path / "out", *extra, data=data) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("jetzoo: ") and words in error and error.endswith(".")
        assert not (tmp_path / "out").exists()
    assert attention("ParT", part, tmp_path / "out", "--jets", "0,", "--ablate") == 2
    assert "of one class" in capsys.readouterr().err
    assert attention("PN", checkpoint(tmp_path, "PN"), tmp_path / "out", "--ablate") == 2
    assert "no attention that an ablation can change" in capsys.readouterr().err
    assert attention("ParT", part, tmp_path / "file", "--jets", "2,") == 2
    assert "cannot be made" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        attention("ParT", part, tmp_path / "out", "--jets", "x")
    assert stop.value.code == 2
    with pytest.raises(UserError, match="no attention"), interpret.record(torch.nn.Linear(1, 1)):
        pass


@pytest.mark.real
def test_published_jets(real_data, tagger):
    data = [real_data / "quarkgluon_1000.parquet"]
    report = interpret.explain(tagger, "ParT", data, jets=20, **OPTIONS["ParT"])
    assert report.study.num_jets == 20 and any("drawn as dots" in note for note in report.notes)
    assert 0 <= report.study.rows["non_binary"].mean() <= 1
