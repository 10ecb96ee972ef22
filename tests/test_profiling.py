"""Time, FLOPs, bytes and memory by module, the data loader, and the report of `jetzoo profile`."""

import csv
import gzip
import html.parser
import io
import json
import shutil
import subprocess
import threading
import time

import handmade
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_zoo import COUNTS, write_jets, write_network
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from jetzoo import UserError, accelerate, profiling, tables, zoo
from jetzoo.cli import main
from jetzoo.inference import MicroBatches
from jetzoo.native.part import STAGES, NativePart
from jetzoo.profiling import configurations, figures, loading, report
from jetzoo.profiling.modules import (
    AUTOGRAD,
    LOSS,
    NETWORK,
    OPTIMIZER,
    STEP,
    Step,
    Tally,
    Timer,
    tally,
    trace,
)
from jetzoo.profiling.rows import REST, Row, merge, seconds_by

CONFIG = "QuarkGluon/qg_kin"
TINY = {"num_layers": 2, "num_heads": 2, "embed_dims": (16,), "num_cls_layers": 1}
TINY |= {"pair_embed_dims": (8,)}
SMALL = [word for key, value in TINY.items() for word in ("--network-option", key, str(value))]
LIMITS = profiling.Limits(flops=1e10, memory=1e9, cache=1e10, call=1e-6)


