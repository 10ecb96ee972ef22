"""ParT is weaver-core's ParticleTransformer: the same weights, the same logits, both ways."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from weaver.nn.model.ParticleTransformer import ParticleTransformer as WeaverParT
from weaver.utils.data.config import DataConfig

from jetzoo.repository import network_module


@pytest.fixture(scope="module")
def data_config():
    return DataConfig.load(ROOT / "data" / "JetClass" / "JetClass_full.yaml")


def make_part(data_config, **options):
    """ParT of the published size with no parameter at a special value."""
    torch.manual_seed(3)
    model, _ = network_module("ParT").get_model(data_config, **options)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.2 * torch.randn_like(tensor))
    return model.eval()


class Published(torch.nn.Module):
    """weaver-core's network in the wrapper of the published network file."""

    def __init__(self, **options):
        super().__init__()
        self.mod = WeaverParT(17, 10, pair_input_dim=4, use_pre_activation_pair=False, **options)

    def forward(self, points, features, lorentz_vectors, mask):
        return self.mod(features, v=lorentz_vectors, mask=mask)


def test_size_is_the_published_one(data_config):
    model = make_part(data_config)
    assert sum(p.numel() for p in model.parameters()) == 2_143_486
    assert sum(p.numel() for p in make_part(data_config, pair_bias=False).parameters()) < 2_135_000


def test_weights_go_to_weaver_and_back(data_config):
    model, weaver = make_part(data_config), Published()
    weaver.load_state_dict(model.state_dict(), strict=True)
    back = make_part(data_config)
    back.load_state_dict(Published().state_dict(), strict=True)
    back.load_state_dict(weaver.state_dict(), strict=True)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], tensor, rtol=0, atol=0)


def test_published_files_name_the_projections_as_pytorch_does(data_config):
    model = make_part(data_config)
    published = {
        name.replace("in_proj.", "in_proj_"): tensor for name, tensor in model.state_dict().items()
    }
    assert "mod.blocks.0.attn.in_proj_weight" in published
    other, _ = network_module("ParT").get_model(data_config)
    other.load_state_dict(published, strict=True)
    torch.testing.assert_close(
        other.mod.cls_blocks[1].attn.in_proj.bias, model.mod.cls_blocks[1].attn.in_proj.bias
    )
    tuned, _ = network_module("ParT-FineTune").get_model(data_config)
    tuned.load_state_dict(published, strict=False)
    torch.testing.assert_close(
        tuned.mod.blocks[7].attn.in_proj.weight, model.mod.blocks[7].attn.in_proj.weight
    )


def test_fine_tuning_refuses_other_weights(data_config):
    tuned, _ = network_module("ParT-FineTune").get_model(data_config)
    other, _ = network_module("PN").get_model(data_config)
    with pytest.raises(RuntimeError, match="Missing key"):
        tuned.load_state_dict(other.state_dict(), strict=False)


@pytest.mark.real
@torch.no_grad()
@pytest.mark.parametrize("trim", [True, False])
def test_logits_are_weavers_on_real_jets(data_config, real_data, trim):
    data = np.load(real_data / "jetclass_tops_100.npz")
    names = ("pf_points", "pf_features_full", "pf_vectors", "pf_mask")
    jets = [torch.from_numpy(data[name]) for name in names]
    model, weaver = make_part(data_config), Published(trim=trim).eval()
    weaver.load_state_dict(model.state_dict(), strict=True)
    theirs = weaver(*jets)
    expected = weaver.double()(*(x.double() for x in jets)).float()
    assert expected.std() > 0.1
    torch.testing.assert_close(model(*jets), expected, atol=2e-5, rtol=0)
    # In float32 the mass of nearly collinear particles is rounding noise to weaver.
    assert 2e-5 < (theirs - expected).abs().max() < 0.01


@torch.no_grad()
def test_bias_matters_and_can_be_left_out(data_config):
    model, plain = make_part(data_config), make_part(data_config, pair_bias=False)
    weights = {k: v for k, v in model.state_dict().items() if ".pair_embed." not in k}
    plain.load_state_dict(weights, strict=True)
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(4, 17, 30)).astype("float32"))
    momenta = torch.from_numpy(rng.normal(size=(4, 3, 30)).astype("float32"))
    vectors = torch.cat((momenta, momenta.norm(dim=1, keepdim=True)), dim=1)
    jets = features[:, :2], features, vectors, torch.ones(4, 1, 30)
    difference = (model(*jets) - plain(*jets)).abs().max()
    assert difference > 1e-3
