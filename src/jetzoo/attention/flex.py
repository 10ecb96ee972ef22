"""FlexAttention of PyTorch (arXiv 2412.05496): bias and padding as a change of the scores."""

import functools

import torch
from torch.nn.attention.flex_attention import flex_attention


@functools.cache
def _compiled():
    return torch.compile(flex_attention, dynamic=True)


def flex(q, k, v, *, bias=None, mask=None, dropout_p=0.0):
    """FlexAttention, compiled on a GPU and slow elsewhere, see :func:`jetzoo.attention`."""

    def score_mod(score, b, h, i, j):
        if bias is not None:
            score = score + bias[b, h, i, j]
        if mask is not None:
            score = torch.where(mask[b, j], score, float("-inf"))
        return score

    compiled = q.is_cuda and not torch.compiler.is_compiling()
    return (_compiled() if compiled else flex_attention)(q, k, v, score_mod=score_mod)
