"""P-CNN (CMS DeepAK8, arXiv 1902.09914): a residual network of 1D convolutions over particles.

Particles stand in order of descending pT, which the network sees to itself. The layers are those of
the comparison in arXiv 1902.08570. Nothing depends on the padded length: what lies past the last
particle is zero before every convolution, and is left out of batch norms and of the average.
"""

import torch
from torch import nn

from jetzoo.nn.embed import batch_norm
from jetzoo.nn.head import classifier
from jetzoo.nn.inputs import clean_inputs, finish
from jetzoo.nn.packing import Padded, mean_over_particles, pack, pt_order
from jetzoo.plugin import build, get_evaluate_fn, get_loss, get_train_fn  # noqa: F401 - weaver's


def convolve(conv, x, layout, strided):
    """Convolve tokens ``x`` (..., C) along each jet, zeros past its end; gives tokens (..., C').

    ``strided`` is the layout that the stride of the convolution leaves.
    """
    x = layout.pad(x).masked_fill(~layout.mask.unsqueeze(2), 0)  # (B, n, C)
    x = conv(x.transpose(1, 2))  # (B, C', n')
    return strided.unpad(x.transpose(1, 2))


def conv3(in_dim, out_dim, stride=1):
    """Convolution of three neighbouring particles; batch norm takes the place of a bias."""
    return nn.Conv1d(in_dim, out_dim, kernel_size=3, stride=stride, padding=1, bias=False)


class ResidualUnit(nn.Module):
    """Two convolutions, each with batch norm and ReLU, plus a shortcut.

    Parameters
    ----------
    in_dim, out_dim : int
    stride : int
        Of the first convolution: 2 keeps every second position of the sequence.
    """

    def __init__(self, in_dim, out_dim, stride):
        super().__init__()
        self.conv1 = conv3(in_dim, out_dim, stride)
        self.bn1 = nn.BatchNorm1d(out_dim)
        self.conv2 = conv3(out_dim, out_dim)
        self.bn2 = nn.BatchNorm1d(out_dim)
        self.shortcut = None
        if (in_dim, stride) != (out_dim, 1):
            self.shortcut = nn.Conv1d(in_dim, out_dim, kernel_size=1, stride=stride, bias=False)

    def forward(self, x, layout, strided):
        """Tokens (..., C) in ``layout`` to tokens (..., C') in ``strided``."""
        out = convolve(self.conv1, x, layout, strided)
        out = batch_norm(self.bn1, out).relu()
        out = convolve(self.conv2, out, strided, strided)
        out = batch_norm(self.bn2, out).relu()
        if self.shortcut is not None:
            x = convolve(self.shortcut, x, layout, strided)
        return x + out


class ParticleCNN(nn.Module):
    """P-CNN with the settings of the JetClass training as defaults.

    Parameters
    ----------
    input_dim : int
        Features per particle.
    num_classes : int
    first_dim : int
        Width of the first convolution.
    stages : sequence of sequence of int
        Widths of the residual units of each stage; from the second stage on, the first unit of a
        stage halves the length of the sequence.
    fc_params : sequence of (int, float)
        Width and dropout of each hidden layer after the average.
    for_inference : bool
        Return probabilities and keep the padding, so that the graph can be exported.
    """

    unused_inputs = ("points",)
    gives_classes = True  # False: targets of a regression, without a softmax
    # Kinds of layers for `jetzoo profile`.
    layer_kinds = {
        "input_bn": "embedding",
        "conv": "embedding",
        "bn": "embedding",
        "stages": "residual units",
        "fc": "head",
    }

    def __init__(
        self,
        input_dim,
        num_classes,
        *,
        first_dim=32,
        stages=((64, 64), (64, 64), (128, 128)),
        fc_params=((512, 0.2),),
        for_inference=False,
    ):
        super().__init__()
        self.for_inference = for_inference
        self.input_bn = nn.BatchNorm1d(input_dim)
        self.conv = conv3(input_dim, first_dim)
        self.bn = nn.BatchNorm1d(first_dim)
        self.stages = nn.ModuleList()
        dim = first_dim
        for i, dims in enumerate(stages):
            self.stages.append(nn.ModuleList())
            for j, out_dim in enumerate(dims):
                stride = 2 if i > 0 and j == 0 else 1
                self.stages[-1].append(ResidualUnit(dim, out_dim, stride))
                dim = out_dim
        self.fc = classifier(dim, fc_params, num_classes)

    # All at once and outside of compiled graphs, which would break at each one.
    @torch._dynamo.disable
    def layouts(self, mask, key):
        """Layout of the particles in each stage."""
        kind = Padded if self.for_inference else pack
        layouts = [kind(mask, key)]
        for _ in self.stages[1:]:
            layouts.append(kind(layouts[-1].mask[:, None, ::2]))
        return layouts

    def forward(self, points, features, lorentz_vectors, mask):
        """Logits, or probabilities with ``for_inference``.

        Parameters
        ----------
        points : Tensor, (B, 2, N)
            Not used.
        features : Tensor, (B, C, N)
        lorentz_vectors : Tensor, (B, 4, N)
            px, py, pz, energy; give the order.
        mask : Tensor, (B, 1, N)

        Returns
        -------
        Tensor, (B, num_classes)
        """
        features, vectors, mask, finite = clean_inputs(
            mask, features, lorentz_vectors, like=self.bn.weight
        )
        layouts = self.layouts(mask, pt_order(vectors, mask))
        layout = layouts[0]
        x = batch_norm(self.input_bn, layout.take(features))
        x = batch_norm(self.bn, convolve(self.conv, x, layout, layout)).relu()
        for stage, strided in zip(self.stages, layouts, strict=True):
            for unit in stage:
                x = unit(x, layout, strided)
                layout = strided
        x = mean_over_particles(x, layout)  # (B, C)
        logits = self.fc(x)
        logits = finish(logits, finite, points)
        return logits.softmax(1) if self.for_inference and self.gives_classes else logits


def get_model(data_config, **kwargs):
    """Build the network for weaver; options are those of ``ParticleCNN``."""
    return build(ParticleCNN, data_config, **kwargs)