class Jets(nn.Module):
    """Calls its layers one after the other on the features, as a network of the zoo is called."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, points, features, vectors, mask):
        x = features
        for layer in self.layers:
            x = layer(x)
        return x


def step_of(*layers, features=None, labels=None):
    features = torch.randn(6, 5, 8) if features is None else features
    return Step(Jets(*layers), (None, features, None, None)[1:2] + (features,) * 3, labels)


def count(*layers, **options):
    step = step_of(*layers, **options)
    with Tally(step) as counted:
        step(counted)
    return counted


def part(**options):
    config = zoo.read_data_config(CONFIG)
    torch.manual_seed(0)
    return zoo.network_module("ParT").get_model(config, **(TINY | options))[0]


def inputs(counts, length=None, seed=0):
    """Inputs of a network with the features of kin."""
    rng = torch.Generator().manual_seed(seed)
    length = length or max(counts)
    mask = (torch.arange(length) < torch.tensor(counts)[:, None])[:, None].float()
    momentum = torch.randn(len(counts), 3, length, generator=rng)
    vectors = torch.cat((momentum, momentum.norm(dim=1, keepdim=True) + 0.1), 1)
    features = torch.randn(len(counts), 7, length, generator=rng)
    return [x * mask for x in (features[:, :2], features, vectors)] + [mask]


# FLOPs and bytes


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


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


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
    rows = {row.module: row for row in report.make_rows([timer], tally(step))}
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
    rows = {row.module: row for row in report.make_rows([timer], tally(step))}
    assert rows["layers.0"].flops == 2 * 6 * 5 * 8 * 3 and "layers.0.linear" not in rows


def test_native_kernels_tell_what_they_do():
    """As many FLOPs as the same network in PyTorch, and seconds for each stage."""
    native = accelerate(part())
    if not isinstance(native, NativePart):
        pytest.skip("the kernels are not compiled here")
    jets = inputs([12] * 40)
    step = Step(native, jets)
    step()
    twin = MicroBatches(native.folded)
    with torch.no_grad():
        expected = profiling.flops(lambda: twin(*jets))
    counted = tally(step)
    # The class token's own value is a sum of products there.
    assert sum(counted.flops.values()) == pytest.approx(expected, rel=0.01)
    with Timer(step) as timer:
        step(timer)
    rows = {row.module: row for row in report.make_rows([timer], counted)}
    for stage in STAGES:
        row = rows[f"{NETWORK}.{stage}"]
        assert row.seconds > 0 and row.flops > 0 and row.bytes_moved > 0 and row.fused
    kinds = seconds_by(rows.values(), "kind")
    assert {"embedding", "pair embedding", "attention", "feed-forward"} <= set(kinds)


# Time

NAP = 0.03


class Sleeps(nn.Module):
    def __init__(self, seconds=NAP, inner=None):
        super().__init__()
        self.seconds = seconds
        self.inner = inner

    def forward(self, x):
        time.sleep(self.seconds)
        return x if self.inner is None else self.inner(x)


def timed(step, check, tries=5):
    """Check the times of a step; again if another program took the processor in between."""
    for attempt in range(tries):
        with Timer(step) as timer:
            step(timer)
        try:
            check(timer)
        except AssertionError:
            if attempt == tries - 1:
                raise
        else:
            break


def test_time_of_modules():
    step = step_of(Sleeps(NAP, Sleeps(2 * NAP)), Sleeps(NAP))

    def check(timer):
        assert timer.forward["layers.0"] == pytest.approx(NAP, rel=0.3)
        assert timer.forward["layers.0.inner"] == pytest.approx(2 * NAP, rel=0.3)
        assert timer.total["layers.0"] == pytest.approx(3 * NAP, rel=0.3)
        assert timer.calls["layers.0"] == timer.calls[NETWORK] == 1
        assert sum(timer.forward.values()) == pytest.approx(timer.seconds, rel=0.05)
        rows = report.make_rows([timer], tally(step))
        assert rows[-1].module == STEP
        assert sum(row.seconds for row in rows) == pytest.approx(timer.seconds)

    timed(step, check)
    assert not step.network.layers[0]._forward_hooks


def test_threads_share_the_time_they_take_together():
    class InThreads(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Sleeps(NAP)
            self.other = Sleeps(2 * NAP)

        def forward(self, x):
            threads = [threading.Thread(target=f, args=(x,)) for f in (self.inner, self.other)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return x

    def check(timer):
        # Side by side for the longer of the two, 2 naps, of which each has its share.
        assert timer.forward["layers.0.inner"] == pytest.approx(2 / 3 * NAP, rel=0.3)
        assert timer.forward["layers.0.other"] == pytest.approx(4 / 3 * NAP, rel=0.3)
        assert timer.forward["layers.0"] < NAP / 2
        assert sum(timer.forward.values()) == pytest.approx(timer.seconds, rel=0.1)

    timed(step_of(InThreads()), check)


class SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        time.sleep(NAP)
        return 2 * grad


class Head(nn.Module):
    def __init__(self, checkpoints=False):
        super().__init__()
        self.linear = nn.Linear(8, 2)
        self.slow = Calls(SlowBackward.apply)
        self.checkpoints = checkpoints

    def forward(self, x):
        x = self.linear(x.mean(1))
        if not self.checkpoints:
            return self.slow(x)
        return torch.utils.checkpoint.checkpoint(self.slow, x, use_reentrant=False)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_backward_time_belongs_to_the_module_of_the_forward_pass(checkpoints):
    labels = torch.zeros(6, dtype=torch.long)
    step = step_of(nn.Linear(8, 8), Head(checkpoints), labels=labels)
    step()

    def check(timer):
        assert timer.backward["layers.1.slow"] == pytest.approx(NAP, rel=0.3)
        assert 0 < timer.backward["layers.1.linear"] < NAP / 2
        assert 0 < timer.backward["layers.0"] < NAP / 2
        assert timer.calls["layers.1.slow"] == 1
        for name in (LOSS, AUTOGRAD, OPTIMIZER):
            assert 0 < timer.backward[name] < NAP / 2
        total = sum(timer.forward.values()) + sum(timer.backward.values())
        assert total == pytest.approx(timer.seconds, rel=0.1)

    timed(step, check)


def test_backward_pass_in_a_thread_of_its_own():
    """That of a GPU is: its nodes must not count twice."""
    step = step_of(nn.Linear(8, 8))

    def node():
        timer.enter("layers.0")
        time.sleep(NAP)
        timer.leave("layers.0", None, ())

    with Timer(step) as timer, timer.part(AUTOGRAD):
        thread = threading.Thread(target=node)
        thread.start()
        thread.join()
    assert timer.backward["layers.0"] >= NAP
    total = sum(timer.backward.values())
    assert total <= timer.seconds and timer.backward[AUTOGRAD] < timer.seconds - NAP


def test_a_training_step_trains():
    torch.manual_seed(0)
    step = Step(part(), inputs([5, 9, 3, 8]), torch.tensor([0, 1, 0, 1]))
    before = step.network.mod.fc[0].weight.clone()
    tally(step)
    assert all(x.grad is not None for x in step.network.parameters())
    assert (step.network.mod.fc[0].weight != before).any()
    assert step.network.training and not step.network.mod.fc[0]._forward_hooks


# What is said about it


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


@pytest.mark.parametrize(
    "kind, names",
    [
        ("embedding", ["mod.embed.embed.1", "network.embed.layers.0", "embed"]),
        ("pair embedding", ["mod.pair_embed.embed.1", "network.pair_embed"]),
        ("attention", ["mod.blocks.3.attn.in_proj", "blocks.*.pre_attn_norm", "network.mixers.0"]),
        ("feed-forward", ["mod.blocks.0", "mod.blocks.10.fc1", "network.feed_forwards.2.fc2"]),
        ("class attention", ["mod.cls_blocks.0.attn", "network.cls_mixers.1.query"]),
        ("head", ["mod.norm", "mod.fc.0", "network.head.0"]),
        ("loss", [LOSS]),
        (REST, [NETWORK, STEP, "mod", "network", "mod.trimmer"]),
        ("edge_convs", ["mod.edge_convs.0.act"]),
    ],
)
def test_kind(kind, names):
    assert {Row(name).kind for name in names} == {kind}


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


# Configurations


def jets_of(count):
    return inputs([9] * count)


def test_configurations_compute_the_same():
    jets = inputs([5, 9, 3, 8])
    config = zoo.read_data_config(CONFIG)

    def rebuild(**options):
        torch.manual_seed(1)
        return zoo.network_module("ParT").get_model(config, **options)[0]

    model = rebuild().eval()
    with torch.no_grad():
        expected = model(*jets)
        for name in ("base", "packed", "padded", "fast", "reference", "sdpa"):
            network = configurations.configure(name, model, rebuild, jets_of).eval()
            torch.testing.assert_close(network(*jets), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ParT", "PN"])
def test_networks_of_weaver(name):
    """They compute the same, at first on padded jets, then on jets cut to the longest."""
    torch.manual_seed(1)
    model, _ = zoo.network_module(name).get_model(zoo.read_data_config(CONFIG))
    network = configurations.WeaverNetwork(model.eval()).eval()
    jets = inputs([25, 19, 30, 28])  # of fewer than 17 particles weaver's PN sees padding
    with torch.no_grad():
        expected = model(*jets)
        for _ in range(configurations.TRIMMER + 1):
            torch.testing.assert_close(network(*jets), expected, rtol=1e-4, atol=1e-4)


def test_refused_configurations(monkeypatch):
    check = configurations.check_names
    check(["base", "padded", "jagged"], True)
    for names, trains, message in (
        (["quick"], False, "'quick'.*base"),
        (["base", "fast"], True, "fast is for inference only"),
        (["base", "base"], False, "only once"),
    ):
        with pytest.raises(UserError, match=message):
            check(names, trains)
    with pytest.raises(UserError, match="padded stands for weaver-core's own ParT"):
        configurations.configure("padded", nn.Linear(2, 2), None, None)

    def refuses(model, precision, **options):
        raise ValueError(f"no {precision} here")

    monkeypatch.setattr("jetzoo.accelerate", refuses, raising=False)
    with pytest.raises(UserError, match="bf16 is not possible with this network: no bf16 here"):
        configurations.configure("bf16", part(), None, jets_of)


# Data loading


def test_loader_and_balance():
    slow = loading.Loading(
        {(kept, n): rate for kept in (False, True) for n, rate in ((0, 150), (1, 100), (2, 180))}
    )
    assert slow.balance(50, False) == slow.balance(100, True) == 1
    assert slow.balance(101, False) == 2 and slow.balance(950, False) == 10
    text = slow.sentence("the inference", 950, False)
    assert text.startswith("The loading is the bottleneck") and "10 workers" in text
    assert slow.sentence("the inference", 50, True).startswith("The inference is the bottleneck")


def test_rates_of_weavers_loader(tmp_path, monkeypatch):
    path = tmp_path / "jets.parquet"
    handmade.write_parquet(path, np.full(40, 5), np.random.default_rng(0))
    config = str(zoo.REPOSITORY / "data" / f"{CONFIG}.yaml")
    monkeypatch.setattr(loading, "WORKERS", (0, 1))
    found = loading.measure([path], config, 16, seconds=0.05)
    assert set(found.rates) == {(kept, n) for kept in (False, True) for n in (0, 1)}
    assert min(found.rates.values()) > 0
    assert sorted(tmp_path.iterdir()) == [path]


# The command


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "machine_limits", lambda device, dtype: LIMITS)
    path, checkpoint = map(str, write_network(tmp_path))
    data = str(write_jets(tmp_path))
    out = tmp_path / "a" / "profile"

    def run(*options, network=path, checkpoint=checkpoint, data=data):
        words = ["profile", network, "--data", data, "--device", "cpu", "--out", str(out)]
        words += ["--checkpoint", checkpoint] if checkpoint else []
        return main([*words, "--repeats", "1", *options])

    run.out = out
    return run


def read_csv(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


class Page(html.parser.HTMLParser):
    """Links, sources of images, and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.links, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        self.sources += [attributes["src"]] if "src" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []


