"""Loading and prediction, against weaver's own loader and training loop."""

import awkward as ak
import handmade
import numpy as np
import pytest
import torch
import zoo
from jets import COUNTS, make_jets
from torch.utils.data import DataLoader
from weaver.utils.dataset import SimpleIterDataset

import jetzoo
from jetzoo import UserError, data_config, repository, tables
from jetzoo.metrics import predictions
from jetzoo.prediction.files import predict_files
from jetzoo.repository import network_module
from jetzoo.tagger import Tagger


def weaver_batch(path, config):
    """All jets of a file as weaver's test loader gives them."""
    dataset = SimpleIterDataset(
        {"test": [str(path)]},
        str(repository.home() / "data" / config),
        for_training=False,
        fetch_by_files=True,
        fetch_step=1,
    )
    (batch,) = DataLoader(dataset, batch_size=1000)
    return batch


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_inputs_are_weavers(network, jets_file):
    expected, labels, _ = weaver_batch(jets_file, "QuarkGluon/qg_kin.yaml")
    tagger = jetzoo.load(*network, "QuarkGluon/qg_kin", device="cpu")
    jets = ak.from_parquet(jets_file)
    before = jets.to_list()
    inputs = tagger.inputs(jets)
    assert list(inputs) == ["pf_points", "pf_features", "pf_vectors", "pf_mask"]
    for name, value in inputs.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, expected[name].numpy())
    np.testing.assert_array_equal(inputs["pf_mask"].sum(axis=(1, 2)), np.minimum(COUNTS, 128))
    assert jets.to_list() == before and "part_pt" not in jets.fields

    # However the jets lie in memory: a slice, a selection, an array built record by record.
    keep = [3, 1, 5]
    for some, index in (
        (jets[2:7], slice(2, 7)),
        (jets[keep], keep),
        (ak.Array([jets[i].to_list() for i in keep]), keep),
        (jets[[1, 8]], [1, 8]),
    ):
        for name, value in tagger.inputs(some).items():
            # Python floats are float64: the logarithms may round differently.
            np.testing.assert_allclose(value, inputs[name][index], rtol=1e-5, atol=1e-5)


def test_root_inputs_are_weavers(network, tmp_path):
    path = tmp_path / "jets.root"
    rng = np.random.default_rng(8)
    handmade.write_root(path, (5, 200, 1, 30), rng, [0, 3, 9, 3])
    expected, _, _ = weaver_batch(path, "JetClass/JetClass_full.yaml")
    config = data_config.read("JetClass/JetClass_full")
    tagger = Tagger(network_module(network[0]).get_model(config)[0], config)
    jets = tables.read(path, tagger.branches, config.treename)
    for name, value in tagger.inputs(jets).items():
        np.testing.assert_array_equal(value, expected[name].numpy())

    output = tmp_path / "pred.root"
    assert predict_files(tagger, [path], output)
    labels, scores, classes = predictions.read_predictions([output])
    assert classes == handmade.JETCLASS_LABELS
    np.testing.assert_array_equal(labels, [0, 3, 9, 3])
    np.testing.assert_array_equal(scores, tagger.predict(jets))


def test_scores_are_those_of_the_model(network, jets_file):
    tagger = jetzoo.load(*network, "QuarkGluon/qg_kin", device="cpu")
    jets = ak.from_parquet(jets_file)
    scores = tagger.predict(jets)
    with torch.no_grad():
        inputs = [torch.from_numpy(x) for x in tagger.inputs(jets).values()]
        expected = tagger.model(*inputs).softmax(dim=1).numpy()
    assert scores.dtype == np.float32 and tagger.classes == ["jet_isQ", "jet_isG"]
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_allclose(tagger(jets, batch_size=3), scores, rtol=1e-6)
    assert tagger.predict(jets[:0]).shape == (0, 2)
    sharper = jetzoo.load(*network, "QuarkGluon/qg_kin", device="cpu", scale=3.0)
    assert sharper.model.scale == 3.0
    assert not np.allclose(sharper.predict(jets), scores)


def test_part_loads_by_name(jets_file, tmp_path):
    config = data_config.read("QuarkGluon/qg_kin")
    torch.manual_seed(1)
    options = {"num_layers": 1, "num_cls_layers": 1, "embed_dims": [16], "pair_embed_dims": [8]}
    model, _ = network_module("ParT").get_model(config, **options)
    torch.save(model.state_dict(), tmp_path / "part.pt")
    tagger = jetzoo.load("ParT", tmp_path / "part.pt", "QuarkGluon/qg_kin", "cpu", **options)
    jets = ak.from_parquet(jets_file)
    scores = tagger.predict(jets)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(tagger.predict(jets[[6]]), scores[[6]], atol=1e-6)


def test_network_modules_are_fresh(network):
    first, second = network_module(network[0]), network_module(str(network[0]))
    assert first is not second and first.Mean is not second.Mean


