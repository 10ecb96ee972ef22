"""ParticleNet (arXiv 1902.08570): graph convolutions over the nearest neighbours of each particle.

Neighbours are found in (eta, phi) first, then in the space of the features that the network itself
has made. Weights interchange with weaver-core's ``ParticleNet`` and with the published files.
"""

import torch
from torch import nn
from torch.nn import functional as F

from jetzoo.native.dense import linear as product
from jetzoo.nn.embed import batch_norm, mean_norm_relu, norm_relu
from jetzoo.nn.head import classifier
from jetzoo.nn.inputs import clean_inputs, finish
from jetzoo.nn.kinematics import at_least_float32
from jetzoo.nn.packing import Padded, mean_over_particles, pack
from jetzoo.plugin import build, get_evaluate_fn, get_loss, get_train_fn  # noqa: F401 - weaver's


def nearest(points, mask, k):
    """Indices of the ``k`` nearest other particles of each particle.

    Parameters
    ----------
    points : Tensor, (B, n, D)
        Euclidean coordinates.
    mask : Tensor of bool, (B, n)
        True for real particles; the others are nobody's neighbour.
    k : int

    Returns
    -------
    Tensor of int, (B, n, k)
        Where a jet has fewer than ``k`` other particles, the remaining indices are ``n`` or larger.
    """
    points = at_least_float32(points.detach())
    distance = torch.cdist(points, points)  # (B, n, n)
    particle = torch.arange(points.shape[1], device=points.device)
    excluded = ~mask.unsqueeze(1) | (particle == particle.unsqueeze(1))
    distance = distance.masked_fill(excluded, float("inf"))
    # Behind all real neighbours and before everything that is none.
    distance = F.pad(distance, (0, k), value=torch.finfo(distance.dtype).max)
    return distance.topk(k, largest=False).indices


class OnRows:
    """A convolution of kernel size 1 on rows; its weight has the shape of the published files."""

    on_rows = True

    def forward(self, x):
        """(..., C) to (..., C')."""
        return product(x, self.weight.flatten(1), self.bias)


class RowConv1d(OnRows, nn.Conv1d):
    """``Conv1d`` of kernel size 1 on rows."""


class RowConv2d(OnRows, nn.Conv2d):
    """``Conv2d`` of kernel size 1 on rows."""


class EdgeConv2d(OnRows, nn.Conv2d):
    """``Conv2d`` of kernel size 1 on the edges (x_i, x_j - x_i).

    It is linear in both particles, so that it acts once on each of them instead of ``k`` times.
    """

    def particle_weight(self):
        """What particles are multiplied with, as centre and as neighbour: (2 C', C)."""
        centre, difference = self.weight.flatten(1).chunk(2, dim=1)
        return torch.cat((centre - difference, difference))

    def forward(self, x):
        """(..., C) to what particles add to edges as centre and as neighbour, (..., 2 C')."""
        return product(x, self.particle_weight())


def linear(weight, bn):
    """A linear layer followed by a batch norm in eval mode, as one linear layer.

    A weight (2 C', C) of :class:`EdgeConv2d` has the shift in the half of the centres.
    """
    scale = bn.weight.double() * (bn.running_var.double() + bn.eps).rsqrt()
    shift = bn.bias.double() - bn.running_mean.double() * scale
    parts = len(weight) // len(scale)
    layer = nn.Linear(weight.shape[1], len(weight), device=weight.device)
    layer.weight = nn.Parameter((weight * scale.repeat(parts)[:, None]).to(weight.dtype))
    layer.bias = nn.Parameter(F.pad(shift, (0, len(weight) - len(scale))).to(weight.dtype))
    return layer.requires_grad_(False)


class EdgeConv(nn.Module):
    """Edge convolution: the mean over the neighbours j of ``h(x_i, x_j - x_i)``, plus a shortcut.

    A neighbour that does not exist has features 0, as in the published network: the average is
    always over ``k`` edges, and the published weights were trained with these edges in short jets.

    Parameters
    ----------
    k : int
        Number of neighbours.
    in_dim : int
    dims : sequence of int
        Widths of ``h``, a stack of linear layers with batch norm and ReLU.
    """

    mixes_particles = True

    def __init__(self, k, in_dim, dims):
        super().__init__()
        self.k = k
        widths = (2 * in_dim, *dims)
        self.convs = nn.ModuleList(
            kind(i, o, kernel_size=1, bias=False)
            for kind, i, o in zip(
                (EdgeConv2d, *[RowConv2d] * (len(dims) - 1)), widths[:-1], dims, strict=True
            )
        )
        self.bns = nn.ModuleList(nn.BatchNorm1d(dim) for dim in dims)
        self.sc = None
        if in_dim != dims[-1]:
            self.sc = RowConv1d(in_dim, dims[-1], kernel_size=1, bias=False)
            self.sc_bn = nn.BatchNorm1d(dims[-1])

    def forward(self, points, x, layout):
        """Tokens ``points`` (..., D) and ``x`` (..., C) to tokens (..., C')."""
        index = nearest(layout.pad(points), layout.mask, self.k)  # (B, n, k)
        centre, neighbour = self.convs[0](x).chunk(2, dim=-1)  # (..., C')
        neighbours = F.pad(layout.pad(neighbour), (0, 0, 0, self.k))  # (B, n + k, C')
        batch_size, length = neighbours.shape[:2]
        first = torch.arange(batch_size, device=x.device) * length
        index = layout.unpad(index + first[:, None, None])  # (..., k)
        edges = neighbours.flatten(0, 1)[index] + centre.unsqueeze(-2)  # (..., k, C')
        for bn, conv in zip(self.bns, self.convs[1:], strict=False):  # up to the last norm
            edges = conv(norm_relu(bn, edges))
        shortcut = x if self.sc is None else batch_norm(self.sc_bn, self.sc(x))
        return (shortcut + mean_norm_relu(self.bns[-1], edges)).relu_()

    def neighbours(self, points, x, layout):
        """Weights (B, 1, n, n) of the ``k`` nearest neighbours: equal, and zero for the others."""
        index = nearest(layout.pad(points), layout.mask, self.k)  # (B, n, k)
        batch_size, length = layout.mask.shape
        weights = points.new_zeros(batch_size, length, length + self.k)
        weights = weights.scatter(2, index, 1.0)[..., :length]
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
        return weights.masked_fill(~layout.mask[:, :, None], 0)[:, None]

    def fold(self):
        """Fold the batch norms, which are in eval mode, into the layers before them."""
        self.convs[0] = linear(self.convs[0].particle_weight(), self.bns[0])
        for i in range(1, len(self.convs)):
            self.convs[i] = linear(self.convs[i].weight.flatten(1), self.bns[i])
        self.bns = nn.ModuleList(nn.Identity() for _ in self.bns)
        if self.sc is not None:
            self.sc = linear(self.sc.weight.flatten(1), self.sc_bn)
            self.sc_bn = nn.Identity()


