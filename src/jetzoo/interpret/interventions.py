"""Values inside a network that runs, seen and replaced: heads, feed-forward parts, pair bias."""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from jetzoo.attention.reference import weights as attention_weights

from .recorder import Site, set_on, sites, transformer


@dataclass(frozen=True)
class Node:
    """A part of a network that a circuit may take.

    Attributes
    ----------
    what : {"head", "feed_forward", "pair_bias"}
        The output of a head; of a feed-forward part; the pair bias as one layer gets it.
    kind : {"particle", "class"}
    layer : int
        From 0, within its kind.
    head : int or None
        From 0; None for what is no head.
    """

    what: str
    kind: str
    layer: int
    head: int | None = None

    @property
    def place(self):
        """What is seen and replaced together: the key of the values of an :func:`edited` run."""
        return self.what, Site(self.kind, self.layer)

    @property
    def name(self):
        """Name in tables and figures, counted from 1: ``L2.H3``, ``C1.H8``, ``L2.FF``, ``L2.U``."""
        end = {"head": f"H{(self.head or 0) + 1}", "feed_forward": "FF", "pair_bias": "U"}
        return f"{Site(self.kind, self.layer).name}.{end[self.what]}"

    @property
    def depth(self):
        """Order in which layers work: particle layers first."""
        return self.kind == "class", self.layer


def nodes(model):
    """List the nodes of a network, in the order in which they work.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    list of Node
    """
    core, places = transformer(model), sites(model)
    found = []
    for kind, blocks in (("particle", core.blocks), ("class", core.cls_blocks)):
        for layer in range(len(blocks)):
            attn = places.get(Site(kind, layer))
            if attn is not None:
                if kind == "particle" and core.pair_embed is not None:
                    found.append(Node("pair_bias", kind, layer))
                found += [Node("head", kind, layer, head) for head in range(attn.num_heads)]
            found.append(Node("feed_forward", kind, layer))
    return found


@contextmanager
def edited(model, edit, places=None, known=None):
    """While open, values of a network are what ``edit`` makes of them.

    Parameters
    ----------
    model : nn.Module
    edit : callable
        ``edit(place, value)`` gives the value to go on with; the place of :class:`Node`, and a
        tensor of padded jets: outputs of heads (B, H, L, d), of feed-forward parts (B, L, D), or
        the pair bias (B, H, n, n).
    places : collection, optional
        All that are edited; the layers without any run as fast as ever. By default all there are.
    known : dict, optional
        Outputs of heads by their place. They are edited in place of those that the attention would
        give, which is not computed.
    """
    core, attentions, known = transformer(model), sites(model), known or {}
    if places is None:
        places = {node.place for node in nodes(model)}
    attentions = {
        site: attn
        for site, attn in attentions.items()
        if ("head", site) in places or ("pair_bias", site) in places
    }

    def attend_at(site, attn):
        def attend(q, k, v, bias, mask):
            q, k, v = map(attn.heads, (q, k, v))
            if bias is not None:
                bias = edit(("pair_bias", site), bias)
            out = attention_weights(q, k, bias, mask) @ v
            return edit(("head", site), out).transpose(1, 2).flatten(2)

        return attend

    layouts = []

    def keep_layout(module, args):
        layouts.append(args[1])

    def feed_forward_at(site):
        def hook(module, args, output):
            if site.kind == "class":
                return edit(("feed_forward", site), output)
            layout = layouts[-1]
            return layout.unpad(edit(("feed_forward", site), layout.pad(output)))

        return hook

    def known_at(site, attn):
        def forward(*args):
            out = edit(("head", site), known["head", site]).transpose(1, 2).flatten(2)
            return attn.out_proj(out if site.kind == "class" else args[1].unpad(out))

        return forward

    attends = {a: attend_at(s, a) for s, a in attentions.items() if ("head", s) not in known}
    forwards = {a: known_at(s, a) for s, a in attentions.items() if ("head", s) in known}
    with ExitStack() as stack:
        stack.enter_context(set_on(attends, "attend"))
        stack.enter_context(set_on(forwards, "forward"))
        for kind, blocks in (("particle", core.blocks), ("class", core.cls_blocks)):
            for layer, block in enumerate(blocks):
                site = Site(kind, layer)
                if ("feed_forward", site) not in places:
                    continue
                if kind == "particle":
                    stack.callback(block.register_forward_pre_hook(keep_layout).remove)
                stack.callback(block.fc2.register_forward_hook(feed_forward_at(site)).remove)
        yield


def remembering(values):
    """An edit that changes nothing and puts values into a dict by their place."""

    def edit(place, value):
        values[place] = value
        return value

    return edit


def replacing(changed, source):
    """An edit that gives nodes the values of a source.

    Parameters
    ----------
    changed : iterable of Node
    source : callable
        ``source(place, value)`` gives what broadcasts against the value.
    """
    by_place = {}
    for node in changed:
        by_place.setdefault(node.place, []).append(node)

    def edit(place, value):
        for node in by_place.get(place, ()):
            other = source(place, value).expand_as(value)
            if node.head is None:
                return other
            value = value.clone()
            value[:, node.head] = other[:, node.head]
        return value

    return edit


class Means:
    """Mean values of a network over jets and their particles, for mean ablation.

    They are per head, (1, H, 1, d) and (1, H, 1, 1), or (1, 1, D) for feed-forward parts.
    """

    def __init__(self):
        self.sums, self.counts = {}, {}

    def update(self, values, mask):
        """Add the values of a batch with particles (B, n)."""
        for place, value in values.items():
            what, site = place
            real = mask if site.kind == "particle" else mask.new_ones(len(mask), 1)
            if what == "pair_bias":
                real = mask[:, None, :, None] & mask[:, None, None, :]  # (B, 1, n, n)
                axes = (0, 2, 3)
            else:
                real = real[:, None, :, None] if what == "head" else real[:, :, None]
                axes = (0, 2) if what == "head" else (0, 1)
            total = value.double().masked_fill(~real, 0).sum(axes, keepdim=True)
            self.sums[place] = self.sums.get(place, 0) + total
            self.counts[place] = self.counts.get(place, 0) + int(real.sum())

    def add(self, other):
        """Add the values of other means."""
        for place, total in other.sums.items():
            self.sums[place] = self.sums.get(place, 0) + total
            self.counts[place] = self.counts.get(place, 0) + other.counts[place]

    def __call__(self, place, value):
        """The mean at a place, as a source of :func:`replacing`."""
        return (self.sums[place] / max(self.counts[place], 1)).to(value.dtype)


def zeros(place, value):
    """Zero, as a source of :func:`replacing`."""
    return value.new_zeros(())


def resampled(values, mask, means):
    """Values of the next jet of the batch, as a source of :func:`replacing`.

    Particles are paired by their rank in pT; where the next jet has none, the mean stands.

    Parameters
    ----------
    values : dict
        Of the same batch, see :func:`remembering`.
    mask : Tensor of bool, (B, n)
    means : Means
    """
    other = mask.roll(1, 0)

    def source(place, value):
        what, site = place
        moved = values[place].roll(1, 0)
        if site.kind == "class":
            return moved
        if what == "pair_bias":
            there = other[:, None, :, None] & other[:, None, None, :]
        else:
            there = other[:, None, :, None] if what == "head" else other[:, :, None]
        return torch.where(there, moved, means(place, value))

    return source
