"""weaver-core's own networks (``weaver.nn.model`` of version 0.5), rewritten for the engine.

Each has a twin of this project with the same state dict (:mod:`jetzoo.engine.twins`), which is what
the engine folds. Then the rewritten network proves itself: on jets of several lengths its logits in
float32, and those of the twin in float64, are those of the original in float64.
"""

import copy
import inspect

import torch
from torch import nn

from .folding import fold
from .layers import FoldedEmbed
from .twins import Unsupported, check_own, embed_twin, graph_twin, part_twin

# Largest difference of a logit between the twin and the original in float64, and between the
# rewritten network in float32 and the original in float64.
EXACT, CLOSE = 1e-6, 1e-4

# Rows that go through an embedding together, so that memory does not grow with the batch.
EMBEDDED_ROWS = 4096

# Particles of each jet of the proof, and of its secondary vertices.
LENGTHS = {"pf": (64, 17, 40, 3, 1), "sv": (2, 5, 0, 1, 3)}

KINDS = {
    "points": ("point", "coord"),
    "features": ("feature", "fts"),
    "vectors": ("vector", "lorentz", "p4"),
    "mask": ("mask",),
}
SHORT_NAMES = {"x": "features", "v": "vectors"}


class WeaverForm(nn.Module):
    """One of weaver's networks, called as it is there, around another that computes it.

    Parameters
    ----------
    engine : nn.Module
        Called as ``engine(points, features, lorentz_vectors, mask)``, gives logits.
    original : nn.Module
        Of weaver's.
    """

    def __init__(self, engine, original):
        super().__init__()
        self.engine = engine
        core = getattr(original, "part", original)
        self.for_inference = core.for_inference
        self.has_pairs = getattr(core, "pair_embed", None) is not None

    def fold(self, dtype):
        """Fold the twin, which is frozen."""
        self.engine = fold(self.engine, dtype)

    def logits(self, points, features, vectors, mask):
        """(B, 2, N), (B, C, N), (B, 4, N) and (B, 1, N) to what the network gives, (B, classes)."""
        out = self.engine(points, features, vectors, mask)
        return out.softmax(1) if self.for_inference else out


class PartForm(WeaverForm):
    """weaver's ``ParticleTransformer``."""

    @classmethod
    def of(cls, original):
        """The form whose engine is the twin."""
        return cls(part_twin(original), original)

    def forward(self, x, v=None, mask=None, uu=None, uu_idx=None):
        """Features (B, C, N), four-vectors (B, 4, N) and mask (B, 1, N) to (B, num_classes)."""
        if uu is not None or uu_idx is not None:
            raise TypeError("this network was built without features of pairs (pair_extra_dim)")
        if v is None:
            if self.has_pairs:
                raise TypeError("the fast form of ParticleTransformer needs the four-vectors v")
            v = x.new_zeros(len(x), 4, x.shape[2])
        return self.logits(x[:, :2], x, v, real(mask, x))


class TaggerForm(WeaverForm):
    """weaver's ``ParticleTransformerTagger``: particles and secondary vertices side by side."""

    def __init__(self, engine, original, pf_embed, sv_embed):
        super().__init__(engine, original)
        self.pf_embed = pf_embed
        self.sv_embed = sv_embed

    @classmethod
    def of(cls, original):
        """The form whose engine and embeddings are the twins."""
        embeds = [embed_twin(embed) for embed in (original.pf_embed, original.sv_embed)]
        return cls(part_twin(original.part), original, *embeds)

    def fold(self, dtype):
        """Fold the twins, which are frozen."""
        super().fold(dtype)
        self.pf_embed = FoldedEmbed(self.pf_embed, dtype)
        self.sv_embed = FoldedEmbed(self.sv_embed, dtype)

    def forward(self, pf_x, pf_v=None, pf_mask=None, sv_x=None, sv_v=None, sv_mask=None):
        """Features (B, C, N), four-vectors and masks of both to (B, num_classes)."""
        masks = real(pf_mask, pf_x), real(sv_mask, sv_x)
        tokens = [
            on_real(embed, x, mask)
            for embed, x, mask in zip(
                (self.pf_embed, self.sv_embed), (pf_x, sv_x), masks, strict=True
            )
        ]
        tokens, vectors, mask = (torch.cat(parts, dim=2) for parts in (tokens, (pf_v, sv_v), masks))
        return self.logits(tokens[:, :2], tokens, vectors, mask)


class GraphForm(WeaverForm):
    """weaver's ``ParticleNet``."""

    @classmethod
    def of(cls, original):
        """The form whose engine is the twin."""
        return cls(graph_twin(original), original)

    def forward(self, points, features, mask=None):
        """Points (B, 2, N), features (B, C, N) and mask (B, 1, N) to (B, num_classes)."""
        vectors = features.new_zeros(len(features), 4, features.shape[2])
        return self.logits(points, features, vectors, real(mask, features))


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
    """The mask of weaver as bool, (B, 1, N); without one all particles are real."""
    return torch.ones_like(x[:, :1], dtype=torch.bool) if mask is None else mask.bool()


def on_real(embed, x, mask):
    """Tokens (B, D, N) of features (B, C, N), zero in the padding."""
    where = mask[:, 0]  # (B, N)
    rows = x.transpose(1, 2)[where]  # (T, C)
    rows = torch.cat([embed(part) for part in rows.split(EMBEDDED_ROWS)])
    out = rows.new_zeros(*where.shape, rows.shape[1])
    out[where] = rows
    return out.transpose(1, 2)


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
        if not inside and any(map(_key, type(module).__mro__)):
            found[name] = module
    return found


