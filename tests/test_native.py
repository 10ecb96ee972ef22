"""The border to C++: what crosses it is checked, and nothing that fails behind it ends Python."""

import copy
import ctypes
import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import jetzoo
from jetzoo import UserError, native
from jetzoo.attention.jagged import jagged
from jetzoo.attention.reference import reference
from jetzoo.native import calls, chains, edges, pairs, structures
from jetzoo.native.part import NativePart
from jetzoo.nn.transformer import ParticleTransformer

needs_compiler = pytest.mark.skipif(
    native.load("part") is None or native.load("training") is None, reason="no C++ compiler"
)

SMALL = {"embed_dims": (32, 32), "pair_embed_dims": (16, 16), "num_heads": 2, "num_layers": 2}
CHANNELS = 5


def make_jets(counts, length=None, seed=0):
    """Random jets with real particles first, and NaN in the padding."""
    torch.manual_seed(seed)
    length = length or max(*counts, 1)
    momenta = 10 * torch.randn(len(counts), 3, length)
    energy = (momenta.square().sum(1, keepdim=True) + 0.02).sqrt()
    mask = (torch.arange(length) < torch.tensor(counts)[:, None])[:, None]
    features = torch.randn(len(counts), CHANNELS, length).masked_fill(~mask, torch.nan)
    vectors = torch.cat((momenta, energy), 1).masked_fill(~mask, torch.nan)
    return vectors[:, :2], features, vectors, mask.float()


def make_model(**options):
    torch.manual_seed(1)
    model = ParticleTransformer(CHANNELS, 3, **{**SMALL, **options}).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    for name, parameter in model.named_parameters():
        if name.endswith("fc2.weight"):
            parameter.data *= 3
    return model


def make_engine(method=None):
    """An engine in the kernels: in float32, or in int8 by a method."""
    options = {}
    if method:
        options = {"precision": "int8", "method": method, "calibration": make_jets((12,) * 64)}
    engine = jetzoo.accelerate(make_model(), **options)
    return next(module for module in engine.modules() if isinstance(module, NativePart))


@pytest.fixture(scope="module")
def engine():
    return make_engine()


PRECISIONS = (None, "static", "dynamic", "weight-only")
COUNTS = (9, 17, 1, 0, 30, 5, 16)


# What is handed over.


def wrong_inputs():
    """What is wrong, which argument the message names, the error, and the four inputs."""
    points, features, vectors, mask = make_jets(COUNTS)
    cases = {
        "9 channels": ("features", features.repeat(1, 2, 1)[:, :9], vectors, mask),
        "4 channels": ("features", features[:, :4], vectors, mask),
        "3 momenta": ("lorentz_vectors", features, vectors[:, :3], mask),
        "5 momenta": ("lorentz_vectors", features, torch.cat((vectors, points[:, :1]), 1), mask),
        "mask (B, N)": ("mask", features, vectors, mask[:, 0]),
        "mask (B, 2, N)": ("mask", features, vectors, mask.expand(-1, 2, -1)),
        "short mask": ("mask", features, vectors, mask[..., :-1]),
        "long mask": ("mask", features, vectors, F.pad(mask, (0, 3))),
        "short features": ("features", features[..., :-1], vectors, mask),
        "short momenta": ("lorentz_vectors", features, vectors[..., :-1], mask),
        "fewer masks": ("mask", features, vectors, mask[:-1]),
        "fewer features": ("features", features[:-1], vectors, mask),
        "fewer momenta": ("lorentz_vectors", features, vectors[:-1], mask),
        "swapped": ("features", vectors, features, mask),
        "features of one jet": ("features", features[0], vectors, mask),
        "meta features": ("features", features.to("meta"), vectors, mask),
        "meta momenta": ("lorentz_vectors", features, vectors.to("meta"), mask),
        "meta mask": ("mask", features, vectors, mask.to("meta")),
        "complex": ("features", features.to(torch.complex64), vectors, mask),
        "an array": ("features", features.numpy(), vectors, mask),
        "sparse": ("lorentz_vectors", features, vectors.nan_to_num().to_sparse(), mask),
    }
    return {name: (argument, (points, *inputs)) for name, (argument, *inputs) in cases.items()}


