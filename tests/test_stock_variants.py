"""Fast forms of weaver-core's ParticleTransformer with options that the zoo's does not have."""

import pytest
import torch
from jets import make_jets, repad
from stock import COUNTS, NATIVE, SV, Wrapper, close, exact, secondary, stirred, weaver_part
from weaver.nn.model.ParticleTransformer import ParticleTransformerTagger
from weaver.nn.model.ParticleTransformer import (
    ParticleTransformerTaggerWithExtraPairFeatures as PairTagger,
)

import jetzoo

BLOCK = {
    "scale_attn_mask": True,
    "use_qk_norm": True,
    "headwise_attn_output_gate": True,
    "layer_scale_init_values": 0.3,
    "drop_path_rate": 0.1,
}
VARIANTS = {
    "relu": {"activation": "relu"},
    "conv": {"use_conv_embed": True},
    "conv relu": {"use_conv_embed": True, "activation": "relu"},
    "no scales": {"block_params": dict.fromkeys(("scale_attn", "scale_fc", "scale_heads"), False)},
    "all scales": {"block_params": BLOCK},
    "rms": {"block_params": {"use_rmsnorm": True, "use_bias": False}},
    "gates": {"block_params": {"elementwise_attn_output_gate": True}},
    "classes": {"cls_block_params": {"ffn_ratio": 2, "num_heads": 2, "scale_attn": False}},
    "average": {"num_cls_layers": 0},
    "token": {"num_cls_layers": 0, "include_global_token": True, "remove_self_pair": True},
    "some": {"block_ids_with_attn_mask": [1]},
    "none": {"block_ids_with_attn_mask": []},
    "no blocks": {"num_layers": 0},
    "ee": {"pair_input_type": "ee"},
    "ee5 relu": {"pair_input_type": "ee", "pair_input_dim": 5, "activation": "relu"},
    "xyzt": {"pair_input_type": "xyzt:cyl", "remove_self_pair": True},
    "xyzt3": {"pair_input_type": "xyzt", "pair_input_dim": 3, "remove_self_pair": True},
    "xyzt rect": {"pair_input_type": "xyzt:rect"},
    "xyzt sph": {"pair_input_type": "xyzt:spherical"},
    **{f"pp{n}": {"pair_input_dim": n} for n in (1, 3, 5, 6, 8)},
    "dense": {"pair_input_dim": 6, "remove_self_pair": True, "pair_embed_sparse_eval": (0, 0)},
    "for_inference": {"version": 3, "for_inference": True, "pair_input_dim": 6},
    **{f"version {n}": {"version": n} for n in (2, 3, 3.5, 3.6)},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_the_transformer(name, caplog):
    options = VARIANTS[name]
    model = weaver_part(**{**NATIVE, **options})
    points, features, vectors, mask = make_jets(COUNTS)
    expected = exact(model, features, vectors, mask)
    assert expected.std() > 1e-3
    fast = jetzoo.accelerate(Wrapper(model))
    assert caplog.text == "" and fast.kernels.mod.core.kernels is None
    close(fast(points, features, vectors, mask), expected)
    others = repad((points, features, vectors, mask), 90, float("nan"))
    close(fast(*others), expected)
    order = torch.randperm(features.shape[2])
    close(fast(*(x[:, :, order] for x in (points, features, vectors, mask))), expected)
    features[2, 0, 1] = float("inf")
    logits = fast(points, features, vectors, mask)
    assert logits[2].isnan().all()
    close(logits[[0, 1, 3, 4, 5, 6]], expected[[0, 1, 3, 4, 5, 6]])
    none = fast(points[:2], features[:2], vectors[:2], 0 * mask[:2])
    assert none.isfinite().all() and none.shape == (2, 2)
    assert fast(*(x[:0] for x in (points, features, vectors, mask))).shape == (0, 2)


@pytest.mark.parametrize("name", ["version 3.5", "all scales", "token", "ee"])
def test_variants_in_few_bits(name):
    model = Wrapper(weaver_part(**{**NATIVE, **VARIANTS[name]}))
    jets = make_jets(COUNTS)
    fast = jetzoo.accelerate(model)(*jets)
    half = jetzoo.accelerate(model, "bf16")(*jets)
    assert 1e-5 < (half - fast).abs().max() < 0.1
    for method in ("static", "dynamic"):
        int8 = jetzoo.accelerate(model, "int8", calibration=jets, method=method)
        assert "mod.core.network.blocks.0.fc1" in int8.network.layers
        assert 1e-5 < (int8(*jets) - fast).abs().max() < 0.2


class PairWrapper(Wrapper):
    def forward(self, pf_features, pf_vectors, pf_mask, pf_uu):
        return self.mod(pf_features, pf_vectors, pf_mask, pf_uu)


def extra_pairs(length):
    """Features of all pairs, and the same as features of pairs in any order, with some of none."""
    dense = torch.randn(len(COUNTS), 3, length, length)
    i, j = torch.cartesian_prod(torch.arange(length), torch.arange(length)).t()
    order = torch.randperm(len(i))
    index = torch.stack((i[order], j[order]))
    sparse = torch.nn.functional.pad(dense.flatten(2)[..., order], (0, 5), value=7.0)
    index = torch.nn.functional.pad(index, (0, 5), value=length).expand(len(COUNTS), 2, -1)
    return dense, sparse, index


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"version": 3.6},
        {"remove_self_pair": True, "pair_embed_sparse_eval": (False, False)},
        {"for_inference": True},
    ],
    ids=str,
)
def test_extra_features_of_pairs(options, caplog):
    model = weaver_part(**NATIVE, pair_extra_dim=3, **options)
    _, features, vectors, mask = make_jets(COUNTS)
    dense, sparse, index = extra_pairs(features.shape[2])
    expected = exact(model, features, vectors, mask, dense)
    fast = jetzoo.accelerate(model)
    close(fast(features, vectors, mask, dense), expected)
    close(fast(features, vectors, mask, uu=sparse, uu_idx=index), expected)
    wrapped = jetzoo.accelerate(PairWrapper(model))
    order = torch.randperm(features.shape[2])
    jets = (x[:, :, order] for x in (features, vectors, mask))
    close(wrapped(*jets, dense[:, :, order][..., order]), expected)
    assert caplog.text == ""
    dense[1, 0, 2, 1] = -float("inf")
    dense[0, 0, 60, 1] = float("nan")  # of the padding
    logits = fast(features, vectors, mask, dense)
    assert logits[1].isnan().all()
    close(logits[[0, 2, 3, 4, 5, 6]], expected[[0, 2, 3, 4, 5, 6]])
    with pytest.raises(TypeError, match="needs the features of pairs"):
        fast(features, vectors, mask)


