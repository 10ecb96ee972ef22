"""weaver-core's own networks (``weaver.nn.model`` of version 0.5), rewritten for the engine.

Each is called as it was, around a core that the engine computes: the folded twin of this project
with the same weights (:mod:`jetzoo.engine.twins`), which the kernels run, or else the network
itself, folded with its options (:mod:`jetzoo.engine.variants`). Then the rewritten network proves
itself (:mod:`jetzoo.engine.proof`).
"""

import copy

import torch
from torch import nn

from ..nn.packing import Padded, pack
from .batching import MicroBatches, WholeBatch
from .folding import fold
from .forms import CollectionsForm, Form
from .layers import fold_convolutions
from .twins import Unsupported, check_own, graph_twin, part_twin, require
from .variants import VariantTransformer, folded_embed


class PartForm(Form):
    """weaver's ``ParticleTransformer``."""

    def __init__(self, original, dtype):
        super().__init__(part_core(original, dtype))
        self.takes_tokens = isinstance(original.embed, nn.Identity)
        self.takes_vectors, self.takes_pairs = pair_inputs(original.pair_embed)

    def forward(self, x, v=None, mask=None, uu=None, uu_idx=None):
        """Features (B, C, N), four-vectors (B, 4, N) and mask (B, 1, N) to (B, num_classes).

        Without an embedding, ``x`` are tokens (B, N, D). ``uu`` are features of pairs, see
        :func:`extra_pairs`.
        """
        x = x.transpose(1, 2) if self.takes_tokens else x
        if v is None and self.takes_vectors:
            raise TypeError("the fast form of ParticleTransformer needs the four-vectors v")
        v = no_vectors(x) if v is None else v
        pairs = extra_pairs(self.takes_pairs, uu, uu_idx, x.shape[2])
        return self.core(x[:, :2], x, v, real(mask, x), *pairs)


class TaggerForm(CollectionsForm):
    """weaver's ``ParticleTransformerTagger``: particles and secondary vertices side by side."""

    def __init__(self, original, dtype):
        embeds = [folded_embed(embed, dtype) for embed in (original.pf_embed, original.sv_embed)]
        super().__init__(("pf", "sv"), embeds, part_core(original.part, dtype))
        self.layout = Padded if original.part.for_inference else pack
        require(not any(pair_inputs(original.part.pair_embed)[1:]), "pair_extra_dim")

    def forward(self, pf_x, pf_v=None, pf_mask=None, sv_x=None, sv_v=None, sv_mask=None):
        """Features (B, C, N), four-vectors and masks of both to (B, num_classes)."""
        groups = (pf_x, pf_v, real(pf_mask, pf_x)), (sv_x, sv_v, real(sv_mask, sv_x))
        return self.core(*self.side_by_side(groups, self.layout))


class PairTaggerForm(CollectionsForm):
    """weaver's ``ParticleTransformerTaggerWithExtraPairFeatures``."""

    def __init__(self, original, dtype):
        embeds = [folded_embed(embed, dtype) for embed in (original.pf_embed, original.sv_embed)]
        super().__init__(("pf", "sv"), embeds, part_core(original.part, dtype))
        require(pair_inputs(original.part.pair_embed)[1], "pair_extra_dim=0")

    def forward(
        self,
        pf_x,
        pf_v=None,
        pf_mask=None,
        sv_x=None,
        sv_v=None,
        sv_mask=None,
        pf_uu=None,
        pf_uu_idx=None,
    ):
        """As :class:`TaggerForm`, with features of pairs of particles as :class:`PartForm`."""
        masks = real(pf_mask, pf_x), real(sv_mask, sv_x)
        (uu,) = extra_pairs(True, pf_uu, pf_uu_idx, pf_x.shape[2])
        groups = (pf_x, pf_v, masks[0]), (sv_x, sv_v, masks[1])
        return self.core(
            *self.side_by_side(groups, Padded), nn.functional.pad(uu, (0, sv_x.shape[2]) * 2)
        )


class GraphForm(Form):
    """weaver's ``ParticleNet``."""

    def __init__(self, original, dtype):
        super().__init__(graph_core(original, dtype))

    def forward(self, points, features, mask=None):
        """Points (B, 2, N), features (B, C, N) and mask (B, 1, N) to (B, num_classes)."""
        return self.core(points, features, no_vectors(features), real(mask, features))


class GraphTaggerForm(CollectionsForm):
    """weaver's ``ParticleNetTagger``: particles and secondary vertices side by side."""

    def __init__(self, original, dtype):
        embeds = [
            fold_convolutions(x.conv, dtype or torch.float32)
            for x in (original.pf_conv, original.sv_conv)
        ]
        super().__init__(("pf", "sv"), embeds, graph_core(original.pn, dtype))
        self.layout = Padded if original.pn.for_inference else pack

    def forward(self, pf_points, pf_features, pf_mask, sv_points, sv_features, sv_mask):
        """Points (B, 2, N), features (B, C, N) and mask (B, 1, N) of both to (B, num_classes)."""
        groups = (pf_features, pf_points, pf_mask), (sv_features, sv_points, sv_mask)
        points, tokens, _, mask = self.side_by_side(groups, self.layout)
        return self.core(points, tokens, no_vectors(tokens), mask)