@needs_compiler
@pytest.mark.parametrize("case", wrong_inputs())
def test_wrong_inputs_are_refused(engine, case):
    argument, inputs = wrong_inputs()[case]
    with pytest.raises((ValueError, TypeError), match="features|lorentz_vectors|mask") as error:
        engine(*inputs)
    assert argument in str(error.value)
    assert "\n" not in str(error.value)


@needs_compiler
def test_inputs_of_any_real_dtype_and_strides(engine):
    jets = make_jets(COUNTS)
    expected = engine(*jets)
    for dtype in (torch.bool, torch.int64, torch.float64, torch.uint8):
        assert torch.equal(engine(*jets[:3], jets[3].to(dtype)), expected)
    assert torch.equal(engine(*(x.double() for x in jets)), expected)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in jets]
    assert torch.equal(engine(*strided), expected)
    torch.testing.assert_close(expected, make_model()(*jets), atol=1e-4, rtol=0)


@needs_compiler
@pytest.mark.parametrize("batch_size, length", [(0, 7), (0, 0), (3, 0), (1, 1), (40, 1)])
def test_small_batches(engine, batch_size, length):
    jets = [x[:batch_size] for x in make_jets((length,) * 40, max(length, 1))]
    jets = [x[..., :length] for x in jets]
    assert engine(*jets).shape == (batch_size, 3)
    assert engine(*jets).isfinite().all()


@needs_compiler
def test_a_jet_alone_has_its_scores_of_a_batch():
    # Nine blocks of channels: eight at a time, and one.
    model = make_model(embed_dims=(72, 72), num_heads=9)
    engine, jets = jetzoo.accelerate(model), make_jets(COUNTS)
    assert any(isinstance(module, NativePart) for module in engine.modules())
    batch = engine(*jets)
    torch.testing.assert_close(batch, model(*jets), atol=1e-4, rtol=0)
    for i in range(len(COUNTS)):
        alone = engine(*(x[i : i + 1] for x in jets))
        torch.testing.assert_close(alone, batch[i : i + 1], atol=2e-6, rtol=0)


@needs_compiler
def test_an_engine_stays_what_it_is(engine):
    for change in ("train", "half", "double", "bfloat16"):
        with pytest.raises(UserError, match=r"accelerated"):
            getattr(make_engine(), change)()
    with pytest.raises(UserError, match="on meta"):
        make_engine().to("meta")
    assert not engine.float().to("cpu").eval().training


@needs_compiler
def test_copies_pack_their_own_weights(engine):
    jets = make_jets(COUNTS)
    expected = engine(*jets)
    for twin in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert twin._weights.struct.cls_token != engine._weights.struct.cls_token
        assert torch.equal(twin(*jets), expected)
    other = make_engine()
    other.load_state_dict({name: 2 * value for name, value in engine.state_dict().items()})
    assert not torch.equal(other(*jets), expected)
    other.load_state_dict(engine.state_dict())
    assert torch.equal(other(*jets), expected)


@needs_compiler
def test_weights_that_do_not_fit_are_refused(engine):
    folded = copy.deepcopy(engine.folded)
    folded.mixers[1].out_proj.weight = folded.mixers[1].out_proj.weight[:, :16]
    with pytest.raises(ValueError, match=r"\(32, 16\) instead of \(32, 32\)"):
        NativePart(folded)


@pytest.mark.parametrize(
    "x, error, match",
    [
        ([1.0, 2.0], TypeError, "gain should be a tensor, not list"),
        (torch.ones(2, dtype=torch.float64), TypeError, "gain should be of torch.float32"),
        (torch.ones(2, device="meta"), ValueError, "gain should be a dense tensor on a CPU"),
        (torch.ones(3), ValueError, r"gain should have the shape \(2,\), not \(3,\)"),
        (torch.ones(4)[::2], ValueError, "gain should be contiguous"),
    ],
)
def test_addresses(x, error, match):
    with pytest.raises(error, match=match):
        calls.address("gain", x, (2,))


