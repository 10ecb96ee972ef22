"""PFN and P-CNN against plain formulas, one jet at a time."""

import pytest
import torch
from jets import random_jets
from torch import nn
from torch.nn import functional as F

from jetzoo.repository import network_module

PFN = network_module("PFN")
PCNN = network_module("PCNN")
SMALL_PCNN = {"first_dim": 6, "stages": ((6, 5), (8,), (4, 4)), "fc_params": ((10, 0.2),)}


def with_history(net):
    """Batch norms that do something, then evaluation."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            for tensor in (module.weight.data, module.bias.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            module.running_mean.normal_()
    return net.eval()


def test_pfn_is_a_function_of_the_sum_over_particles():
    torch.manual_seed(0)
    net = PFN.ParticleFlowNetwork(7, 3, phi_dims=(5, 4), f_dims=(6,)).eval()
    jets = random_jets(9, 2, 0, padded=9)
    phi1, phi2 = net.phi[0], net.phi[2]
    f1, f2 = net.f[0], net.f[2]
    for i, length in enumerate((9, 2, 0)):
        total = torch.zeros(4)
        for n in range(length):
            x = jets[1][i, :, n]
            total += (phi2.weight @ (phi1.weight @ x + phi1.bias).relu() + phi2.bias).relu()
        expected = f2.weight @ (f1.weight @ total + f1.bias).relu() + f2.bias
        torch.testing.assert_close(net(*jets)[i], expected)


@pytest.mark.parametrize(("network", "parameters"), [("PFN", 86_154), ("PCNN", 353_484)])
def test_number_of_parameters(network, parameters):
    """With 17 features and 10 classes: published are 86k and 354k, the latter with biases that
    the batch norms behind them cancel."""
    module = network_module(network)
    cls = module.ParticleFlowNetwork if network == "PFN" else module.ParticleCNN
    assert sum(p.numel() for p in cls(17, 10).parameters()) == parameters


def pcnn_of_one_jet(net, features):
    """P-CNN of features (C, n) in order of pT, written with dense layers and no padding."""
    x = features[None]
    x = net.bn(net.conv(net.input_bn(x))).relu()
    for stage in net.stages:
        for unit in stage:
            out = unit.bn1(unit.conv1(x)).relu()
            out = unit.bn2(unit.conv2(out)).relu()
            x = out + (x if unit.shortcut is None else unit.shortcut(x))
    return net.fc(x.mean(2))[0]


@pytest.mark.parametrize("for_inference", [False, True])
def test_pcnn_of_padded_jets_is_that_of_single_jets_without_padding(for_inference):
    torch.manual_seed(0)
    net = with_history(PCNN.ParticleCNN(7, 3, for_inference=for_inference, **SMALL_PCNN))
    lengths = (1, 2, 3, 4, 5, 8, 17, 20)
    points, features, vectors, mask = random_jets(*lengths, padded=21)
    out = net(points, features, vectors, mask)
    for i, length in enumerate(lengths):
        pt = vectors[i, :2, :length].norm(dim=0)
        ordered = features[i][:, pt.argsort(descending=True)]
        expected = pcnn_of_one_jet(net, ordered)
        if for_inference:
            expected = expected.softmax(0)
        torch.testing.assert_close(out[i], expected, msg=f"{length} particles")


@pytest.mark.parametrize("padded", [20, 21, 22, 23, 300])
def test_pcnn_does_not_depend_on_the_padded_length(padded):
    torch.manual_seed(0)
    net = with_history(PCNN.ParticleCNN(7, 3, **SMALL_PCNN))
    jets = random_jets(20, 7, 0, padded=20)
    longer = [F.pad(x, (0, padded - 20)) for x in jets]
    torch.testing.assert_close(net(*jets), net(*longer))


def test_pcnn_training_statistics_do_not_see_the_padding():
    jets = random_jets(20, 7, 13, padded=20)
    buffers = []
    for padded in (20, 50):
        torch.manual_seed(0)
        net = PCNN.ParticleCNN(7, 3, **SMALL_PCNN).train()
        net(*(F.pad(x, (0, padded - 20)) for x in jets))
        buffers.append(dict(net.named_buffers()))
    for name, value in buffers[0].items():
        torch.testing.assert_close(value, buffers[1][name], msg=name)
    real = jets[1].transpose(1, 2)[jets[3][:, 0].bool()]
    torch.testing.assert_close(buffers[0]["input_bn.running_mean"], 0.1 * real.mean(0))
