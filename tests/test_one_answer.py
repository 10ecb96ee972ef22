"""One answer: the network, the folded network, the kernels and int8 on odd, but possible inputs."""

import copy
import math
import multiprocessing
import os
import pickle
import resource
import threading

import awkward as ak
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jets import make_jets
from zoo import NETWORKS, SIZES, build, stir

import jetzoo
from jetzoo import UserError
from jetzoo.engine.folding import fold, freeze
from jetzoo.nn.kinematics import pair_features, particle_kinematics

COUNTS = (17, 1, 0, 40, 6)


def answers(model, inputs):
    """Logits of each float32 form, by name."""
    folded = fold(freeze(model))
    with torch.no_grad():
        found = {"network": model(*inputs), "engine": jetzoo.accelerate(model)(*inputs)}
        if folded is not None:
            found["folded"] = folded(*inputs)
    return found


def changed(name, inputs):
    """Inputs with unusual four-vectors; everything stays finite."""
    inputs = [x.clone() for x in inputs]
    p = inputs[2]
    if name == "energy below the momentum":
        p[:, 3] *= 0.5
    elif name == "energy a little below the momentum":
        p[:, 3] = p[:, :3].norm(dim=1) * (1 - 2**-22)
    elif name == "negative energy":
        p[:, 3] *= -1
    elif name == "one particle along the beam, backwards":
        p[0, :, 3] = torch.tensor([0.0, 0.0, -5.0, 5.0])
    elif name == "all particles along the beam":
        p[:, :2] = 0
        p[:, 2] = -p[:, 3]
    elif name == "zero":
        p.zero_()
    elif name == "duplicates":
        p.copy_(p[:, :, :1].expand_as(p))
    elif name == "two decimals":
        p.copy_(torch.round(p, decimals=2))
    elif name == "integers":
        p.copy_(p.round())
    else:
        p *= float(name) / 20
    return inputs


ODD = (
    "energy below the momentum",
    "energy a little below the momentum",
    "negative energy",
    "one particle along the beam, backwards",
    "all particles along the beam",
    "zero",
    "duplicates",
    "two decimals",
    "integers",
    "1e-6",
    "1e6",
    "1e30",
)


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    return stir(build(request.param, **SIZES.get(request.param, {})))


@pytest.fixture(scope="module")
def part():
    return stir(build("ParT", **SIZES["ParT"]))


@pytest.mark.parametrize("name", ODD)
def test_odd_momenta_give_the_same_finite_logits(part, name):
    inputs = changed(name, make_jets(COUNTS))
    found = answers(part, inputs)
    exact = copy.deepcopy(part).double()(*(x.double() for x in inputs))
    for form, logits in found.items():
        assert logits.isfinite().all(), form
        torch.testing.assert_close(logits.double(), exact, rtol=1e-4, atol=1e-4, msg=form)


@pytest.mark.parametrize("name", ODD)
def test_odd_momenta_train(name):
    model = build("ParT", **SIZES["ParT"]).train()
    inputs = changed(name, make_jets(COUNTS))
    model(*inputs).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("group", ["features", "lorentz_vectors"])
def test_a_value_that_is_not_finite_is_nan_for_its_jet_alone(model, group, value):
    inputs = make_jets(COUNTS)
    clean = answers(model, inputs)
    used = 1 if group == "features" else 2
    inputs[used][3, 1, 5] = value
    inputs[used][4, 1, 7] = value  # of the padding
    others = [0, 1, 2, 4]
    found = answers(model, inputs)
    looked_at = found["network"][3].isnan().all()
    assert looked_at or group == "lorentz_vectors"  # which PFN and PN do not look at
    for form, logits in found.items():
        assert torch.equal(logits[others], clean[form][others]), form
        assert logits[3].isnan().all() == looked_at, form