def test_misuse(network, jets_file, tmp_path):
    path, checkpoint = network
    garbage = tmp_path / "garbage.pt"
    garbage.write_bytes(b"not weights")
    number = tmp_path / "number.pt"
    torch.save(3, number)
    other = tmp_path / "other.pt"
    torch.save({"fc.weight": torch.zeros(2, 7), "gate": torch.zeros(1)}, other)
    not_yaml = tmp_path / "list.yaml"
    not_yaml.write_text("- 1\n")
    kin = "QuarkGluon/qg_kin"
    for arguments, options, message in (
        (("PatT", checkpoint, kin), {}, r"no network 'PatT'.*ParT"),
        ((path, checkpoint, "qg_kin"), {}, r"no data config 'qg_kin'.*QuarkGluon/qg_kin"),
        ((path, checkpoint, not_yaml), {}, "not a data config"),
        ((path, tmp_path / "absent.pt", kin), {}, "no checkpoint"),
        ((path, garbage, kin), {}, "cannot|can be read"),
        ((path, number, kin), {}, "not a state dict"),
        ((path, other, kin), {}, "it lacks fc.bias; it has in addition gate"),
        ((path, checkpoint, "QuarkGluon/qg_kinpid"), {}, "size mismatch for fc.weight"),
        ((path, checkpoint, kin), {"scael": 2}, "did you mean 'scale'"),
        ((path, checkpoint, kin), {"for_inference": True}, "for_inference"),
        ((path, checkpoint, kin, "abacus"), {}, "device 'abacus'"),
    ):
        with pytest.raises(UserError, match=message):
            jetzoo.load(*arguments, **options)

    tagger = jetzoo.load(path, checkpoint, kin, device="cpu")
    jets = ak.from_parquet(jets_file)
    with pytest.raises(UserError, match="no branch jet_pt, part_px"):
        tagger.predict(jets[[name for name in jets.fields if name not in ("part_px", "jet_pt")]])


@pytest.mark.real
def test_published_jets(network, real_data):
    path = real_data / "quarkgluon_1000.parquet"
    expected, _, _ = weaver_batch(path, "QuarkGluon/qg_kin.yaml")
    tagger = jetzoo.load(*network, "QuarkGluon/qg_kin", device="cpu")
    for name, value in tagger.inputs(ak.from_parquet(path)).items():
        np.testing.assert_array_equal(value, expected[name].numpy())


@pytest.mark.parametrize("name", ["ParT", "ParT-FineTune", "LinformerParT"])
@pytest.mark.parametrize("fast", [False, True])
def test_embedding(name, fast, tmp_path, jets_file):
    model = zoo.build(name, **zoo.SIZES[name])
    checkpoint = tmp_path / "net.pt"
    torch.save(model.state_dict(), checkpoint)
    given = (name, checkpoint, "QuarkGluon/qg_kin", "cpu")
    tagger = jetzoo.load(*given, embedding=True, fast=fast, **zoo.SIZES[name])
    jets = ak.from_parquet(jets_file)
    expected = jetzoo.load(*given, **zoo.SIZES[name]).predict(jets)
    np.testing.assert_allclose(tagger.predict(jets), expected, atol=1e-6)
    embedding = tagger.embed(jets)
    assert embedding.shape == (len(jets), 32)
    # The last layer makes the scores of it.
    layer = model.get_submodule("fc" if name == "ParT-FineTune" else "mod.fc")
    with torch.no_grad():
        scores = layer(torch.from_numpy(embedding)).softmax(1)
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    for file in ("scores.parquet", "scores.root"):
        predict_files(tagger, [jets_file], tmp_path / file)
        table = tables.read(tmp_path / file, ["embedding"])
        np.testing.assert_array_equal(ak.to_numpy(table["embedding"]), embedding)


def test_no_embedding(network, jets_file):
    tagger = jetzoo.load(*network, "QuarkGluon/qg_kin", device="cpu")
    with pytest.raises(UserError, match="option embedding"):
        tagger.embed(ak.from_parquet(jets_file))
    with pytest.raises(UserError, match="has no option 'embedding'"):
        jetzoo.load("PFN", network[1], "QuarkGluon/qg_kin", embedding=True)
    with pytest.raises(UserError, match="one output"):
        network_module("ParT").get_loss(None, embedding=True)


def test_embedding_in_int8():
    config = data_config.read("QuarkGluon/qg_kin")
    model, _ = network_module("ParT").get_model(config, embedding=True, **zoo.SMALL)
    inputs = make_jets((5, 30, 0, 17))
    expected, token = model.eval()(*inputs)
    logits, embedding = jetzoo.accelerate(model, "int8", method="dynamic")(*inputs)
    assert embedding.shape == token.shape == (4, 32) and logits.shape == expected.shape
    # The last layer stays in float32.
    torch.testing.assert_close(model.mod.fc(embedding), logits)
    assert 0 < (embedding - token).abs().max() < 0.3
