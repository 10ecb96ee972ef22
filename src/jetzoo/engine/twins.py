"""Networks of this project with the weights of weaver-core's own (``weaver.nn.model`` of 0.5).

A twin knows some options only; which ones a network has is read from its modules. What is not
checked here, its state dict and the proof of :mod:`jetzoo.engine.stock` check.
"""

import copy

from torch import nn

from ..modules import unmodified
from ..nn.embed import Embed
from ..nn.pairs import PairEmbed
from ..nn.transformer import ParticleTransformer
from ..repository import network_module


class Unsupported(Exception):
    """Why a network of weaver's has no fast form, as the end of a sentence."""


def check_own(original):
    """Raise :class:`Unsupported` if a module computes something else than its class in weaver."""
    for name, module in original.named_modules():
        base = next(
            c for c in type(module).__mro__ if c.__module__.split(".")[0] in ("torch", "weaver")
        )
        if not unmodified(module, base):
            raise Unsupported(
                f"its module {name or type(module).__name__!r} does not compute what weaver's "
                f"{base.__name__} does (a forward of its own, a hook, or another setting)"
            )


def require(condition, option):
    """Raise :class:`Unsupported` with the name of an option unless the condition holds."""
    if not condition:
        raise Unsupported(f"the engine does not know its option {option}")


def are(modules, *kinds):
    """Whether modules are of these kinds, repeated."""
    repeated = kinds * (len(modules) // len(kinds) + 1)
    return all(isinstance(m, kind) for m, kind in zip(modules, repeated, strict=False))


def load_twin(twin, original, **missing):
    """Give a twin the weights, norms and device of the original."""
    state = {**original.state_dict(), **missing}
    try:
        twin.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [x.strip().rstrip(".") for x in str(error).splitlines()]
        raise Unsupported(
            f"its weights are not those of the twin ({lines[min(1, len(lines) - 1)]})"
        ) from error
    originals = dict(original.named_modules())
    for name, module in twin.named_modules():
        if hasattr(module, "eps") and name in originals:
            module.eps = originals[name].eps
    return twin.to(next(original.parameters()).device).eval().requires_grad_(False)


def embed_twin(embed):
    """The twin of weaver's ``Embed``."""
    require(not embed.use_conv_embed, "use_conv_embed")
    require(are(embed.embed, nn.LayerNorm, nn.Linear, nn.GELU), "activation")
    dims = [layer.out_features for layer in embed.embed[1::3]]
    return load_twin(Embed(embed.input_bn.num_features, dims), embed)


def part_twin(part):
    """The twin of weaver's ``ParticleTransformer``."""
    require(not part.for_segmentation, "for_segmentation")
    require(not part.include_global_token, "include_global_token")
    require(len(part.blocks) > 0, "num_layers=0")
    require(part.cls_blocks is not None, "num_cls_layers=0")
    require(isinstance(part.norm, nn.LayerNorm), "use_rmsnorm (version 3)")
    blocks = [*part.blocks, *part.cls_blocks]
    for block in blocks:
        check_block(block)
    first = blocks[0]
    require(len({block.num_heads for block in blocks}) == 1, "num_heads of cls_block_params")
    require(len({block.ffn_dim for block in blocks}) == 1, "ffn_ratio of cls_block_params")
    options = {}
    if hasattr(part.embed, "input_bn"):
        embed = embed_twin(part.embed)
        options["embed_dims"] = [layer.out_features for layer in embed.embed[1::3]]
        width = part.embed.input_bn.num_features
    else:
        options["embed_dims"], width = None, first.embed_dim
    if part.pair_embed is None:
        options["pair_bias"] = False
    else:
        require(all(part.block_ids_with_attn_mask), "block_ids_with_attn_mask")
        options |= pair_options(part.pair_embed)
    twin = ParticleTransformer(
        width,
        None,
        num_heads=first.num_heads,
        num_layers=len(part.blocks),
        num_cls_layers=len(part.cls_blocks),
        ffn_ratio=first.ffn_dim // first.embed_dim,
        **options,
    )
    twin.fc = copy.deepcopy(part.fc)
    twin.for_inference = part.for_inference and part.fc is not None
    # A scale that is switched off is one.
    ones = {
        f"{name}.{scale}": first.fc1.weight.new_ones(size)
        for name, block in part.named_modules()
        if hasattr(block, "c_attn")
        for scale, size in (("c_attn", block.num_heads), ("w_resid", block.embed_dim))
        if getattr(block, scale) is None
    }
    return load_twin(twin, part, **ones)


def check_block(block):
    """Check the options of weaver's ``Block``."""
    require(block.fc1_g is None, "activation='swiglu' (version 2)")
    require(isinstance(block.act, nn.GELU), "activation")
    require(isinstance(block.pre_attn_norm, nn.LayerNorm), "use_rmsnorm (version 3)")
    require(isinstance(block.post_attn_norm, nn.LayerNorm), "scale_attn=False")
    require(isinstance(block.post_fc_norm, nn.LayerNorm), "scale_fc=False")
    require(block.c_mask is None, "scale_attn_mask")
    require(are((block.ls1, block.ls2), nn.Identity), "layer_scale_init_values")
    require(are((block.attn.q_norm, block.attn.k_norm), nn.Identity), "use_qk_norm")
    require(
        not (block.attn.headwise_attn_output_gate or block.attn.elementwise_attn_output_gate),
        "headwise_attn_output_gate or elementwise_attn_output_gate",
    )
    require(block.fc1.bias is not None, "use_bias=False")


def pair_options(pair):
    """The options of the twin of weaver's ``PairEmbed``."""
    require(pair.pairwise_input_dim == 0, "pair_extra_dim")
    kind = pair.pairwise_lv_fts.func.__name__
    require(kind == "pairwise_lv_fts_pp", "pair_input_type")
    require(pair.pairwise_lv_dim == 4, "pair_input_dim")
    layers = pair.embed[1:]
    require(all(conv.bias is not None for conv in layers[::3]), "use_bias=False")
    require(are(layers, nn.Conv1d, nn.BatchNorm1d, nn.GELU), "activation")
    return {
        "pair_embed_dims": [layer.out_channels for layer in layers[:-3:3]],
        "use_pre_activation_pair": len(layers) % 3 == 2,
        "remove_self_pair": pair.remove_self_pair,
    }


def pair_twin(pair):
    """The twin of weaver's ``PairEmbed`` alone."""
    options = pair_options(pair)
    dims = (*options.pop("pair_embed_dims"), pair.out_dim)
    return load_twin(PairEmbed(dims, **options), pair)


def graph_twin(net):
    """The twin of weaver's ``ParticleNet``."""
    require(not net.for_segmentation, "for_segmentation")
    require(net.use_counts, "use_counts=False")
    first = net.edge_convs[0].convs[0]
    width = first.in_channels // 2
    twin = network_module("PN").ParticleNet(
        width,
        net.fc[-1].out_features,
        conv_params=[
            (block.k, [conv.out_channels for conv in block.convs]) for block in net.edge_convs
        ],
        fc_params=[(layer[0].out_features, layer[2].p) for layer in net.fc[:-1]],
        use_fusion=net.use_fusion,
        for_inference=net.for_inference,
    )
    norm = {}
    if not net.use_fts_bn:  # a norm that changes nothing
        twin.mod.bn_fts.eps = 0.0
        norm = {f"bn_fts.{name}": x for name, x in twin.mod.bn_fts.state_dict().items()}
    load_twin(twin.mod, net, **norm)
    return twin.eval()