def _key(cls):
    """Names of the file and of the class, if it is one of weaver's networks."""
    package, _, file = cls.__module__.rpartition(".")
    key = (file, cls.__name__)
    known = package == "weaver.nn.model" and (key in FORMS or key in OTHERS)
    return key if known else None


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
        A copy with a folded :class:`WeaverForm` in place of each of them.

    Raises
    ------
    Unsupported
        If a network has an option that the engine does not know.
    """
    forms = {name: folded_form(module, dtype) for name, module in find(frozen).items()}
    if "" in forms:
        return forms[""].eval()
    # What is replaced need not be copied.
    rewritten = copy.deepcopy(
        frozen, {id(frozen.get_submodule(name)): nn.Identity() for name in forms}
    )
    for name, form in forms.items():
        rewritten.set_submodule(name, form)
    return rewritten.eval()


def folded_form(original, dtype):
    """The folded form of one of weaver's networks, whose twin has proved itself in float64."""
    key = next(filter(None, map(_key, type(original).__mro__)))
    check_own(original)
    if key not in FORMS:
        raise Unsupported(f"the engine does not know weaver's {key[1]}")
    form = FORMS[key].of(original)
    form.eval().requires_grad_(False)
    compare(original, copy.deepcopy(form).double(), torch.float64, EXACT)
    form.fold(dtype)
    return form.eval()


def forms_of(network):
    """List the forms within a rewritten network."""
    return [
        module
        for module in network.modules()
        if hasattr(module, "engine") and hasattr(module, "logits")
    ]


# The proof.


def prove(original, rewritten):
    """Raise :class:`Unsupported` unless both give the same on jets of several lengths.

    Parameters
    ----------
    original, rewritten : nn.Module
        Frozen; the rewritten one computes in float32.
    """
    compare(original, rewritten, torch.float32, CLOSE)


@torch.no_grad()
def compare(original, other, dtype, tolerance):
    """Compare a network in some dtype with the original in float64."""
    widths = {
        name: norms[0]
        for name, norms in (
            ("pf", _input_norms(original, "pf")),
            ("sv", _input_norms(original, "sv")),
        )
        if norms
    }
    jets = probe_jets(widths, next(original.parameters()).device)
    try:
        given = arguments(original, jets)
        expected = copy.deepcopy(original).double()(
            **{k: _to(x, torch.float64) for k, x in given.items()}
        )
        found = other(**{k: _to(x, dtype) for k, x in given.items()})
        difference = (found - expected).abs() / expected.abs().clamp(min=1)
    except Unsupported:
        raise
    except Exception as error:  # whatever the code of a user raises
        text = next(iter(str(error).splitlines()), "")
        raise Unsupported(
            f"it cannot run on jets of a proof ({type(error).__name__}: {text})"
        ) from error
    if found.shape != expected.shape or not (difference <= tolerance).all():
        raise Unsupported(
            f"{type(original).__name__} gives other logits than its rewritten form "
            f"(by {float(difference.max()):.1g})"
        )


def _to(x, dtype):
    return x if x.dtype == torch.bool else x.to(dtype)


def _input_norms(network, group):
    """Batch norms of the features of a group in weaver's networks within a network."""
    found = []
    for module in find(network).values():
        if hasattr(module, "pf_embed"):
            found.append(getattr(module, f"{group}_embed").input_bn)
        elif group == "pf":
            found.append(getattr(module, "bn_fts", None) or getattr(module.embed, "input_bn", None))
    return found


def probe_jets(norms, device):
    """Jets of pions around an axis, with features as a network has seen them in its training.

    Parameters
    ----------
    norms : dict of str to nn.BatchNorm1d
        Of the features of each group.
    device : torch.device

    Returns
    -------
    dict of str to dict of str to Tensor
        ``points``, ``features``, ``vectors`` and ``mask`` of each group.
    """
    draw = torch.Generator().manual_seed(7)
    jets = {}
    for group, norm in norms.items():
        lengths = torch.tensor(LENGTHS[group])
        shape = (len(lengths), int(lengths.max()))
        deta, dphi = 0.2 * torch.randn(2, *shape, generator=draw)
        pt = 0.5 - 10 * torch.rand(shape, generator=draw).clamp(min=1e-3).log()
        px, py, pz = pt * dphi.cos(), pt * dphi.sin(), pt * deta.sinh()
        energy = (px**2 + py**2 + pz**2 + 0.13957**2).sqrt()
        if norm is None:
            raise Unsupported("the engine does not know its option embed_dims=[]")
        mean, spread = norm.running_mean.cpu(), norm.running_var.cpu().sqrt()
        noise = torch.randn(len(lengths), len(mean), shape[1], generator=draw)
        mask = torch.arange(shape[1]) < lengths[:, None]
        found = {
            "points": torch.stack((deta, dphi), 1),
            "features": (mean[:, None] + spread[:, None] * noise).float(),
            "vectors": torch.stack((px, py, pz, energy), 1),
        }
        found = {name: x * mask[:, None] for name, x in found.items()} | {
            "mask": mask[:, None].float()
        }
        jets[group] = {name: x.to(device) for name, x in found.items()}
    return jets


def arguments(network, jets):
    """Keyword arguments of the forward pass of a network, by the names that it has for them."""
    given = {}
    for name, parameter in inspect.signature(network.forward).parameters.items():
        group = "sv" if name.startswith("sv_") else "pf"
        kind = _kind(name.removeprefix("pf_").removeprefix("sv_"))
        if kind is not None and group in jets:
            given[name] = jets[group][kind]
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            raise Unsupported(f"the engine does not know what its input {name!r} is")
    return given


def _kind(name):
    kinds = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
    return SHORT_NAMES.get(name) or next(kinds, None)