FORMS = {
    ("ParticleTransformer", "ParticleTransformer"): PartForm,
    ("ParticleTransformer", "ParticleTransformerTagger"): TaggerForm,
    ("ParticleTransformer", "ParticleTransformerTaggerWithExtraPairFeatures"): PairTaggerForm,
    ("ParticleNet", "ParticleNet"): GraphForm,
    ("ParticleNet", "ParticleNetTagger"): GraphTaggerForm,
}


def part_core(part, dtype):
    """The folded form of weaver's ``ParticleTransformer``; with dtype None one to look into."""
    try:
        twin = part_twin(part)
    except Unsupported:
        whole = WholeBatch if dtype is None else MicroBatches
        return whole(VariantTransformer(part, dtype or torch.float32)).eval()
    return twin if dtype is None else fold(twin, dtype)


def graph_core(net, dtype):
    """The folded form of weaver's ``ParticleNet``, or with dtype None its twin."""
    twin = graph_twin(net)
    return twin if dtype is None else fold(twin, dtype)


def pair_inputs(pair_embed):
    """Whether weaver's ``PairEmbed`` looks at four-vectors, and at further features of pairs."""
    if pair_embed is None:
        return False, False
    return pair_embed.pairwise_lv_dim > 0, pair_embed.pairwise_input_dim > 0


def extra_pairs(taken, uu, index, length):
    """Features of pairs (B, C, N, N), as a list that is empty if the network takes none.

    Parameters
    ----------
    taken : bool
        Whether the network takes any.
    uu : Tensor, (B, C, N, N) or (B, C, P), or None
    index : Tensor of int, (B, 2, P), or None
        Pairs of ``uu``; indices of ``length`` and above stand for none.
    length : int
    """
    if taken != (uu is not None):
        needs = "needs the features of pairs uu" if taken else "was built without features of pairs"
        raise TypeError(f"this network {needs} (pair_extra_dim)")
    if index is not None:
        i, j = index.clamp(max=length).unbind(1)  # (B, P)
        place = (i * (length + 1) + j)[:, None].expand_as(uu)
        uu = uu.new_zeros(*uu.shape[:2], (length + 1) ** 2).scatter_add_(2, place, uu)
        uu = uu.unflatten(2, (length + 1, length + 1))[..., :length, :length]
    return [uu] if taken else []


def no_vectors(x):
    """Four-vectors (B, 4, N) for a network that does not look at them."""
    return torch.zeros_like(x[:, :1]).expand(-1, 4, -1)  # sizes stay dynamic in an exported graph


def real(mask, x):
    """The mask of weaver, (B, 1, N); without one all particles are real."""
    return torch.ones_like(x[:, :1]) if mask is None else mask


def find(network):
    """Look for weaver's own networks.

    Parameters
    ----------
    network : nn.Module
        One itself, or a wrapper around some.

    Returns
    -------
    dict of str to nn.Module
        By name within the network, which is "" for itself.
    """
    found = {}
    for name, module in network.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if not inside and _key(module):
            found[name] = module
    return found


def is_weavers(module):
    """Whether a module is one of weaver's own networks."""
    return _key(module) is not None


def _key(module):
    """Names of the file and of the class that a module has of weaver's networks, or None."""
    for cls in type(module).__mro__:
        package, _, file = cls.__module__.rpartition(".")
        key = (file, cls.__name__)
        if package == "weaver.nn.model" and key in FORMS:
            return key
    return None


def rewrite(frozen, dtype=torch.float32):
    """Rewrite a network in which :func:`find` finds some of weaver's.

    Parameters
    ----------
    frozen : nn.Module
        See :func:`jetzoo.engine.folding.freeze`; left as it is.
    dtype : torch.dtype or None
        Of the matrix products. None: all jets of a batch are computed together, by modules of this
        project that can be looked into and exported.

    Returns
    -------
    nn.Module
        A copy with a :class:`jetzoo.engine.forms.Form` in place of each of them.

    Raises
    ------
    Unsupported
        If a network has an option that the engine does not know.
    """
    forms = {name: form_of(module, dtype) for name, module in find(frozen).items()}
    if "" in forms:
        return forms[""]
    # What is replaced need not be copied.
    rewritten = copy.deepcopy(
        frozen, {id(frozen.get_submodule(name)): nn.Identity() for name in forms}
    )
    for name, form in forms.items():
        rewritten.set_submodule(name, form)
    return rewritten.eval()


def form_of(original, dtype):
    """The form of one of weaver's networks."""
    check_own(original)
    return FORMS[_key(original)](original, dtype).eval()