def test_profile_writes_everything(command, monkeypatch, capsys):
    monkeypatch.setattr(
        loading,
        "measure",
        lambda files, config, size: loading.Loading(
            {(kept, n): 10.0 for kept in (False, True) for n in loading.WORKERS}
        ),
    )
    assert command("--train", "--loader", "--batch-size", "8") == 0
    keys = ["base_training_step", "base_inference"]
    drawn = ["comparison", "loading"]
    drawn += [f"{name}_{key}" for name in ("layers", "roofline", "memory") for key in keys]
    expected = {f"{name}.{kind}" for name in drawn for kind in ("png", "pdf")}
    expected |= {f"trace_{key}.json.gz" for key in keys}
    expected |= {"modules.csv", "comparison.csv", "loading.csv", "profile.json", "index.html"}
    assert {path.name for path in command.out.iterdir()} == expected

    rows = read_csv(command.out / "modules.csv")
    for mode in ("training step", "inference"):
        chosen = {row["module"]: row for row in rows if row["mode"] == mode}
        assert sum(float(row["share"]) for row in chosen.values()) == pytest.approx(1, abs=0.01)
        assert {"fc", NETWORK, STEP} <= set(chosen)
        flops = 2 * 8 * 7 * 2
        # A gradient for the weights; the features want none.
        assert int(chosen["fc"]["flops"]) == (2 * flops if mode == "training step" else flops)
        assert int(chosen[NETWORK]["flops_with_inner"]) == int(chosen["fc"]["flops"])
    kinds = read_csv(command.out / "comparison.csv")
    assert {row["mode"] for row in kinds} == {"training step", "inference"}
    summary = json.loads((command.out / "profile.json").read_text())
    assert summary["jets"] == 8 and [run["mode"] for run in summary["runs"]] == [
        "training step",
        "inference",
    ]
    page = Page((command.out / "index.html").read_text())
    assert len(page.sources) == len(drawn)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert all((command.out / link).is_file() for link in page.links) and len(page.links) == 2
    assert "script" not in page.tags and "link" not in page.tags
    printed = capsys.readouterr().out
    assert "bottleneck" in printed and "index.html" in printed.replace("\n", "")


