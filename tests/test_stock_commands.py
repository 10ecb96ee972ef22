"""Commands on network files as weaver's users write them, around its own networks."""

import json
import re

import awkward as ak
import numpy as np
import onnxruntime
import pytest
import stock_files
import torch
from jets import make_jets
from stock import COUNTS, NATIVE, Wrapper, close, exact, weaver_part

import jetzoo
from jetzoo import cli, comparison, interpret, repository
from jetzoo.engine.batching import WholeBatch
from jetzoo.engine.proof import in_float64
from jetzoo.engine.variants import VariantTransformer
from jetzoo.export import checks, export
from jetzoo.interpret.ablation import ablate
from jetzoo.interpret.sample import batch
from jetzoo.interpret.studies import with_counterpart
from jetzoo.jets import true_labels
from jetzoo.metrics.numbers import evaluate
from jetzoo.profiling import report

SOME = slice(None, None, 8)  # of both classes

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*legacy.*")


@pytest.fixture(scope="module")
def jets():
    return ak.from_parquet(repository.sample_jets())[SOME]


@pytest.fixture(scope="module")
def jets_file(jets, tmp_path_factory):
    path = tmp_path_factory.mktemp("jets") / "jets.parquet"
    ak.to_parquet(jets, path)
    return path


@pytest.fixture(params=stock_files.FILES, scope="module")
def files(request, tmp_path_factory):
    """Network file, checkpoint and data config of one network."""
    return stock_files.write(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def scores(files, jets):
    """Scores of some jets in float64."""
    tagger = jetzoo.load(*files, device="cpu")
    inputs = tagger.inputs(jets[:60]).values()
    with torch.no_grad():
        logits = in_float64(tagger.model)(*(torch.from_numpy(x).double() for x in inputs))
    return logits.softmax(1).numpy()


def test_fast(files, jets, scores, caplog):
    fast = jetzoo.load(*files, device="cpu", fast=True)
    assert caplog.text == ""
    assert abs(fast.predict(jets[:60]) - scores).max() < 1e-4


def test_int8_to_a_file_and_back(files, jets, jets_file, scores, tmp_path):
    network, checkpoint, config = files
    tagger = jetzoo.load(*files, device="cpu")
    output = tmp_path / "int8.pt"
    found = comparison.compare(tagger, [jets_file], [jets_file], output, network)
    jets = jets[:60]
    tagger.model = found.both.networks[1]
    before = tagger.predict(jets)
    found.finish()
    again = jetzoo.load(network, output, config, device="cpu")
    np.testing.assert_allclose(again.predict(jets), before, atol=1e-6)
    assert 1e-6 < abs(before - scores).max() < 0.2
    assert json.loads(output.with_suffix(".json").read_text())["network"] == str(network)
    assert output.stat().st_size < checkpoint.stat().st_size
    with pytest.raises(jetzoo.UserError, match="give its network file"):
        jetzoo.load(output)


def test_export(files, jets, scores, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "LENGTHS", (1, 45))
    path = tmp_path / "net.onnx"
    export(*files, path)
    tagger = jetzoo.load(*files, device="cpu")
    session = onnxruntime.InferenceSession(str(path))
    inputs = tagger.inputs(jets[:60])
    zeros = {
        name: x * inputs[name.split("_")[0] + "_mask"] for name, x in inputs.items()
    }  # on which weaver's own export gives NaN
    for given in (inputs, zeros):
        np.testing.assert_allclose(session.run(None, given)[0], scores, atol=1e-4)


@pytest.mark.parametrize(
    "network, options",
    [
        ("ParticleTransformer", {"version": 3.6, "remove_self_pair": True}),
        ("ParticleTransformer", {"pair_input_type": "xyzt:sph"}),
        ("ParticleTransformerTagger", {"pair_input_type": "ee"}),
    ],
)
def test_export_without_counterpart(jets, tmp_path, monkeypatch, network, options):
    monkeypatch.setattr(checks, "LENGTHS", (1, 45))
    files = stock_files.write(tmp_path, network, **options)
    export(*files, tmp_path / "net.onnx", **options)
    inputs = jetzoo.load(*files, device="cpu", **options).inputs(jets[:60])
    expected = jetzoo.load(*files, device="cpu", fast=True, **options).predict(jets[:60])
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    np.testing.assert_allclose(session.run(None, inputs)[0], expected, atol=1e-4)


def test_attention(files, jets, jets_file):
    network = files[0]
    found = interpret.explain(jetzoo.load(*files, device="cpu"), network, [jets_file], jets=20)
    assert found.about["num_jets"] == 20
    assert found.panels
    tagger = jetzoo.load(*files, device="cpu")
    twin = jetzoo.acceleration.counterpart(tagger.model)
    part = batch(tagger, jets[:3])
    with interpret.record(twin) as records, torch.no_grad():
        twin(*part.inputs)
    for record in records:
        assert (record.mask == part.mask).all()
        rows = record.weights.sum(-1)
        torch.testing.assert_close(rows[rows > 0], torch.ones_like(rows[rows > 0]))


def test_explore_probe_and_circuit(files, jets, jets_file):
    """They look into the zoo's own networks in place of weaver's; a graph has no stream."""
    network, tagger = files[0], jetzoo.load(*files, device="cpu")
    page, _ = interpret.explore(tagger, network, [jets_file], jets=2)
    assert len(re.findall(r'id="jet-\d+"', page)) == 2
    twin = with_counterpart(tagger)
    if interpret.recorder.transformer(twin.model) is None:
        for find in (interpret.probe, interpret.circuit):
            with pytest.raises(jetzoo.UserError, match="has no"):
                find(tagger, network, [jets_file])
        return
    found = interpret.probe(tagger, network, [jets_file], jets=100)
    last = next(row for row in reversed(found.class_rows) if row["source"] == "trained")
    some, labels = jets[:100], true_labels(tagger, jets[:100])
    expected = evaluate(labels, twin.predict(some), tagger.classes)["auc"]
    assert last["lens_auc"] == pytest.approx(expected, abs=1e-6)
    found = interpret.circuit(tagger, network, [jets_file], jets=20).found
    assert found.auc == pytest.approx(
        evaluate(labels[:20], twin.predict(jets[:20]), tagger.classes)["auc"]
    )


def test_profile(tmp_path, jets_file):
    files = stock_files.write(tmp_path, "ParticleTransformerTagger")
    found = report.profile(*files, [jets_file], names=("base", "fast"), batch_size=8, repeats=1)
    assert all(run.seconds > 0 for run in found.runs)


def test_commands(tmp_path, jets_file):
    network, checkpoint, config = stock_files.write(tmp_path, "ParticleTransformerTagger")
    given = [network, "--checkpoint", checkpoint, "--data-config", config]
    data = ["--calibration", jets_file, "--data", jets_file]
    quantized = tmp_path / "int8.pt"
    output = tmp_path / "scores.parquet"
    for command in (
        ("quantize", *given, *data, "--output", quantized),
        ("predict", network, "--checkpoint", quantized, *given[3:], jets_file, "--output", output),
    ):
        assert cli.main([str(x) for x in command]) == 0
    assert len(ak.from_parquet(output)) == len(ak.from_parquet(jets_file))


OPTIONS = {
    "version 2": {"version": 2},
    "version 3.6": {"version": 3.6},
    "global token": {"include_global_token": True, "num_cls_layers": 0},
    "some layers with bias": {"block_ids_with_attn_mask": [0]},
    "pair_input_type": {"pair_input_type": "ee"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_attention_of_options_that_only_weaver_has(options, tmp_path, jets_file):
    files = stock_files.write(tmp_path, "ParticleTransformer", **options)
    tagger = jetzoo.load(*files, device="cpu", **options)
    found = interpret.explain(tagger, files[0], [jets_file], jets=20, **options)
    assert found.panels
    model = jetzoo.acceleration.counterpart(tagger.model)
    inputs = make_jets(COUNTS)
    with torch.no_grad(), interpret.record(model) as records:
        close(model(*inputs), exact(tagger.model, *inputs))
    real = inputs[-1][:, 0].bool()
    assert {record.kind for record in records} == {"particle", "class"}
    has_token = tagger.model.mod.include_global_token  # version 3.6 has one by itself
    for record in records:
        assert (record.mask == real).all()
        rows = record.weights.sum(-1)
        rows = rows[rows > 0]
        assert len(rows)
        if has_token and record.kind == "particle":
            assert (rows < 1).all()
        else:
            torch.testing.assert_close(rows, torch.ones_like(rows))
        biased = record.kind == "particle" and options.get("block_ids_with_attn_mask") != [0]
        if biased or (record.kind, record.layer) == ("particle", 0):
            assert record.bias.abs().max() > 0
        else:
            assert record.bias is None


@pytest.mark.parametrize("options", [{"version": 3}, {"num_cls_layers": 0}], ids=str)
@pytest.mark.parametrize("find", ["probe", "circuit"])
def test_states_of_options_that_only_weaver_has(find, options, tmp_path, jets_file):
    files = stock_files.write(tmp_path, "ParticleTransformer", **options)
    tagger = jetzoo.load(*files, device="cpu", **options)
    with pytest.raises(jetzoo.UserError, match="but not the states between its layers"):
        getattr(interpret, find)(tagger, files[0], [jets_file], jets=20, **options)


def test_attention_of_both_forms_is_one():
    part = weaver_part(**NATIVE)
    zoo = jetzoo.acceleration.counterpart(Wrapper(part))
    variant = WholeBatch(VariantTransformer(part, torch.float32))
    inputs = make_jets(COUNTS)
    found = []
    for model in (zoo, variant):
        with torch.no_grad(), interpret.record(model) as records:
            model(*inputs)
        found.append(records)
    for one, other in zip(*found, strict=True):
        for name in ("kind", "layer"):
            assert getattr(one, name) == getattr(other, name)
        for name in ("mask", "weights", "scores", "bias"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-4, rtol=0)


def test_ablations_of_options_that_only_weaver_has(tmp_path, jets):
    options = {"version": 3.6}
    files = stock_files.write(tmp_path, "ParticleTransformer", **options)
    tagger = jetzoo.load(*files, device="cpu", **options)
    tagger.model = jetzoo.acceleration.counterpart(tagger.model)
    results = ablate(tagger, jets[:40])
    auc = {str(change): metrics["auc"] for change, metrics in results}
    assert len(set(auc.values())) > 5


def test_what_cannot_be_looked_into_is_named():
    model = Wrapper(weaver_part(**NATIVE, for_segmentation=True))
    with pytest.raises(jetzoo.UserError, match=r"cannot be looked into: .*for_segmentation"):
        jetzoo.acceleration.counterpart(model)


@pytest.mark.parametrize(
    "wrap", [torch.nn.DataParallel, torch.compile], ids=["parallel", "compile"]
)
@pytest.mark.parametrize("inside", [False, True])
def test_networks_in_other_wrappers(wrap, inside, caplog):
    model = weaver_part(**NATIVE)
    jets = make_jets(COUNTS)
    expected = exact(model, *jets[1:])
    fast = jetzoo.accelerate(Wrapper(wrap(model)) if inside else wrap(Wrapper(model)))
    close(fast(*jets), expected)
    assert caplog.text == ""
    assert hasattr(fast.network.mod, "core")