# What is not finite.


@needs_compiler
@pytest.mark.parametrize("method", PRECISIONS)
def test_a_jet_that_is_not_finite_is_alone(method):
    engine, jets = make_engine(method), make_jets(COUNTS)
    expected = engine(*jets)
    assert expected.isfinite().all()
    for position, channel in ((1, 2), (2, 0), (2, 3)):
        for value in (torch.nan, torch.inf, -torch.inf):
            spoilt = [x.clone() for x in jets]
            spoilt[position][1, channel, 4] = value
            scores = engine(*spoilt)
            assert scores[1].isnan().all()
            others = torch.arange(len(COUNTS)) != 1
            assert torch.equal(scores[others], expected[others])


@needs_compiler
@pytest.mark.parametrize("method", PRECISIONS)
def test_overflow_stays_within_its_jet(method):
    engine, jets = make_engine(method), make_jets(COUNTS)
    expected = engine(*jets)
    for position in (1, 2):
        huge = [x.clone() for x in jets]
        huge[position][1, :, :3] = 3e38
        scores = engine(*huge)
        others = torch.arange(len(COUNTS)) != 1
        assert torch.equal(scores[others], expected[others])


@needs_compiler
def test_attention_passes_nan_on():
    torch.manual_seed(2)
    q, k, v = torch.randn(3, 2, 2, 40, 16)
    for tensor in (q, k, v):
        for value in (torch.nan, torch.inf):
            kept = tensor[0, 1, 3, 5].clone()
            tensor[0, 1, 3, 5] = value
            ours, theirs = jagged(q, k, v), reference(q, k, v)
            assert theirs.isnan().any() or theirs.isinf().any()
            torch.testing.assert_close(ours, theirs, equal_nan=True)
            tensor[0, 1, 3, 5] = kept


# Threads and processes.


@needs_compiler
def test_eight_threads_call_a_fresh_engine():
    batches = [make_jets(COUNTS, seed=seed) for seed in range(8)]
    expected = [make_engine()(*jets) for jets in batches]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for _ in range(3):
            engine, barrier = make_engine(), threading.Barrier(8)

            def call(jets, engine=engine, barrier=barrier):
                barrier.wait()
                return [engine(*jets) for _ in range(5)]

            with ThreadPoolExecutor(8) as pool:
                for scores, right in zip(pool.map(call, batches), expected, strict=True):
                    assert all(torch.equal(x, right) for x in scores)
    finally:
        torch.set_num_threads(threads)


def answer_in_child(engine, jets, heads, queue):
    queue.put((engine(*jets).tolist(), jagged(*heads)[0, 0].tolist()))


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_processes_answer(engine):
    """Large enough that PyTorch's own operations would want its threads, which are gone."""
    jets = make_jets((20,) * 2000)
    heads = torch.randn(3, 8, 2, 150, 16, generator=torch.Generator().manual_seed(3))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = engine(*jets), jagged(*heads)[0, 0]
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        children = [
            context.Process(target=answer_in_child, args=(engine, jets, heads, queue))
            for _ in range(2)
        ]
        for child in children:
            child.start()
        try:
            for _ in children:
                found = queue.get(timeout=60)
                for ours, right in zip(found, expected, strict=True):
                    torch.testing.assert_close(torch.tensor(ours), right, atol=1e-5, rtol=0)
        finally:
            for child in children:
                child.kill()
                child.join()
        assert torch.equal(engine(*jets), expected[0])  # and so does the parent
    finally:
        torch.set_num_threads(threads)