@pytest.mark.parametrize("method", ["static", "dynamic", "weight-only"])
def test_a_value_that_is_not_finite_in_int8(model, method):
    jets = make_jets((30,) * 16, seed=5)
    quantized = jetzoo.accelerate(model, "int8", calibration=tuple(jets), method=method)
    inputs = make_jets(COUNTS)
    clean = quantized(*inputs)
    inputs[1][3, 1, 5] = math.inf
    inputs[1][0, 0, 0] = math.nan
    found = quantized(*inputs)
    assert found[[0, 3]].isnan().all()
    assert torch.equal(found[[1, 2, 4]], clean[[1, 2, 4]])


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64]
)
def test_any_dtype_of_the_inputs(model, dtype):
    inputs = [x.to(dtype) for x in make_jets(COUNTS)]
    expected = answers(model, [x.float() for x in inputs])["network"]
    for form, logits in answers(model, inputs).items():
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4, msg=form)


@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (3, 0), (1, 1), (2, 1)])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_batches_without_jets_or_particles(model, shape, precision):
    batch_size, length = shape
    jets = make_jets((30,) * 16, seed=5)
    calibration = {"calibration": tuple(jets)} if precision == "int8" else {}
    fast = jetzoo.accelerate(model, precision, **calibration)
    inputs = [x[:batch_size, :, :length] for x in jets]
    with torch.no_grad():
        expected = model(*inputs)
    assert fast(*inputs).shape == expected.shape == (batch_size, 2)
    if precision == "fp32":
        torch.testing.assert_close(fast(*inputs), expected, rtol=1e-4, atol=1e-4)
    empty = [x * 0 for x in jets]
    assert fast(*empty).isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, f, v, m: (p, f[:, :5], v, m), "features"),
        (lambda p, f, v, m: (p, torch.cat((f, f[:, :2]), 1), v, m), "features"),
        (lambda p, f, v, m: (p, f, v[:, :3], m), "lorentz_vectors"),
        (lambda p, f, v, m: (p, f, v[:1], m), "lorentz_vectors"),
        (lambda p, f, v, m: (p, f, v, m[..., :3]), "features|points|lorentz_vectors"),
        (lambda p, f, v, m: (p, f, v, m[:, 0]), "mask"),
        (lambda p, f, v, m: (p, v, f, m), "features|lorentz_vectors"),
        (lambda p, f, v, m: (p, f.to("meta"), v, m), "meta"),
    ],
)
def test_inputs_that_do_not_belong_together_are_refused(part, change, message):
    fast = jetzoo.accelerate(part)
    with pytest.raises(ValueError, match=message):
        fast(*change(*make_jets(COUNTS)))


@pytest.mark.parametrize("name", ["ParT", "PFN"])
def test_an_engine_stays_what_it_is(name):
    fast = jetzoo.accelerate(build(name, **SIZES.get(name, {})))
    for change in (fast.train, fast.half, fast.double, lambda: fast.to("meta")):
        with pytest.raises(UserError, match=r"accelerate"):
            change()
    assert fast.eval() is fast
    inputs = make_jets(COUNTS)
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(copied(*inputs), fast(*inputs))


def test_threads_that_call_a_fresh_engine_at_once_agree(part):
    inputs = make_jets((30,) * 12)
    with torch.no_grad():
        expected = part(*inputs)
    for _ in range(3):
        fast, found = jetzoo.accelerate(part), []
        start = threading.Barrier(8)

        def call(fast=fast, found=found, start=start):
            start.wait()
            found.append(fast(*inputs))

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        for logits in found:
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def answer_in_child(fast, inputs, queue):
    queue.put(fast(*inputs).tolist())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["PN", "LinformerParT", "PFN"])
def test_forked_processes_answer(name, precision):
    """Those that run in PyTorch, whose threads do not exist in the child; ParT: test_native."""
    calibration = {"calibration": tuple(make_jets((30,) * 16))} if precision == "int8" else {}
    fast = jetzoo.accelerate(build(name), precision, **calibration)
    inputs = make_jets((128, 100))
    threads, context = torch.get_num_threads(), multiprocessing.get_context("fork")
    try:
        torch.set_num_threads(2)
        expected, queue = fast(*inputs), context.Queue()
        child = context.Process(target=answer_in_child, args=(fast, inputs, queue))
        child.start()
        try:
            torch.testing.assert_close(torch.tensor(queue.get(timeout=60)), expected)
        finally:
            child.kill()
            child.join()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [n for n in NETWORKS if "FineTune" not in n])
