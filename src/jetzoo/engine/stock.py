"""weaver-core's own networks (``weaver.nn.model`` of version 0.5), rewritten for the engine.

Each is called as it was, around a core that the engine computes: the folded twin of this project
with the same weights (:mod:`jetzoo.engine.twins`). Then the rewritten network proves itself
(:mod:`jetzoo.engine.proof`).
"""

import copy

import torch
from torch import nn

from .folding import fold
from .forms import CollectionsForm, Form
from .layers import FoldedEmbed
from .twins import Unsupported, check_own, embed_twin, graph_twin, part_twin


class PartForm(Form):
    """weaver's ``ParticleTransformer``."""

    def __init__(self, original, dtype):
        super().__init__(fold(part_twin(original), dtype))
        self.has_pairs = original.pair_embed is not None

    def forward(self, x, v=None, mask=None, uu=None, uu_idx=None):
        """Features (B, C, N), four-vectors (B, 4, N) and mask (B, 1, N) to (B, num_classes)."""
        if uu is not None or uu_idx is not None:
            raise TypeError("this network was built without features of pairs (pair_extra_dim)")
        if v is None:
            if self.has_pairs:
                raise TypeError("the fast form of ParticleTransformer needs the four-vectors v")
            v = x.new_zeros(len(x), 4, x.shape[2])
        return self.core(x[:, :2], x, v, real(mask, x))


class TaggerForm(CollectionsForm):
    """weaver's ``ParticleTransformerTagger``: particles and secondary vertices side by side."""

    def __init__(self, original, dtype):
        embeds = (original.pf_embed, original.sv_embed)
        super().__init__(
            ("pf", "sv"),
            [FoldedEmbed(embed_twin(embed), dtype) for embed in embeds],
            fold(part_twin(original.part), dtype),
        )

    def forward(self, pf_x, pf_v=None, pf_mask=None, sv_x=None, sv_v=None, sv_mask=None):
        """Features (B, C, N), four-vectors and masks of both to (B, num_classes)."""
        return super().forward(pf_x, pf_v, real(pf_mask, pf_x), sv_x, sv_v, real(sv_mask, sv_x))


class GraphForm(Form):
    """weaver's ``ParticleNet``."""

    def __init__(self, original, dtype):
        super().__init__(fold(graph_twin(original), dtype))

    def forward(self, points, features, mask=None):
        """Points (B, 2, N), features (B, C, N) and mask (B, 1, N) to (B, num_classes)."""
        vectors = features.new_zeros(len(features), 4, features.shape[2])
        return self.core(points, features, vectors, real(mask, features))


FORMS = {
    ("ParticleTransformer", "ParticleTransformer"): PartForm,
    ("ParticleTransformer", "ParticleTransformerTagger"): TaggerForm,
    ("ParticleNet", "ParticleNet"): GraphForm,
}
# weaver's networks that have no form.
OTHERS = {
    ("ParticleTransformer", "ParticleTransformerTaggerWithExtraPairFeatures"),
    ("ParticleNet", "ParticleNetTagger"),
}


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


def _key(module):
    """Names of the file and of the class that a module has of weaver's networks, or None."""
    for cls in type(module).__mro__:
        package, _, file = cls.__module__.rpartition(".")
        key = (file, cls.__name__)
        if package == "weaver.nn.model" and (key in FORMS or key in OTHERS):
            return key
    return None


def rewrite(frozen, dtype=torch.float32):
    """Rewrite a network in which :func:`find` finds some of weaver's.

    Parameters
    ----------
    frozen : nn.Module
        See :func:`jetzoo.engine.folding.freeze`; left as it is.
    dtype : torch.dtype
        Of the matrix products.

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
    key = _key(original)
    check_own(original)
    if key not in FORMS:
        raise Unsupported(f"the engine does not know weaver's {key[1]}")
    return FORMS[key](original, dtype).eval()