def test_compare(command, capsys):
    compared = ["--compare", "base", "fast"]
    batch = ["--batch-size", "512"]
    assert command(*SMALL, *compared, *batch, network="ParT", checkpoint=None) == 0
    printed = capsys.readouterr().out
    assert f"have {len(COUNTS)} jets, fewer than a batch of 512" in printed
    assert "weights are random" in printed
    rows = read_csv(command.out / "comparison.csv")
    assert {row["configuration"] for row in rows} == {"base", "fast"}
    kinds = {row["kind"] for row in rows if row["configuration"] == "base"}
    assert {"embedding", "pair embedding", "attention", "feed-forward", "head"} <= kinds
    assert {row["times_first"] for row in rows if row["configuration"] == "base"} == {"1.0"}


def test_misuse_is_one_sentence_and_leaves_nothing(command, tmp_path, capsys):
    nothing = tmp_path / "nothing.parquet"
    handmade.write_parquet(nothing, np.zeros(0, int), np.random.default_rng(0))
    cut = tmp_path / "cut.parquet"
    tables.write(cut, tables.read(tmp_path / "jets.parquet", ["label", "jet_pt"]))
    before = sorted(tmp_path.rglob("*"))
    for run, message in (
        (lambda: command(network="PFN"), "does not fit PFN"),
        (lambda: command(checkpoint="absent.pt"), "no checkpoint absent.pt"),
        (lambda: command("--device", "abacus"), "abacus"),
        (lambda: command(data="absent.parquet"), "no file absent.parquet"),
        (lambda: command(data=str(nothing)), "no jets"),
        (lambda: command(data=str(cut)), "no branch"),
        (lambda: command("--compare", "base", "quick"), "no configuration 'quick'"),
        (lambda: command("--compare", "base", "padded"), "weaver-core's own ParT"),
        (lambda: command("--compare", "base", "sdpa"), "no option 'attention'"),
        (lambda: command("--compare", "base", "--fast"), "leave out --fast"),
        (lambda: command("--fast", "--train"), "inference only"),
        (lambda: command("--data-config", "absent"), "no data config 'absent'"),
        (lambda: command("--network-option", "depth", "3"), "no option 'depth'"),
        (lambda: command("--out", str(nothing)), "cannot be made"),
    ):
        assert run() == 2
        error = capsys.readouterr().err.split("\r")[-1]
        assert message in error and error.strip().startswith("jetzoo: "), error
        assert error.strip().count("\n") == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_backend_that_cannot_run_here(command, capsys):
    options = [*SMALL, "--network-option", "pair_bias", "False"]
    if torch.cuda.is_available():
        pytest.skip("it can run here")
    assert command("--compare", "flash_attn", *options, network="ParT", checkpoint=None) == 2
    assert "flash_attn cannot run on cpu" in capsys.readouterr().err
    assert not command.out.exists()


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def test_page_in_a_browser(command, tmp_path):
    """The page as a headless browser renders it: tables, and images of the size they are drawn."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("there is no browser here (chromium or google-chrome)")
    assert command("--batch-size", "8") == 0
    page = command.out / "index.html"
    # What the browser makes of the images is written into the page by a script of the test.
    probe = tmp_path / "probe.html"
    script = (
        "<script>onload = () => { document.title = [...document.images].map("
        "image => image.naturalWidth).join(); }</script></body>"
    )
    probe.write_text(page.read_text().replace("</body>", script))
    dom = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu"]
        + [f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=5000"]
        + ["--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    widths = dom.split("<title>")[1].split("</title>")[0].split(",")
    assert len(widths) == 4 and all(int(width) > 300 for width in widths)
    assert dom.count("<table>") == 2 and "Modules: base, inference" in dom
    shot = tmp_path / "page.png"
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,3000"]
        + [f"--user-data-dir={tmp_path / 'browser'}", f"--screenshot={shot}", page.as_uri()],
        capture_output=True,
        timeout=60,
    )
    assert shot.stat().st_size > 20_000


def test_figures_show_the_numbers():
    rows = [
        Row("embed", "Linear", 1, 0.01, flops=10**6, bytes_moved=10**5, operations=1),
        Row("blocks.0.attn", "Attention", 1, 0.03, operations=5),
    ]
    runs = [
        report.Run(name, "inference", False, 10, seconds, 0.1, 1.1, rows, trace(step_of()), LIMITS)
        for name, seconds in (("base", 0.04), ("fast", 0.02))
    ]
    colours = figures.kind_colours(runs)
    (axes,) = figures.comparison(runs, colours).axes
    widths = [bar.get_width() for bar in axes.patches]
    assert sum(widths) == pytest.approx(4 + 2)  # ms per jet
    assert {"250 jets/s", "500 jets/s, 2.00x"} <= {text.get_text() for text in axes.texts}
    (axes,) = figures.layers(runs[0]).axes
    assert {"25%", "75%"} <= {text.get_text() for text in axes.texts}
    (axes,) = figures.roofline(runs[0], colours).axes
    x, y = axes.lines[-1].get_data()
    assert (x[0], y[0]) == (pytest.approx(10), pytest.approx(0.1))  # FLOP/byte, GFLOP/s