def test_int8_at_every_multiplicity(name):
    model = stir(build(name, **SIZES.get(name, {})))
    calibration = make_jets((5, 12, 20, 30, 40, 50, 60, 70) * 16, seed=5)
    quantized = jetzoo.accelerate(model, "int8", calibration=tuple(calibration))
    exact = jetzoo.accelerate(model)
    spread = exact(*calibration).std()
    for count in (1, 3, 10, 40, 90, 128):
        jets = make_jets((count,) * 24, seed=count)
        error = (quantized(*jets) - exact(*jets)).abs().mean() / spread
        assert error < 0.2, (count, error)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["ParT", "LinformerParT", "PN"])
def test_memory_is_flat(name, precision):
    fast = jetzoo.accelerate(build(name, **SIZES[name]), precision)
    inputs = make_jets((60,) * 32)
    rng = np.random.default_rng(0)

    def calls(count):
        for _ in range(count):
            batch_size, length = rng.integers(1, 32), rng.integers(1, 60)
            fast(*(x[:batch_size, :, :length] for x in inputs))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = calls(60)
    assert calls(120) - before < 60  # MiB


def test_pair_features_at_their_limits():
    # Two particles in the same direction: ln dR is the limit; ln kT, too; the mass is exact.
    p = torch.tensor([[3.0, 4.0, 0.0, 5.0], [6.0, 8.0, 0.0, 10.0], [0.0, 0.0, -2.0, 2.0]])
    first = particle_kinematics(p)
    ln_kt, ln_z, ln_delta, ln_m2 = pair_features([x[:1] for x in first], [x[1:2] for x in first])
    assert ln_delta.item() == ln_kt.item() == ln_m2.item() == pytest.approx(math.log(1e-8))
    assert ln_z.item() == pytest.approx(math.log(1 / 3))
    # Along the beam, backwards: (E + pz) / (E - pz) is 0, and its limit 1e-20.
    assert first[2][2].item() == pytest.approx(0.5 * math.log(1e-20))


angles = st.floats(-3.0, 3.0, width=32)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    pt=st.lists(st.floats(0.125, 512, width=32), min_size=2, max_size=2),
    eta=st.lists(angles, min_size=2, max_size=2),
    phi=st.lists(angles, min_size=2, max_size=2),
    turn=st.floats(-3.0, 3.0),
    boost=st.floats(-1.0, 1.0),
    scale=st.floats(0.25, 4.0),
)
def test_pair_features_are_invariant(pt, eta, phi, turn, boost, scale):
    def features(turn, boost, scale):
        pt_, eta_, phi_ = (np.array(x, dtype=np.float64) for x in (pt, eta, phi))
        pt_, phi_ = pt_ * scale, phi_ + turn
        mass = 0.5 * scale
        transverse = np.hypot(pt_, mass)
        rapidity = np.arcsinh(pt_ / transverse * np.sinh(eta_)) + boost
        p = pt_ * np.cos(phi_), pt_ * np.sin(phi_), transverse * np.sinh(rapidity)
        p = torch.from_numpy(np.stack((*p, transverse * np.cosh(rapidity)), 1))
        x = particle_kinematics(p)
        return pair_features([v[:1] for v in x], [v[1:] for v in x], torch.float64)[:, 0].numpy()

    ln_kt, ln_z, ln_delta, ln_m2 = features(0, 0, 1)
    if ln_delta < math.log(1e-4):
        return
    scaled = features(turn, boost, scale)
    expected = [ln_kt + math.log(scale), ln_z, ln_delta, ln_m2 + 2 * math.log(scale)]
    np.testing.assert_allclose(scaled, expected, atol=1e-5)


@pytest.mark.real
@pytest.mark.parametrize(
    ("card", "file"),
    [
        ("ParT-FineTune_TopLandscape_kin", "toplandscape_1000.parquet"),
        ("ParT_QuarkGluon_kin", "quarkgluon_1000.parquet"),
    ],
)
def test_published_jets_within_1e_4_of_float64(real_data, card, file):
    tagger = jetzoo.load(card, device="cpu")
    jets = ak.from_parquet(real_data / file)[:150]  # float64 takes a tenth of a second for each
    inputs = [torch.from_numpy(x) for x in tagger.inputs(jets).values()]
    model = tagger.model
    found = answers(model, inputs)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(*(x.double() for x in inputs))
    for form, logits in found.items():
        assert (logits - exact).abs().max() < 1e-4, form
