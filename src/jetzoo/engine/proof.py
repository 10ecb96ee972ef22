"""Whether a rewritten network gives the logits of the original."""

import copy
import inspect
import warnings

import torch
from torch import nn

from .stock import find
from .twins import Unsupported

# Largest difference of a logit between the rewritten network in float32 and the original in
# float64, relative to logits above one.
TOLERANCE = 1e-4

# Features of pairs that are given one by one, for each jet.
PAIRS = 300

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
    try:
        seen = {}
        stock = find(original).values()
        for module in stock:
            seen = statistics(module) | seen
        jets = probe_jets(seen, next(original.parameters()).device)
        if any(isinstance(getattr(module, "embed", None), nn.Identity) for module in stock):
            jets["pf", "features"] = jets["pf", "features"].transpose(1, 2)  # tokens (B, N, D)
        if any(module.for_inference for module in original.modules() if hasattr(module, "trimmer")):
            jets.pop(("uu", "index"), None)  # weaver takes these features of all pairs only
        if any(getattr(module, "pairwise_lv_dim", 1) == 0 for module in original.modules()):
            jets.pop(("pf", "vectors"))  # weaver fails on them
        given = arguments(original, jets)
        doubled = {k: x.double() if x.is_floating_point() else x for k, x in given.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the user's code
            expected = in_float64(original)(**doubled)
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


def in_float64(network):
    """A copy of a network that computes the same function in float64.

    The default ``eps`` of RMSNorm depends on the dtype: it stays that of the network.
    """
    double = copy.deepcopy(network).double()
    for module in double.modules():
        if getattr(module, "eps", 0) is None:
            module.eps = torch.finfo(torch.float32).eps
    return double


def statistics(network):
    """What one of weaver's networks has seen in its training.

    Returns
    -------
    dict of str to (Tensor, Tensor)
        Mean and spread (C,) of the features of ``"pf"``, and of ``"sv"`` and of pairs (``"uu"``)
        where the network takes these.
    """
    part = getattr(network, "part", network)
    norms = {
        "pf": ("pf_embed.input_bn", "pf_conv.conv.0", "embed.input_bn", "bn_fts"),
        "sv": ("sv_embed.input_bn", "sv_conv.conv.0"),
        "uu": ("part.pair_embed.fts_embed.0", "pair_embed.fts_embed.0"),
    }
    modules = dict(network.named_modules())
    found = {}
    for group, names in norms.items():
        for norm in filter(None, map(modules.get, names)):
            found[group] = norm.running_mean.cpu(), norm.running_var.cpu().sqrt()
    if "pf" not in found:  # tokens, or features that are not normalised
        convolutions = getattr(network, "edge_convs", None)
        width = convolutions[0].convs[0].in_channels // 2 if convolutions else len(part.norm.weight)
        found["pf"] = torch.zeros(width), torch.ones(width)
    return found


def probe_jets(seen, device):
    """Jets of pions around an axis, with features as a network has seen them in its training.

    Parameters
    ----------
    seen : dict of str to (Tensor, Tensor)
        See :func:`statistics`.
    device : torch.device

    Returns
    -------
    dict of (str, str) to Tensor
        ``points``, ``features``, ``vectors`` and ``mask`` of each group; of ``"uu"``, features of
        all pairs ``dense``, of some pairs ``features``, and which these are, ``index``.
    """
    draw = torch.Generator().manual_seed(7)
    jets = {}
    for group, (mean, spread) in seen.items():
        lengths = torch.tensor(LENGTHS["sv" if group == "sv" else "pf"])
        batch_size, length = shape = (len(lengths), int(lengths.max()))

        def features(size, mean=mean, spread=spread, batch_size=batch_size):
            noise = torch.randn(batch_size, len(mean), size, generator=draw)
            return (mean[:, None] + spread[:, None] * noise).float()

        if group == "uu":
            jets["uu", "dense"] = features(length**2).unflatten(2, (length, length))
            jets["uu", "features"] = features(PAIRS)
            jets["uu", "index"] = torch.randint(length + 1, (batch_size, 2, PAIRS), generator=draw)
            continue
        deta, dphi = 0.2 * torch.randn(2, *shape, generator=draw)
        pt = 0.5 - 10 * torch.rand(shape, generator=draw).clamp(min=1e-3).log()
        px, py, pz = pt * dphi.cos(), pt * dphi.sin(), pt * deta.sinh()
        energy = (px**2 + py**2 + pz**2 + 0.13957**2).sqrt()
        mask = torch.arange(length) < lengths[:, None]
        jets[group, "mask"] = mask[:, None].float()
        for kind, x in (
            ("points", torch.stack((deta, dphi), 1)),
            ("features", features(length)),
            ("vectors", torch.stack((px, py, pz, energy), 1)),
        ):
            jets[group, kind] = x * mask[:, None]
    return {key: x.to(device) for key, x in jets.items()}


def arguments(network, jets):
    """Keyword arguments of the forward pass of a network, by the names that it has for them."""
    given = {}
    parameters = inspect.signature(network.forward).parameters
    sparse = ("uu", "index") in jets and any("idx" in name for name in parameters)
    for name, parameter in parameters.items():
        group = "sv" if name.startswith("sv_") else "pf"
        kind = _kind(name.removeprefix("pf_").removeprefix("sv_"))
        if "uu" in name:
            group, kind = "uu", "index" if "idx" in name else "features" if sparse else "dense"
        if (group, kind) in jets:
            given[name] = jets[group, kind]
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            raise Unsupported(f"the engine does not know what its input {name!r} is")
    return given


def _kind(name):
    kinds = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
    return SHORT_NAMES.get(name) or next(kinds, None)
