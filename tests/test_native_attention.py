"""What the jagged backend of attention is given is what PyTorch's would take, or is refused."""

import pytest
import torch

from jetzoo import native
from jetzoo.attention.jagged import jagged, packed_attention
from jetzoo.attention.reference import reference
from jetzoo.nn.packing import pack

pytestmark = pytest.mark.skipif(native.load("training") is None, reason="no C++ compiler")


def odd_shapes():
    """Arguments of attention that are not of the usual shapes, dtypes or devices."""
    torch.manual_seed(4)
    q, k, v = torch.randn(3, 3, 2, 20, 16)
    bias, mask = torch.randn(3, 2, 20, 20), torch.arange(20) < torch.tensor([20, 5, 11])[:, None]
    cases = {
        "keys with one head": (q, k[:, :1], v),
        "keys and values with one head": (q, k[:, :1], v[:, :1]),
        "keys of one jet": (q, k[:1], v[:1]),
        "queries of one jet": (q[:1], k, v),
        "queries with one head": (q[:, :1], k, v),
        "wide values": (q, k, torch.randn(3, 2, 20, 24)),
        "narrow values": (q, k, v[..., :8]),
        "wide keys": (q, torch.randn(3, 2, 20, 24), v),
        "fewer values": (q, k, v[:, :, :7]),
        "fewer keys": (q, k[:, :, :7], v),
        "other batch": (q, k[:2], v[:2]),
        "no jets": (q[:0], k[:0], v[:0]),
        "no queries": (q[:, :, :0], k, v),
        "no keys": (q, k[:, :, :0], v[:, :, :0]),
        "three axes": (q[0], k[0], v[0]),
        "five axes": (q[None], k[None], v[None]),
        "float64 keys": (q, k.double(), v),
        "half values": (q, k, v.half()),
    }
    cases = {name: (qkv, {}) for name, qkv in cases.items()}
    options = {
        "mask (1, S)": {"mask": mask[1:2]},
        "mask (S,)": {"mask": mask[1]},
        "mask of another length": {"mask": mask[:, :7]},
        "mask of another batch": {"mask": mask[:2]},
        "mask of floats": {"mask": mask.float()},
        "mask of bytes": {"mask": mask.byte()},
        "mask (B, 1, S)": {"mask": mask[:, None]},
        "scattered mask": {"mask": mask.flip(1)},
        "bias of one head": {"bias": bias[:, :1]},
        "bias of one jet": {"bias": bias[0]},
        "bias of one query": {"bias": bias[:, :, :1]},
        "bias (S,)": {"bias": bias[0, 0, 0]},
        "bias of another length": {"bias": bias[..., :7]},
        "bias of more jets": {"bias": torch.randn(6, 2, 20, 20)},
        "bias with five axes": {"bias": bias[None]},
        "float64 bias": {"bias": bias.double()},
        "strided bias": {"bias": bias.transpose(2, 3)},
        "dropout above 1": {"dropout_p": 1.5},
        "negative dropout": {"dropout_p": -0.5},
        "dropout of all": {"dropout_p": 1.0},
    }
    return cases | {name: ((q, k, v), option) for name, option in options.items()}


@pytest.mark.parametrize("case", odd_shapes())
def test_odd_attention_is_that_of_the_reference(case):
    (q, k, v), options = odd_shapes()[case]
    try:
        expected = reference(q, k, v, **options)
    except Exception as refusal:
        with pytest.raises(type(refusal)):
            jagged(q, k, v, **options)
        return
    out = jagged(q, k, v, **options)
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["q", "k", "v", "bias", "mask"])
def test_attention_on_another_device_is_refused(name):
    tensors = dict(zip("qkv", torch.randn(3, 3, 2, 20, 16), strict=True))
    tensors |= {"bias": torch.randn(3, 2, 20, 20), "mask": torch.ones(3, 20, dtype=torch.bool)}
    tensors[name] = tensors[name].to("meta")
    with pytest.raises(ValueError, match="on meta|on a CPU"):
        jagged(**tensors)


def test_packed_attention_checks_the_layout():
    layout = pack(torch.ones(2, 1, 6, dtype=torch.bool), with_pairs=True)
    qkv, bias = torch.randn(12, 96), torch.randn(2, 42)
    assert packed_attention(qkv, 2, layout, bias=bias).shape == (12, 32)
    for wrong in (qkv[:-1], qkv[:, :-1], qkv[None], torch.randn(12, 0)):
        with pytest.raises(ValueError, match="qkv should have a row for each of 12 tokens"):
            packed_attention(wrong, 2, layout)
    for wrong in (bias[:1], bias[:, :-1], bias[0]):
        with pytest.raises(ValueError, match=r"bias should have the shape \(2, 42\)"):
            packed_attention(qkv, 2, layout, bias=wrong)
    with pytest.raises(TypeError, match="bias should be of torch.float32"):
        packed_attention(qkv, 2, layout, bias=bias.double())
    for wrong in (qkv.double(), qkv.to("meta")):
        with pytest.raises(ValueError, match="needs float32 on a CPU"):
            packed_attention(wrong, 2, layout)
