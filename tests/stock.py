"""weaver-core's own networks to test with, small, and the usual wrappers around them."""

import torch
from jets import make_jets
from weaver.nn.model.ParticleTransformer import ParticleTransformer as WeaverParT
from zoo import SMALL, stir

from jetzoo.engine.proof import in_float64

COUNTS = (40, 7, 61, 1, 18, 3, 64)


def stirred(model, seed=4):
    """A network in eval mode, none of whose weights has a special value."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return stir(model.eval())


def weaver_part(num_features=7, **options):
    """weaver's own ParT, small."""
    return stirred(WeaverParT(num_features, 2, **{**SMALL, **options}))


class Wrapper(torch.nn.Module):
    """What the usual network files have."""

    def __init__(self, mod):
        super().__init__()
        self.mod = mod

    def forward(self, points, features, lorentz_vectors, mask):
        return self.mod(features, v=lorentz_vectors, mask=mask)


class GraphWrapper(Wrapper):
    def forward(self, points, features, lorentz_vectors, mask):
        return self.mod(points, features, mask)


class TaggerWrapper(Wrapper):
    def forward(
        self,
        pf_points,
        pf_features,
        pf_vectors,
        pf_mask,
        sv_points,
        sv_features,
        sv_vectors,
        sv_mask,
    ):
        return self.mod(pf_features, pf_vectors, pf_mask, sv_features, sv_vectors, sv_mask)


NATIVE = {"embed_dims": (32, 64, 32), "num_layers": 2, "num_heads": 4, "pair_embed_dims": (16, 16)}
SV = {"pf_input_dim": 7, "sv_input_dim": 5, "num_classes": 3}


def secondary():
    jets = make_jets((2, 0, 5, 1, 1, 0, 4), seed=5)
    jets[1] = jets[1][:, 2:]
    return jets


def exact(model, *inputs, **named):
    """Output in float64: in float32, logarithms of weaver's pair features are noise."""
    double = in_float64(model)
    with torch.no_grad():
        inputs = [None if x is None else x.double() for x in inputs]
        return double(*inputs, **{k: x.double() for k, x in named.items()})


def close(found, expected):
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
