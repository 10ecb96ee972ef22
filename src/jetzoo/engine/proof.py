"""Whether a rewritten network gives the logits of the original."""

import copy
import inspect

import torch

from .stock import find
from .twins import Unsupported

# Largest difference of a logit between the rewritten network in float32 and the original in
# float64, relative to logits above one.
TOLERANCE = 1e-4

# Particles of each jet of the proof, and of its secondary vertices.
LENGTHS = {"pf": (64, 17, 40, 3, 1), "sv": (2, 5, 0, 1, 3)}

KINDS = {
    "points": ("point", "coord"),
    "features": ("feature", "fts"),
    "vectors": ("vector", "lorentz", "p4"),
    "mask": ("mask",),
}
SHORT_NAMES = {"x": "features", "v": "vectors"}


@torch.no_grad()
def prove(original, rewritten):
    """Raise :class:`Unsupported` unless both give the same on jets of several lengths.

    Parameters
    ----------
    original, rewritten : nn.Module
        Frozen; the rewritten one computes in float32.
    """
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
        expected = copy.deepcopy(original).double()(**{k: x.double() for k, x in given.items()})
        found = rewritten(**given)
        difference = (found - expected).abs() / expected.abs().clamp(min=1)
    except Unsupported:
        raise
    except Exception as error:  # whatever the code of a user raises
        text = next(iter(str(error).splitlines()), "")
        raise Unsupported(
            f"it cannot run on jets of a proof ({type(error).__name__}: {text})"
        ) from error
    if found.shape != expected.shape or not (difference <= TOLERANCE).all():
        raise Unsupported(
            f"{type(original).__name__} gives other logits than its rewritten form "
            f"(by {float(difference.max()):.1g})"
        )


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
