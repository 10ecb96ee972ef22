"""Network files as weaver's users write them, around its own networks, and what they come with."""

import torch
from stock import stirred
from zoo import CONFIG

import jetzoo.tagger

HEAD = """
import torch
from weaver.nn.model.{file} import {network}


class Wrapper(torch.nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.mod = {network}(**kwargs)

    @torch.jit.ignore
    def no_weight_decay(self):
        return {{"mod.cls_token"}}
"""
TAIL = """

def get_model(data_config, **kwargs):
    cfg = dict(num_classes=len(data_config.label_value), trim=True, **SIZES, **dims(data_config))
    cfg.update(**kwargs)
    model = Wrapper(**cfg)
    model_info = {
        "input_names": list(data_config.input_names),
        "input_shapes": {k: ((1,) + s[1:]) for k, s in data_config.input_shapes.items()},
        "output_names": ["softmax"],
        "dynamic_axes": {
            **{k: {0: "N", 2: "n_" + k.split("_")[0]} for k in data_config.input_names},
            **{"softmax": {0: "N"}},
        },
    }
    return model, model_info


def get_loss(data_config, **kwargs):
    return torch.nn.CrossEntropyLoss()
"""
PART = """
SIZES = dict(embed_dims=[32, 64, 32], pair_embed_dims=[16], num_heads=4, num_layers=2)
"""
GRAPH = """
SIZES = dict(conv_params=[(6, (16, 16)), (6, (24, 24))], fc_params=[(16, 0.1)])
"""
FOUR = """
    def forward(self, points, features, lorentz_vectors, mask):
        return self.mod(%s)
"""
SIX = """
    def forward(self, pf_points, pf_features, pf_vectors, pf_mask,
                sv_points, sv_features, sv_vectors, sv_mask):
        return self.mod(%s)
"""
ONE = """

def dims(data_config):
    return {"%s": len(data_config.input_dicts["pf_features"])}
"""
TWO = """

def dims(data_config):
    return {"pf_%s": len(data_config.input_dicts["pf_features"]),
            "sv_%s": len(data_config.input_dicts["sv_features"])}
"""
TAGGED = "pf_features, pf_vectors, pf_mask, sv_features, sv_vectors, sv_mask"
FILES = {
    "ParticleTransformer": (
        FOUR % "features, v=lorentz_vectors, mask=mask" + ONE % "input_dim" + PART
    ),
    "ParticleNet": FOUR % "points, features, mask" + ONE % "input_dims" + GRAPH,
    "ParticleTransformerTagger": SIX % TAGGED + TWO % (("input_dim",) * 2) + PART,
    "ParticleNetTagger": (
        SIX % "pf_points, pf_features, pf_mask, sv_points, sv_features, sv_mask"
        + TWO % (("features_dims",) * 2)
        + GRAPH
    ),
}


def with_vertices():
    """A data config whose second collection is the three first particles of each jet."""
    text = CONFIG.read_text()
    start, stop = text.index("   pf_points:"), text.index("labels:")
    second = text[start:stop].replace("pf_", "sv_").replace("part_", "first_")
    second = second.replace("length: 128", "length: 3")
    names = sorted({word.strip("[,-") for word in second.split() if "first_" in word})
    made = "".join(f"   {x}: {x.replace('first_', 'part_')}[:, :3]\n" for x in names)
    text = text[:stop].rstrip() + "\n" + second + text[stop:]
    return text.replace("preprocess:", f"{made}\npreprocess:")


def write(folder, network, **options):
    """Network file, checkpoint and data config."""
    path, checkpoint = folder / f"example_{network}.py", folder / "net.pt"
    module = "ParticleNet" if network.startswith("ParticleNet") else "ParticleTransformer"
    path.write_text(HEAD.format(file=module, network=network) + FILES[network] + TAIL)
    config = folder / "data.yaml"
    config.write_text(with_vertices() if network.endswith("Tagger") else CONFIG.read_text())
    torch.manual_seed(2)
    tagger = jetzoo.tagger.untrained(path, config, "cpu", **options)
    torch.save(stirred(tagger.model).state_dict(), checkpoint)
    return path, checkpoint, config
