"""What `jetzoo.interpret` records of a network, and what it changes."""

import numpy as np
import pytest
import torch
from explained import CONFIG, OPTIONS, SAMPLE, TINY, tagger_of

from jetzoo import data_config, interpret
from jetzoo.attention.reference import weights as attention_weights
from jetzoo.interpret import counterparts, measures, studies
from jetzoo.interpret.recorder import Site, transformer
from jetzoo.interpret.sample import batch
from jetzoo.nn.pairs import PairBias
from jetzoo.repository import network_module
from jetzoo.tagger import Tagger


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
            bias = core.pair_embed(one.inputs[2], layout).dense  # (B, H, n, n)
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
        "jetzoo.nn.blocks.attention",
        lambda q, k, v, **o: called.append("padded") or v[:, :, :1] + 0 * q,
    )
    monkeypatch.setattr(
        "jetzoo.nn.blocks.packed_attention",
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


def test_errors_leave_the_model_as_it_was(tagger, jets, monkeypatch):
    one = batch(tagger, jets[:1])
    layers = [block.attn for block in transformer(tagger.model).blocks]

    def zero(site, q, k, bias, mask):
        return q.new_zeros(*q.shape[:3], k.shape[2])

    with interpret.replaced(tagger.model, zero):
        outer = layers[0].attend
        with pytest.raises((RuntimeError, ValueError)), interpret.record(tagger.model):
            tagger.model(*(x[:, :1] for x in one.inputs))  # features that do not fit
        assert layers[0].attend is outer
    assert not any("attend" in vars(layer) for layer in layers)

    core = transformer(tagger.model)
    monkeypatch.setattr(interpret.ablation, "evaluate", None)
    sample = interpret.read_jets(tagger, [SAMPLE], 8)
    with pytest.raises(TypeError):
        interpret.ablate(tagger, sample)
    monkeypatch.setattr(interpret.Ablation, "weights", None)
    with pytest.raises(TypeError):
        interpret.ablate(tagger, sample)
    for module in core.modules():
        assert not {"attend", "forward"} & set(vars(module))
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_explaining_leaves_the_random_state(tagger, jets):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    studies.initial("ParT", tagger, jets, **OPTIONS["ParT"], seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_reformer_weights_rebuild_its_output(tmp_path, jets):
    tagger = tagger_of(tmp_path, "ReformerParT")
    one = batch(tagger, jets[2:6])
    lsh = transformer(tagger.model).blocks[0].attn.lsh
    seen = []
    hook = lsh.register_forward_hook(lambda m, args, out: seen.append((args[1], out[0])))
    with torch.no_grad(), interpret.record(tagger.model) as records:
        tagger.model(*one.inputs)
    hook.remove()
    v, out = (x.unflatten(0, (-1, 2)) for x in seen[0])  # (B, H, n, d)
    assert [r.kind for r in records] == ["particle", "particle", "class"]
    r = records[0]
    assert r.weights.shape == (4, 2, 20, 20) and r.bias is None
    real = r.mask[:, None, :, None]
    torch.testing.assert_close(
        r.weights @ v, out.masked_fill(~real, 0), rtol=1e-5, atol=1e-6 * float(out.abs().max())
    )
    same = counterparts.shared_buckets(tagger.model, one)
    assert len(same) == 2 and same[0].shape == (4, 20, 20)
    diagonal = same[0].diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(diagonal, one.mask.float())
    torch.testing.assert_close(same[0], same[0].transpose(1, 2))
    assert ((same[0] > 0) & (same[0] < 1)).any()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_implied_attention_is_the_scan(tmp_path, jets, bidirectional):
    """The coefficients, applied to the inputs of the scan, give what the scan gives."""
    config = data_config.read(CONFIG)
    module = network_module("MambaParT")
    model, _ = module.get_model(config, **TINY, bidirectional=bidirectional)
    tagger = Tagger(model, config)
    one = batch(tagger, jets[2:6])  # 20, 1, 3 and 12 particles
    mixer = transformer(model).blocks[0].attn
    scans = (mixer.down, mixer.up) if bidirectional else (mixer,)
    seen = []
    for scan in scans:
        scan.register_forward_pre_hook(lambda scan, args: seen.append((scan, *args[:2])))
    with torch.no_grad():
        model(*one.inputs)
        for scan, x, layout in seen:
            u, _, dt, B, C = scan.scan_inputs(x, layout)
            padded = (layout.pad(t) for t in (u, dt))
            expected = module.padded_scan(*padded, -scan.A_log.exp(), layout.pad(B), layout.pad(C))
            found = scan.scan_coefficients(x, layout) @ layout.pad(u).transpose(1, 2)[..., None]
            real = layout.mask[:, None]
            torch.testing.assert_close(
                found[..., 0].masked_fill(~real, 0), expected.transpose(1, 2).masked_fill(~real, 0)
            )
    matrices = counterparts.implied_attention(model, one)
    assert [m.shape for m in matrices] == [(4, 20, 20)] * 2
    real = one.mask[:, :, None] & one.mask[:, None, :]
    assert not matrices[0][~real].any()
    below = torch.ones(20, 20).tril().bool()
    down = seen[0][0].scan_coefficients(*seen[0][1:]).abs().mean(1)
    if bidirectional:
        assert (matrices[0][real] > 0).all()
        torch.testing.assert_close(matrices[0][0, 10:, 5], down[0, 10:, 5])
    else:
        torch.testing.assert_close(matrices[0], down)
        assert (matrices[0][0][below] > 0).all() and not matrices[0][0][~below].any()


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

    def change_of(*key):
        return next(c for c, _ in results if (c.what, c.kind, c.layer, c.head, c.k) == key)

    hook = core.pair_embed.register_forward_hook(
        lambda m, args, out: PairBias(out.layout, dense=torch.zeros_like(out.dense))
    )
    without, scores = accuracy()
    hook.remove()
    key = ("pair_bias", "particle", None, None, None)
    assert by_change[key] == without and np.abs(scores - plain).max() > 1e-3
    with interpret.replaced(tagger.model, change_of(*key).weights):
        np.testing.assert_allclose(accuracy()[1], scores, atol=1e-5)

    # Head 2 of the second layer is columns 8 to 15 of what the output projection reads.
    projection = core.blocks[1].attn.out_proj
    kept = projection.weight.data.clone()
    projection.weight.data[:, 8:] = 0
    without, scores = accuracy()
    projection.weight.data = kept
    assert by_change["head", "particle", 1, 1, None] == without
    assert np.abs(scores - plain).max() > 1e-3
    with interpret.replaced(tagger.model, change_of("head", "particle", 1, 1, None).weights):
        np.testing.assert_allclose(accuracy()[1], scores, atol=1e-5)

    everything = interpret.Ablation("top_k", k=128)
    with interpret.replaced(tagger.model, everything.weights):
        np.testing.assert_allclose(accuracy()[1], plain, atol=1e-6)
    assert not any("forward" in vars(module) for module in core.stages())  # nothing is replayed


def test_zeroed_bias_of_one_layer(tagger):
    q = k = torch.randn(1, 2, 3, 8)
    bias, mask = torch.randn(1, 2, 3, 3), torch.ones(1, 3, dtype=torch.bool)
    change = interpret.Ablation("pair_bias", layer=1)
    first, second = (Site("particle", layer) for layer in (0, 1))
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