class DynamicGraphNetwork(nn.Module):
    """Edge convolutions, average over the particles, fully connected layers.

    Parameters
    ----------
    input_dim, num_classes, conv_params, fc_params, use_fusion, for_inference
        See :class:`ParticleNet`.
    """

    micro_batched = True  # jets of similar length together are the faster
    unused_inputs = ("lorentz_vectors",)
    gives_classes = True  # False: targets of a regression, without a softmax
    # Kinds of layers for `jetzoo profile`.
    layer_kinds = {"bn_fts": "embedding", "edge_convs": "edge convolutions", "fc": "head"}

    def __init__(self, input_dim, num_classes, conv_params, fc_params, use_fusion, for_inference):
        super().__init__()
        self.layout = Padded if for_inference else pack
        self.bn_fts = nn.BatchNorm1d(input_dim)
        self.edge_convs = nn.ModuleList()
        dim = input_dim
        for k, dims in conv_params:
            self.edge_convs.append(EdgeConv(k, dim, dims))
            dim = dims[-1]
        self.fusion_block = None
        if use_fusion:
            width = sum(dims[-1] for _, dims in conv_params)
            dim = min(max(width // 128 * 128, 128), 1024)
            self.fusion_block = nn.Sequential(
                RowConv1d(width, dim, kernel_size=1, bias=False), nn.BatchNorm1d(dim), nn.ReLU()
            )
        self.fc = classifier(dim, fc_params, num_classes)

    def forward(self, points, features, lorentz_vectors, mask):
        """Logits (B, num_classes) of the four inputs of :meth:`ParticleNet.forward`."""
        points, features, mask, finite = clean_inputs(
            mask, points, features, like=self.bn_fts.weight
        )
        layout = self.layout(mask)
        points = layout.take(points)
        x = batch_norm(self.bn_fts, layout.take(features))
        found = []
        for edge_conv in self.edge_convs:
            points = x = edge_conv(points, x, layout)
            found.append(x)
        if self.fusion_block is not None:
            conv, bn, act = self.fusion_block
            x = act(batch_norm(bn, conv(torch.cat(found, dim=-1))))
        x = mean_over_particles(x, layout)  # (B, C)
        return finish(self.fc(x), finite, lorentz_vectors)


class ParticleNet(nn.Module):
    """ParticleNet with the settings of the JetClass training as defaults.

    Parameters
    ----------
    input_dim : int
        Features per particle.
    num_classes : int
    conv_params : sequence of (int, sequence of int)
        Number of neighbours and widths of each edge convolution.
    fc_params : sequence of (int, float)
        Width and dropout of each hidden layer after the average.
    use_fusion : bool
        Average what one more layer makes of the outputs of all edge convolutions together, not that
        of the last alone.
    for_inference : bool
        Return probabilities and keep the padding, so that the graph can be exported.
    """

    micro_batched = True  # jets of similar length together are the faster
    unused_inputs = ("lorentz_vectors",)
    gives_classes = True  # False: targets of a regression, without a softmax

    def __init__(
        self,
        input_dim,
        num_classes,
        *,
        conv_params=((16, (64, 64, 64)), (16, (128, 128, 128)), (16, (256, 256, 256))),
        fc_params=((256, 0.1),),
        use_fusion=False,
        for_inference=False,
    ):
        super().__init__()
        self.for_inference = for_inference
        # Published weights carry the prefix `mod.`.
        self.mod = DynamicGraphNetwork(
            input_dim, num_classes, conv_params, fc_params, use_fusion, for_inference
        )

    def core_and_head(self):
        """Return the network, and what follows it: nothing."""
        return self.mod, nn.Identity()

    def forward(self, points, features, lorentz_vectors, mask):
        """Logits, or probabilities with ``for_inference``.

        Parameters
        ----------
        points : Tensor, (B, 2, N)
            deta, dphi: where the first block looks for neighbours.
        features : Tensor, (B, C, N)
        lorentz_vectors : Tensor, (B, 4, N)
            Not used.
        mask : Tensor, (B, 1, N)

        Returns
        -------
        Tensor, (B, num_classes)
        """
        logits = self.mod(points, features, lorentz_vectors, mask)
        return logits.softmax(1) if self.for_inference and self.gives_classes else logits


def get_model(data_config, **kwargs):
    """Build the network for weaver; options are those of ``ParticleNet``."""
    return build(ParticleNet, data_config, **kwargs)
