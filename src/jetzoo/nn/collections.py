"""The Particle Transformer of jets whose constituents come in several collections.

Particles, secondary vertices and the like have features of their own, so that each collection has
an embedding of its own; from there on all are tokens alike.
"""

import torch
from torch import nn

from .embed import Embed
from .inputs import check_inputs, clean_inputs
from .packing import Padded, pack
from .transformer import ParticleTransformer


class CollectionTransformer(nn.Module):
    """ParT over several collections, with the weights of weaver's ``ParticleTransformerTagger``.

    Its parameters are those of ``X_embed`` for each collection X, and of ``part``, the transformer.

    Parameters
    ----------
    input_dims : dict of str to int
        Features of each collection, by name, in the order in which the network is called with them:
        ``{"pf": 17, "sv": 12}``.
    num_classes : int or None
        See :class:`jetzoo.nn.transformer.ParticleTransformer`.
    embed_dims : sequence of int
        Widths of each embedding, at least one.
    for_inference : bool
        Return probabilities and keep the padding, so that the graph can be exported.
    **options
        Of :class:`jetzoo.nn.transformer.ParticleTransformer`.

    Attributes
    ----------
    collections : tuple of str
    """

    several_collections = True
    hands_options_to = ParticleTransformer
    fixed_options = ParticleTransformer.fixed_options

    def __init__(
        self,
        input_dims,
        num_classes,
        *,
        embed_dims=(128, 512, 128),
        for_inference=False,
        **options,
    ):
        super().__init__()
        if not input_dims or not embed_dims:
            raise ValueError("several collections need features and an embedding each")
        self.collections = tuple(input_dims)
        self.for_inference = for_inference
        for name, input_dim in input_dims.items():
            self.add_module(f"{name}_embed", Embed(input_dim, embed_dims))
        self.part = ParticleTransformer(
            embed_dims[-1], num_classes, embed_dims=None, for_inference=for_inference, **options
        )
        for embed in self.embeds():
            for layer in embed.embed[1::3]:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    @property
    def appended(self):
        """Width of the embedding that stands behind the logits, or None."""
        return self.part.appended

    def embeds(self):
        """List the embeddings, in the order of the collections."""
        return [self.get_submodule(f"{name}_embed") for name in self.collections]

    def parts(self):
        """List the modules that a folded form computes together, but for those of ``part``."""
        parts = [(self, CollectionTransformer)]
        for embed in self.embeds():
            parts += [(embed, Embed), *embed.parts(), (embed.input_bn, nn.BatchNorm1d)]
        return parts

    def forward(self, *inputs):
        """Logits (B, num_classes), or probabilities with ``for_inference``.

        Parameters
        ----------
        *inputs : Tensor
            Features (B, C, N), four-vectors (B, 4, N) and mask (B, 1, N) of each collection, one
            after the other; C and N differ between collections, and N may be 0. Four-vectors are
            (px, py, pz, energy) in GeV; masks are non-zero for real members. What stands in the
            padding does not matter.
        """
        tracing = torch.jit.is_tracing() or torch.compiler.is_compiling()
        groups = by_collection(inputs, self.collections, check=not tracing)
        layout = Padded if self.for_inference else pack
        return self.part(*side_by_side(self.embeds(), groups, self.part.cls_token, layout))


def side_by_side(embeds, groups, like, layout=pack):
    """The members of all collections as those of one.

    Parameters
    ----------
    embeds : sequence of callable
        Rows of features (T, C) to tokens (T, D), of each collection.
    groups : sequence of tuple of Tensor
        See :func:`by_collection`.
    like : Tensor
        A parameter, whose dtype the inputs get.
    layout : callable
        :func:`jetzoo.nn.packing.pack` or :class:`jetzoo.nn.packing.Padded`.

    Returns
    -------
    points, tokens, lorentz_vectors, mask : Tensor
        As a :class:`ParticleTransformer` takes them. A value that is not finite makes tokens of its
        jet NaN, so that what follows finds it.
    """
    members = []
    for embed, (features, vectors, mask) in zip(embeds, groups, strict=True):
        features, mask, finite = clean_inputs(mask, features, like=like)
        laid_out = layout(mask)
        tokens = laid_out.pad(embed(laid_out.take(features)))  # (B, n, D)
        tokens = tokens.masked_fill(~finite.unsqueeze(2), float("nan"))
        vectors = laid_out.pad(laid_out.take(vectors))  # (B, n, 4)
        members.append((tokens, vectors, laid_out.mask.unsqueeze(2)))
    tokens, vectors, mask = (
        torch.cat(x, dim=1).transpose(1, 2) for x in zip(*members, strict=True)
    )
    return vectors[:, :2], tokens, vectors, mask


def by_collection(inputs, collections, check=True):
    """Features, four-vectors and mask of each collection.

    Parameters
    ----------
    inputs : sequence of Tensor
        See :meth:`CollectionTransformer.forward`.
    collections : sequence of str
    check : bool
        Whether to look at the shapes.

    Returns
    -------
    list of tuple of Tensor

    Raises
    ------
    ValueError
        If there are more or fewer inputs, or one has another shape than its mask says.
    """
    if len(inputs) != 3 * len(collections):
        raise ValueError(
            f"the network takes features, vectors and mask of {', '.join(collections)}: "
            f"{3 * len(collections)} inputs, not {len(inputs)}"
        )
    groups = list(zip(inputs[0::3], inputs[1::3], inputs[2::3], strict=True))
    if check:
        for name, (features, vectors, mask) in zip(collections, groups, strict=True):
            try:
                check_inputs(mask, features, vectors, mask)
            except ValueError as error:
                raise ValueError(f"of {name}, {error}") from error
            if len(mask) != len(groups[0][2]):
                raise ValueError(
                    f"there are {len(groups[0][2])} jets of {collections[0]}, but {len(mask)} of "
                    f"{name}"
                )
    return groups