def run_python(code, tmp_path, **environment):
    """Run a program that imports this module, in a process of its own."""
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
def test_no_memory_is_an_exception(tmp_path):
    """Neither a buffer nor a thread that cannot be had ends the process."""
    found = run_python(
        """
        import resource, torch
        from test_native import *
        engine, small, large = make_engine(), make_jets(COUNTS), make_jets((6000,))
        expected, layout = engine(*small), torch.randn(3, 1, 8, 6000, 16)
        torch.set_num_threads(1)
        def limit(more):
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))
        limit(2**26)
        for function, arguments in ((engine, large), (jagged, layout)):
            try:
                function(*arguments)
            except MemoryError as error:
                print("MemoryError:", error)
        calls.torch.get_num_threads = lambda: 5  # stacks of 8 MiB for the threads do not fit
        limit(2**21)
        print("right:", torch.equal(engine(*small), expected))
        """,
        tmp_path,
    )
    assert found.stdout.splitlines() == [
        "MemoryError: there is not enough memory for the kernel part_forward",
        "MemoryError: there is not enough memory for the kernel attention_forward",
        "right: True",
    ], found.stderr


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat(tmp_path):
    """In a process of its own: a heap with holes of other tests keeps what is put into them."""
    found = run_python(
        """
        from test_native import *
        engine = make_engine()
        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        def some_calls(number):
            for i in range(number):
                counts = [1 + (7 * i + 13 * j) % 60 for j in range(1 + i % 5)]
                engine(*make_jets(counts))
        some_calls(100)
        before = resident()
        engine(*make_jets((3000,)))  # 72 MB for the bias
        some_calls(900)
        print(resident() - before)
        """,
        tmp_path,
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 2**25


# What the kernels stand for.


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


@needs_compiler
def test_replaced_and_hooked_modules_have_their_effect():
    torch.manual_seed(0)
    x, residual, scale = torch.randn(6, 32), torch.randn(6, 32), torch.randn(32)
    norm, linear = nn.LayerNorm(32), nn.Linear(32, 32)
    usual = chains.gelu_norm(x, linear, norm)
    torch.testing.assert_close(usual, norm(F.gelu(linear(x))), atol=1e-5, rtol=0)
    other = chains.gelu_norm(x, linear, norm, act=Twice())
    torch.testing.assert_close(other, norm(2 * linear(x)))
    torch.testing.assert_close(chains.gelu_norm(x, linear, norm, act=nn.GELU()), usual)
    hook = linear.register_forward_hook(lambda module, inputs, out: 0 * out)
    assert torch.equal(chains.gelu_norm(x, linear, norm), norm(torch.zeros(6, 32)))
    hook.remove()
    norm.register_forward_hook(lambda module, inputs, out: 0 * out)
    assert not chains.layer_norm(x, norm).any()
    assert torch.equal(chains.add_norm(residual, x, scale, norm), residual)


@needs_compiler
def test_pair_mlp_steps_aside():
    def layers():
        conv = nn.Conv1d(4, 16, 1)
        return nn.Sequential(nn.BatchNorm1d(4), conv, nn.BatchNorm1d(16), nn.GELU()).train()

    x = torch.randn(4, 50)
    usual = layers()
    assert pairs.takes_pairs(x, usual) and pairs.takes_pairs(x, usual, nn.Conv1d)
    torch.testing.assert_close(
        pairs.pair_mlp(x, copy.deepcopy(usual)), usual(x[None])[0], atol=1e-5, rtol=0
    )
    assert not pairs.takes_pairs(x[:3], usual)
    assert not pairs.takes_pairs(x, usual, nn.Linear)
    assert not pairs.takes_pairs(x, usual.eval())
    for place, module in ((3, nn.ReLU()), (3, nn.GELU("tanh")), (1, nn.Conv1d(4, 16, 1, groups=4))):
        other = layers()
        other[place] = module
        assert not pairs.takes_pairs(x, other)
    other = layers()
    other[1].register_forward_hook(lambda module, inputs, out: out)
    assert not pairs.takes_pairs(x, other)


@needs_compiler
@pytest.mark.parametrize("widths", [(4, 8), (4, 16, 40), (3, 32, 48, 17, 5), (4, 64, 64, 64, 8)])
@pytest.mark.parametrize("num_pairs", [7, 95, 2 * pairs.SEGMENT + 97])
def test_pair_mlp_of_many_pairs(widths, num_pairs):
    """Widths that need padding, parts of the memory that are not full; against float64."""
    torch.manual_seed(3)
    layers = [nn.BatchNorm1d(widths[0])]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.GELU()]
    layers = nn.Sequential(*layers).train()
    plain = copy.deepcopy(layers).double()
    x, grad = torch.randn(widths[0], num_pairs), torch.randn(widths[-1], num_pairs)
    found, expected = pairs.pair_mlp(x, layers), plain(x.double()[None])[0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    found.backward(grad)
    expected.backward(grad.double())
    for (name, ours), theirs in zip(layers.named_parameters(), plain.parameters(), strict=True):
        error = (ours.grad - theirs.grad).norm()
        assert error <= 1e-4 * theirs.grad.norm() + 2e-6 * grad.norm(), name


@needs_compiler
@pytest.mark.parametrize("shape", [(5, 1, 16), (1, 7, 32), (7, 16, 48), (301, 5, 64), (40, 16, 16)])
def test_norm_and_relu_of_edges(shape):
    """Against PyTorch in float64: outputs, gradients, running statistics."""
    torch.manual_seed(3)
    norm = nn.BatchNorm1d(shape[2]).train()
    nn.init.uniform_(norm.weight, -1, 1)
    nn.init.normal_(norm.bias)
    plain = copy.deepcopy(norm).double()
    x = (3 + torch.randn(shape)).requires_grad_()
    exact = x.detach().double().requires_grad_()
    grad = torch.randn(shape[0], shape[2])
    assert edges.takes(norm, x)
    found = edges.norm_relu(norm, x)
    expected = plain(exact.flatten(0, 1)).view(shape).relu().mean(1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    found.backward(grad)
    expected.backward(grad.double())
    for ours, theirs in ((x, exact), (norm.weight, plain.weight), (norm.bias, plain.bias)):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=2e-5)
    for (name, ours), theirs in zip(norm.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-6, msg=name)


@needs_compiler
def test_norm_and_relu_step_aside():
    x = torch.randn(4, 3, 16)
    assert edges.takes(nn.BatchNorm1d(16), x)
    assert not edges.takes(nn.BatchNorm1d(16).eval(), x)
    assert not edges.takes(nn.BatchNorm1d(16), x[:1, :1])
    assert not edges.takes(nn.BatchNorm1d(16), x.double())
    assert not edges.takes(nn.BatchNorm1d(8), x[..., :8])
    for options in ({"affine": False}, {"track_running_stats": False}, {"momentum": None}):
        assert not edges.takes(nn.BatchNorm1d(16, **options), x)
    hooked = nn.BatchNorm1d(16)
    hooked.register_forward_hook(lambda module, inputs, out: 0 * out)
    assert not edges.takes(hooked, x)


@needs_compiler
def test_chains_broadcast_as_pytorch_does():
    x, scale = torch.randn(6, 32), torch.randn(32)
    torch.testing.assert_close(chains.scaled_add(x[:1], x, scale), scale * x[:1] + x)
    torch.testing.assert_close(chains.scaled_add(x, x, scale[:1]), scale[:1] * x + x)
    norm = nn.LayerNorm(32)
    torch.testing.assert_close(chains.layer_norm(x[0], norm), norm(x[0]))
    torch.testing.assert_close(chains.add_norm(x[:1], x, scale, norm), x[:1] + norm(x * scale))
    with pytest.raises(RuntimeError):
        chains.scaled_add(torch.randn(6, 16), x, scale)
    assert not chains.scaled_add(torch.zeros(6, 32), x, scale, 1.0).any()  # all is dropped


@needs_compiler
def test_every_structure_is_compared():
    mirrored = {
        kind
        for kind in vars(structures).values()
        if isinstance(kind, type) and issubclass(kind, ctypes.Structure)
    } - {ctypes.Structure}
    assert mirrored == {kind for kinds in structures.STRUCTURES.values() for kind in kinds}
    for name, kinds in structures.STRUCTURES.items():
        library = native.load(name)
        for kind in kinds:
            assert getattr(library, f"sizeof_{kind.__name__}")() == ctypes.sizeof(kind)
