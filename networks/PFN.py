"""Particle Flow Network (arXiv 1810.05165): ``F(sum_i Phi(x_i))``, a deep set of particles."""

from torch import nn

from jetzoo.nn.inputs import clean_inputs, finish
from jetzoo.nn.packing import Padded, pack
from jetzoo.plugin import build, get_evaluate_fn, get_loss, get_train_fn  # noqa: F401 - weaver's


def mlp(*dims):
    """Linear layers of the given widths, each followed by ReLU."""
    layers = []
    for in_dim, out_dim in zip(dims[:-1], dims[1:], strict=True):
        layers += [nn.Linear(in_dim, out_dim), nn.ReLU()]
    return nn.Sequential(*layers)


class ParticleFlowNetwork(nn.Module):
    """PFN with the settings of the JetClass training as defaults.

    Parameters
    ----------
    input_dim : int
        Features per particle.
    num_classes : int
    phi_dims : sequence of int
        Widths of ``Phi``, applied to each particle.
    f_dims : sequence of int
        Hidden widths of ``F``, applied to the sum over the particles.
    for_inference : bool
        Return probabilities and keep the padding, so that the graph can be exported.
    """

    micro_batched = True  # jets of similar length together are the faster
    unused_inputs = ("points", "lorentz_vectors")
    gives_classes = True  # False: targets of a regression, without a softmax
    # Kinds of layers for `jetzoo profile`.
    layer_kinds = {"phi": "particle layers", "f": "head"}

    def __init__(
        self,
        input_dim,
        num_classes,
        *,
        phi_dims=(128, 128, 128),
        f_dims=(128, 128, 128),
        for_inference=False,
    ):
        super().__init__()
        self.for_inference = for_inference
        self.phi = mlp(input_dim, *phi_dims)
        self.f = mlp(phi_dims[-1], *f_dims).append(nn.Linear(f_dims[-1], num_classes))

    @property
    def unbounded_inputs(self):
        """Layers whose inputs grow with the number of particles: all that follow the sum."""
        return [f"f.{i}" for i, layer in enumerate(self.f) if hasattr(layer, "weight")]

    def forward(self, points, features, lorentz_vectors, mask):
        """Logits, or probabilities with ``for_inference``.

        Parameters
        ----------
        points : Tensor, (B, 2, N)
            Not used.
        features : Tensor, (B, C, N)
        lorentz_vectors : Tensor, (B, 4, N)
            Not used.
        mask : Tensor, (B, 1, N)

        Returns
        -------
        Tensor, (B, num_classes)
        """
        features, mask, finite = clean_inputs(mask, features, like=self.phi[0].weight)
        layout = (Padded if self.for_inference else pack)(mask)
        x = layout.pad(self.phi(layout.take(features)))  # (B, n, D)
        x = x.masked_fill(~layout.mask.unsqueeze(2), 0).sum(1)  # (B, D)
        logits = self.f(x)
        logits = finish(logits, finite, points, lorentz_vectors)
        return logits.softmax(1) if self.for_inference and self.gives_classes else logits


def get_model(data_config, **kwargs):
    """Build the network for weaver; options are those of ``ParticleFlowNetwork``."""
    return build(ParticleFlowNetwork, data_config, **kwargs)
