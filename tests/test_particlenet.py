"""ParticleNet: neighbours, edge convolution, published weights, fine-tuning."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from jets import random_jets
from torch import nn

from jetzoo.nn.finetune import init_opt
from jetzoo.repository import network_module

PN = network_module("PN")
SMALL = {"conv_params": ((3, (8, 8)), (3, (16,))), "fc_params": ((8, 0.1),)}


def data_config(num_features=7, num_classes=10):
    names = ("pf_points", "pf_features", "pf_vectors", "pf_mask")
    channels = (2, num_features, 4, 1)
    groups = {
        name: [f"{name}_{i}" for i in range(count)]
        for name, count in zip(names, channels, strict=True)
    }
    return Namespace(
        input_names=names,
        input_dicts=groups,
        preprocess_params={x: {"length": 128} for group in groups.values() for x in group},
        label_type="simple",
        labels={},
        label_value=[f"class{i}" for i in range(num_classes)],
    )


@pytest.fixture(scope="module")
def tops(real_data):
    jets = np.load(real_data / "jetclass_tops_100.npz")
    names = ("pf_points", "pf_features_kin", "pf_vectors", "pf_mask")
    return tuple(torch.from_numpy(jets[name]) for name in names), jets["labels"]


@pytest.fixture(scope="module")
def published(real_data):
    return torch.load(real_data / "ParticleNet_kin.pt", map_location="cpu")


@pytest.fixture(scope="module")
def stock():
    """ParticleNet of weaver-core, wrapped as in the published network file."""
    from weaver.nn.model.ParticleNet import ParticleNet

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.mod = ParticleNet(
                7,
                10,
                conv_params=[(16, (64,) * 3), (16, (128,) * 3), (16, (256,) * 3)],
                fc_params=[(256, 0.1)],
                use_fusion=False,
                trim=False,
            )

        def forward(self, points, features, lorentz_vectors, mask):
            return self.mod(points, features, mask.bool())

    return Wrapper().eval()


def test_nearest_excludes_itself_and_padding_and_says_what_is_missing():
    points = torch.tensor([[[0.0], [1.0], [1.5], [4.0], [0.1]]])
    mask = torch.tensor([[True, True, True, True, False]])
    index = PN.nearest(points, mask, 2)
    assert index[0, :4].tolist() == [[1, 2], [2, 0], [1, 0], [2, 1]]

    index = PN.nearest(points, mask, 4)
    assert index[0, 0, :3].tolist() == [1, 2, 3]
    assert (index[0, :4, 3] >= 5).all()  # four particles have three others each


def test_nearest_of_coinciding_particles_is_never_itself():
    index = PN.nearest(torch.zeros(1, 5, 2), torch.ones(1, 5, dtype=torch.bool), 4)
    for i, row in enumerate(index[0].tolist()):
        assert sorted(row) == [j for j in range(5) if j != i]


@pytest.mark.parametrize("length", [1, 2, 4, 9])
def test_edge_conv_against_loops(length):
    torch.manual_seed(0)
    k, layer = 3, PN.EdgeConv(3, 2, (5, 4)).eval()
    points, x = torch.rand(length, 2), torch.randn(length, 2)
    layout = PN.pack(torch.ones(1, 1, length, dtype=torch.bool))

    expected = []
    for i in range(length):
        others = sorted(
            (j for j in range(length) if j != i), key=lambda j: (points[i] - points[j]).norm()
        )
        neighbours = [x[j] for j in others[:k]]
        neighbours += [torch.zeros(2)] * (k - len(neighbours))
        edges = torch.stack([torch.cat((x[i], xj - x[i])) for xj in neighbours])
        for conv, bn in zip(layer.convs, layer.bns, strict=True):
            edges = bn(edges @ conv.weight[:, :, 0, 0].T).relu()
        shortcut = layer.sc_bn((layer.sc.weight[:, :, 0] @ x[i])[None])[0]
        expected.append((shortcut + edges.mean(0)).relu())
    torch.testing.assert_close(layer(points, x, layout), torch.stack(expected))


def test_training_statistics_do_not_see_the_padding():
    buffers = []
    for padded in (24, 60):
        torch.manual_seed(0)
        net = PN.ParticleNet(7, 3, **SMALL).train()
        jets = [x[..., :24] for x in random_jets(24, 2, 11)]
        net(*(nn.functional.pad(x, (0, padded - 24), value=0.0) for x in jets))
        buffers.append(dict(net.named_buffers()))
    for name, value in buffers[0].items():
        torch.testing.assert_close(value, buffers[1][name], msg=name)

    features, mask = jets[1], jets[3][:, 0].bool()
    real = features.transpose(1, 2)[mask]
    torch.testing.assert_close(buffers[0]["mod.bn_fts.running_mean"], 0.1 * real.mean(0))


@pytest.mark.real
def test_published_weights_give_the_logits_of_stock_weaver(tops, published, stock):
    jets, labels = tops
    stock.load_state_dict(published)
    net = PN.ParticleNet(7, 10).eval()
    net.load_state_dict(published, strict=True)
    with torch.no_grad():
        logits = net(*jets)
        # Short jets as well: their missing neighbours have features 0 in both.
        assert jets[3].sum((1, 2)).min() < 16
        torch.testing.assert_close(logits, stock(*jets), atol=1e-4, rtol=0)
    assert (logits.argmax(1).numpy() == labels).mean() > 0.8


def test_weights_load_in_stock_weaver(stock):
    torch.manual_seed(0)
    net = PN.ParticleNet(7, 10)
    net.train()(*random_jets(24, 20))  # batch norms with a history
    net.eval()
    stock.load_state_dict(net.state_dict(), strict=True)
    jets = random_jets(24, 20, 18, 5)
    with torch.no_grad():
        torch.testing.assert_close(stock(*jets), net(*jets), atol=1e-4, rtol=0)


@pytest.mark.real
def test_exported_published_network(tops, published, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    net, info = PN.get_model(data_config(), for_inference=True)
    net.load_state_dict(published)
    net.eval()
    jets = tuple(x[:8] for x in tops[0])
    file = tmp_path / "PN.onnx"
    torch.onnx.export(
        net,
        tuple(x[:2] for x in jets),
        str(file),
        input_names=info["input_names"],
        output_names=info["output_names"],
        dynamic_axes=info["dynamic_axes"],
        opset_version=17,
        dynamo=False,
    )
    feed = {n: x.numpy() for n, x in zip(info["input_names"], jets, strict=True)}
    (scores,) = onnxruntime.InferenceSession(file).run(None, feed)
    with torch.no_grad():
        np.testing.assert_allclose(scores, net(*jets).numpy(), atol=1e-4)


def fine_tune(num_classes=2, **options):
    return network_module("PN-FineTune").get_model(
        data_config(num_classes=num_classes), **(options or SMALL)
    )[0]


def test_fine_tune_takes_everything_but_the_last_layer():
    torch.manual_seed(0)
    pretrained = PN.ParticleNet(7, 10, **SMALL)
    net = fine_tune()
    head = net.fc_out.weight.clone()
    # As weaver's --load-model-weights does.
    missing, unexpected = net.load_state_dict(pretrained.state_dict(), strict=False)
    assert not missing and not unexpected
    assert torch.equal(net.fc_out.weight, head) and head.shape == (2, 8)
    assert torch.equal(net.mod.fc[0][0].weight, pretrained.mod.fc[0][0].weight)

    jets = random_jets(24, 6)
    x = {}
    pretrained.mod.fc[-1].register_forward_pre_hook(lambda _, args: x.update(x=args[0]))
    pretrained.eval()(*jets)
    torch.testing.assert_close(net.eval()(*jets), net.fc_out(x["x"]))


def test_fine_tune_loads_what_it_saved():
    torch.manual_seed(0)
    first, second = fine_tune(), fine_tune()
    assert not torch.equal(first.fc_out.weight, second.fc_out.weight)
    second.load_state_dict(first.state_dict())
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda state: state.pop("mod.bn_fts.weight"), "Missing key.*mod.bn_fts.weight"),
        (lambda state: state.update(other=torch.zeros(1)), "Unexpected key.*other"),
        (lambda state: state.update({"mod.bn_fts.bias": torch.zeros(13)}), "size mismatch"),
        (lambda state: state.update({"fc_out.bias": torch.zeros(2)}), "Missing key.*fc_out.weight"),
    ],
)
def test_fine_tune_refuses_other_weights(damage, complaint):
    state = PN.ParticleNet(7, 10, **SMALL).state_dict()
    damage(state)
    with pytest.raises(RuntimeError, match=f"(?s){complaint}"):
        fine_tune().load_state_dict(state, strict=False)


@pytest.mark.real
def test_fine_tune_takes_the_published_weights(published):
    net = fine_tune(for_inference=True)
    net.load_state_dict(published, strict=False)
    assert torch.equal(
        net.mod.edge_convs[2].convs[2].weight, published["mod.edge_convs.2.convs.2.weight"]
    )
    scores = net.eval()(*random_jets(24, 6))
    torch.testing.assert_close(scores.sum(1), torch.ones(2))


@pytest.mark.parametrize(("options", "factor"), [({}, 50), ({"lr_mult": ("fc_out.*", 10)}, 10)])
def test_new_layer_learns_faster(options, factor):
    args = Namespace(
        start_lr=1e-3, optimizer="adamw", load_epoch=None, lr_finder=None, lr_scheduler="none"
    )
    net = fine_tune()
    optimizer, _ = init_opt("fc_out.*")(args, net, **options)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        expected = 1e-3 * (factor if name.startswith("fc_out.") else 1)
        assert rates[parameter] == pytest.approx(expected), name
