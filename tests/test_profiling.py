"""FLOPs, bytes and memory of every module, its kind, and what bounds its time."""

import gzip
import json

import pytest
import torch
import torch.nn.functional as F
from profiled import CONFIG, LIMITS, Calls, count, inputs, part, rows_of, step_of
from stock import Wrapper, weaver_part
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from weaver.nn.model.ParticleNet import ParticleNet
from weaver.nn.model.ParticleTransformer import ParticleTransformerTagger
from zoo import SMALL

from jetzoo import accelerate, data_config, profiling
from jetzoo.native.part import STAGES
from jetzoo.profiling.kinds import FUSED, REST, Kinds
from jetzoo.profiling.rows import Row, merge, seconds_by
from jetzoo.profiling.steps import LOSS, NETWORK, STEP, Step
from jetzoo.profiling.tally import tally
from jetzoo.profiling.tracing import trace
from jetzoo.profiling.watch import Timer
from jetzoo.repository import network_module


@pytest.mark.parametrize(
    "layer, shape, flops",
    [
        (nn.Linear(8, 3), (6, 5, 8), 2 * 6 * 5 * 8 * 3),
        (nn.Conv1d(5, 4, 3, padding=1), (6, 5, 8), 2 * 6 * 4 * 8 * 5 * 3),
        (nn.LayerNorm(8), (6, 5, 8), 0),
        (nn.GELU(), (6, 5, 8), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_flops_of_a_layer(layer, shape, flops):
    assert count(layer, features=torch.randn(shape)).flops["layers.0"] == flops
    assert profiling.flops(lambda: layer(torch.randn(shape))) == flops


def attention_flops(batch, heads, length, dim):
    return 2 * 2 * batch * heads * length**2 * dim


def test_flops_of_fused_attention():
    q = torch.randn(3, 2, 10, 4, requires_grad=True)
    forward = attention_flops(3, 2, 10, 4)
    assert profiling.flops(lambda: F.scaled_dot_product_attention(q, q, q)) == forward
    both = profiling.flops(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())
    assert both == 3.5 * forward  # scores again, and the gradients of two products


@pytest.mark.parametrize("backend", ["reference", "sdpa", "jagged"])
@pytest.mark.parametrize("trains", [False, True])
def test_flops_of_part(backend, trains):
    """As PyTorch's own counter has them, and as the formula of the layers says."""
    length, batch = 12, 3
    jets = inputs([length] * batch)
    model = part(attention=backend, attn_dropout=0.0)
    labels = torch.arange(batch) % 2 if trains else None
    step = Step(model.requires_grad_(trains), jets, labels)
    counted = tally(step)
    attention = counted.flops["mod.blocks.0.attn"]
    if backend != "jagged":
        with FlopCounterMode(display=False, custom_mapping=profiling.timers.FLOP_FORMULAS) as own:
            step()
        assert sum(counted.flops.values()) == own.get_total_flops() > 0
    once = attention_flops(batch, 2, length, 8)
    again = 3.5 if backend == "jagged" else 3  # it computes the scores again
    assert attention == (again * once if trains else once)
    projection = 2 * batch * length * 16 * 48
    assert counted.flops["mod.blocks.0.attn.in_proj"] == projection * (3 if trains else 1)


def test_jagged_attention_counts_real_particles():
    counts = [3, 7, 12]
    step = Step(part(attention="jagged").requires_grad_(False), inputs(counts))
    attention = sum(attention_flops(1, 2, n, 8) for n in counts)
    assert tally(step).flops["mod.blocks.0.attn"] == attention


def test_bytes_of_a_layer():
    counted = count(nn.Linear(8, 3))
    numbers = 6 * 5 * 8 + 8 * 3 + 3 + 6 * 5 * 3  # inputs, weights, bias, outputs
    assert counted.bytes_moved["layers.0"] == 4 * numbers
    assert counted.operations["layers.0"] == 1


@pytest.mark.parametrize(
    "function, numbers",
    [
        (lambda x: x.transpose(1, 2)[:, 1:].unsqueeze(0), 0),  # views
        (lambda x: x.new_empty(1000), 0),
        (lambda x: x + x[:1, :1, :1].expand_as(x), 240 + 1 + 240),
        (lambda x: x.mul_(2), 240 + 240),
        (lambda x: x.zero_(), 240),
        (lambda x: x[:1].copy_(x[1:2]), 40 + 40),
        (lambda x: x.index_select(0, torch.tensor([1])), 40 + 40 + 2),  # and an int64
        (lambda x: x.double(), 240 + 2 * 240),
    ],
    ids=["views", "empty", "expand", "in place", "fill", "copy", "gather", "float64"],
)
def test_bytes_of_an_operation(function, numbers):
    assert count(Calls(function)).bytes_moved["layers.0"] == 4 * numbers


def test_work_outside_of_pytorch_is_told():
    class Kernel(nn.Module):
        def forward(self, x):
            return x

        def flops(self, x):
            return {"first": 10 * len(x), "second": 5}

        def bytes_moved(self, x):
            return x.nbytes

        def stage_seconds(self):
            return {"first": 3.0, "second": 1.0}

    step = step_of(Kernel())
    with Timer(step) as timer:
        step(timer)
    rows = rows_of(step, timer)
    assert rows["layers.0.first"].flops == 60 and rows["layers.0.second"].flops == 5
    assert rows["layers.0"].bytes_moved == 960
    first, second = rows["layers.0.first"].seconds, rows["layers.0.second"].seconds
    assert first == pytest.approx(3 * second) and second > 0


def test_work_that_is_counted_elsewhere_belongs_to_the_caller():
    """A kernel may do in one call what is counted in modules that the timed call does not make."""

    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, x):
            if torch.utils._python_dispatch.is_in_torch_dispatch_mode():
                return self.linear(x)
            return F.linear(x, self.linear.weight, self.linear.bias)

    step = step_of(Fused())
    with Timer(step) as timer:
        step(timer)
    rows = rows_of(step, timer)
    assert rows["layers.0"].flops == 2 * 6 * 5 * 8 * 3 and "layers.0.linear" not in rows


def test_native_kernels_tell_what_they_do():
    """As many FLOPs as the same network in PyTorch, and seconds for each stage."""
    fast = accelerate(part())
    if fast.kernels is None:
        pytest.skip("the kernels are not compiled here")
    jets = inputs([12] * 40)
    step = Step(fast, jets)
    step()
    with torch.no_grad():
        expected = profiling.flops(lambda: fast.network(*jets))
    # The class token's own value is a sum of products there.
    assert sum(tally(step).flops.values()) == pytest.approx(expected, rel=0.01)
    with Timer(step) as timer:
        step(timer)
    rows = rows_of(step, timer)
    for stage in STAGES:
        row = rows[f"kernels.{stage}"]
        assert row.seconds > 0 and row.flops > 0 and row.bytes_moved > 0 and row.fused
    assert {stage: rows[f"kernels.{stage}"].kind for stage in STAGES} == {
        "embed": "embedding",
        "pair_embed": "pair embedding",
        "blocks.attn": "attention",
        "blocks.fc": "feed-forward",
        "cls_blocks": "class attention",
    }
    assert rows["kernels.blocks.fc"].short == "blocks.fc"


@pytest.mark.parametrize(
    "numbers, verdict, share",
    [
        ({"flops": 5e9, "bytes_moved": 1e8}, "compute-bound", 0.5),
        ({"flops": 1e9, "bytes_moved": 8e8}, "memory-bound", 0.8),
        ({"flops": 1e8, "bytes_moved": 5e9}, "memory-bound", 0.5),  # from the cache
        ({"operations": 300_000, "bytes_moved": 1e6}, "launch-bound", 0.3),
        ({}, "", 0),
        ({"operations": 3}, "", 0),  # a kernel that does not tell
    ],
)
def test_bound(numbers, verdict, share):
    found = Row("a", forward_seconds=0.75, backward_seconds=0.25, **numbers).bound(LIMITS)
    assert found == (verdict, pytest.approx(share))


EXPECTED = {
    "ParT": {
        "mod.embed.embed.1": ("embedding", "matrix products"),
        "mod.pair_embed.embed.0": ("pair embedding", "norms"),
        "mod.blocks.1.attn": ("attention", "attention"),
        "mod.blocks.0.attn.in_proj": ("attention", "matrix products"),
        "mod.blocks.1.pre_attn_norm": ("attention", "norms"),
        "mod.blocks.0": ("feed-forward", "other"),
        "mod.blocks.0.act": ("feed-forward", "activations"),
        "mod.blocks.1.fc1": ("feed-forward", "matrix products"),
        "mod.cls_blocks.0.attn": ("class attention", "attention"),
        "mod.cls_blocks.0.fc1": ("class attention", "matrix products"),
        "mod.norm": ("head", "norms"),
        "mod.fc.0": ("head", "matrix products"),
        "mod": (REST, "other"),
        NETWORK: (REST, "other"),
        STEP: (REST, "other"),
        LOSS: ("loss", "other"),
    },
    "ParT-FineTune": {
        "mod.blocks.0.fc2": ("feed-forward", "matrix products"),
        "fc": ("head", "matrix products"),
    },
    "PN": {
        "mod.edge_convs.0": ("edge convolutions", "attention"),
        "mod.edge_convs.1.convs.0": ("edge convolutions", "matrix products"),
        "mod.bn_fts": ("embedding", "norms"),
        "mod.fc.0.0": ("head", "matrix products"),
    },
    "MambaParT": {
        "mod.blocks.0.attn": ("attention", "attention"),
        "mod.blocks.0.attn.conv1d": ("attention", "matrix products"),
    },
    "PFN": {"phi.0": ("particle layers", "matrix products"), "f.1": ("head", "activations")},
    "PCNN": {"stages.0.1.conv1": ("residual units", "matrix products"), "fc": ("head", "other")},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_kinds_of_networks(name):
    """Networks say their kinds, whatever their class is called."""
    network, _ = network_module(name).get_model(data_config.read(CONFIG))
    type(network).__name__ = "Anything"
    kinds = Kinds(network)
    assert {x: (kinds.kind(x), kinds.operation(x)) for x in EXPECTED[name]} == EXPECTED[name]


def test_kinds_of_the_engine():
    kinds = Kinds(accelerate(part(pair_bias=True)).network)
    expected = {
        "network.embed.layers.0": ("embedding", "matrix products"),
        "network.pair_embed": ("pair embedding", "other"),
        "network.mixers.0": ("attention", "attention"),
        "network.feed_forwards.1.fc2": ("feed-forward", "matrix products"),
        "network.cls_mixers.0": ("class attention", "attention"),
        "network.cls_mixers.0.query": ("class attention", "matrix products"),
        "network.head.0": ("head", "norms"),
    }
    assert {x: (kinds.kind(x), kinds.operation(x)) for x in expected} == expected


def test_kinds_of_weavers_own_networks():
    """Alone, in a wrapper, and in the engine's PyTorch form."""
    tagger = ParticleTransformerTagger(7, 5, 2, **SMALL)
    expected = {
        "pf_embed.embed.0": ("embedding", "norms"),
        "sv_embed.embed.1": ("embedding", "matrix products"),
        "part.pair_embed.embed.1": ("pair embedding", "matrix products"),
        "part.blocks.1.attn": ("attention", "attention"),
        "part.blocks.1.pre_attn_norm": ("attention", "norms"),
        "part.blocks.1.fc1": ("feed-forward", "matrix products"),
        "part.cls_blocks.0.attn.out_proj": ("class attention", "matrix products"),
        "part.fc.0": ("head", "matrix products"),
    }
    for network, prefix in ((tagger, ""), (Wrapper(tagger), "mod.")):
        kinds = Kinds(network)
        for name, kind in expected.items():
            assert (kinds.kind(prefix + name), kinds.operation(prefix + name)) == kind
    kinds = Kinds(ParticleNet(7, 2))
    assert kinds.kind("edge_convs.1.convs.0") == "edge convolutions"
    assert kinds.operation("edge_convs.1") == "attention"
    assert kinds.kind("fc.1") == "head"
    kinds = Kinds(accelerate(Wrapper(weaver_part(**SMALL, version=3))).network)
    expected = {
        "mod.core.network.embed.layers.0": "embedding",
        "mod.core.network.blocks.0.attn": "attention",
        "mod.core.network.blocks.0.query": "attention",
        "mod.core.network.blocks.0.fc2": "feed-forward",
        "mod.core.network.cls_blocks.0.query": "class attention",
        "mod.core.network.head.1": "head",
    }
    assert {name: kinds.kind(name) for name in expected} == expected


def test_kinds_of_a_network_that_says_none():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Sequential())
    kinds = Kinds(network)
    found = [kinds.kind(name) for name in ("0", "1", "2", "3", NETWORK)]
    assert found == ["matrix products", "norms", "activations", REST, REST]
    assert kinds.kind("3", fused=True) == FUSED


def test_repeated_layers_are_added_up():
    rows = [Row(f"blocks.{i}.fc1", "Linear", 1, 0.1 * i, flops=10) for i in range(3)]
    rows.append(Row("embed.0", "Linear", 1, 1.0, flops=1))
    first, second = merge(rows)
    assert (first.module, first.seconds) == ("embed.*", 1.0)
    assert second.module == "blocks.*.fc1" and second.flops == 30 and second.calls == 3
    assert second.seconds == pytest.approx(0.3)
    assert seconds_by(rows, "layer")["blocks.2"] == pytest.approx(0.2)


def test_trace_has_memory_and_modules():
    step = step_of(Calls(lambda x: (x + 1).sum()), features=torch.zeros(2**10, 2**10))
    traced = trace(step)
    assert 2**22 <= traced.peak < 2**22 + 2**16
    events = json.loads(gzip.decompress(traced.chrome))["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"module layers.0", f"module {NETWORK}", "aten::add"} <= names
    (start, stop), (inner, until) = (
        next(span[:2] for span in traced.spans if span[2] == name) for name in (STEP, "layers.0")
    )
    assert start <= inner < until <= stop
    high = [when for when, held in traced.memory if held >= 2**22]
    assert high and all(inner <= when <= until for when in high)