def test_extra_features_of_pairs_in_int8():
    model = PairWrapper(weaver_part(**NATIVE, pair_extra_dim=3))
    _, *jets = make_jets(COUNTS)
    jets.append(extra_pairs(jets[0].shape[2])[0])
    int8 = jetzoo.accelerate(model, "int8", calibration=tuple(jets))
    assert 1e-5 < (int8(*jets) - jetzoo.accelerate(model)(*jets)).abs().max() < 0.1


@pytest.mark.parametrize("options", [{}, {"num_cls_layers": 0}], ids=str)
def test_tokens_that_are_given(options, caplog):
    model = weaver_part(
        16, **{**NATIVE, "embed_dims": [], "num_heads": 2, "trim": False}, **options
    )
    _, _, vectors, mask = make_jets(COUNTS)
    tokens = torch.randn(len(COUNTS), mask.shape[2], 16)
    close(jetzoo.accelerate(model)(tokens, vectors, mask), exact(model, tokens, vectors, mask))
    assert caplog.text == ""


def test_extra_features_alone(caplog):
    model = weaver_part(**NATIVE, pair_extra_dim=3, pair_input_dim=0)
    _, features, _, mask = make_jets(COUNTS)
    dense, sparse, index = extra_pairs(features.shape[2])
    expected = exact(model, features, None, mask, dense)
    close(jetzoo.accelerate(model)(features, mask=mask, uu=sparse, uu_idx=index), expected)
    assert caplog.text == ""  # it has a fast form


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"version": 3.5}], ids=str)
def test_particles_and_vertices_with_features_of_pairs(options, caplog):
    model = PairTagger(**SV, **NATIVE, pair_extra_dim=3, **options)
    model = stirred(model)
    pf, sv = make_jets(COUNTS)[1:], secondary()[1:]
    dense, sparse, index = extra_pairs(pf[0].shape[2])
    expected = exact(model, *pf, *sv, dense)
    fast = jetzoo.accelerate(model)
    close(fast(*pf, *sv, dense), expected)
    close(fast(*pf, *sv, pf_uu=sparse, pf_uu_idx=index), expected)
    assert caplog.text == ""
    plain = stirred(ParticleTransformerTagger(**SV, **NATIVE, **options))
    close(jetzoo.accelerate(plain)(*pf, *sv), exact(plain, *pf, *sv))
    assert caplog.text == ""
