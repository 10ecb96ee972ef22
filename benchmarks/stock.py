"""Speed of weaver-core's own networks: as they are, accelerated, and beside the zoo's ParT.

    python benchmarks/stock.py
    python benchmarks/stock.py --data jets.npz --networks ParticleTransformer ParticleNet

All forms of a network have the same weights and get the same jets, one call of each in turn. The
error of the logits is that against weaver's network in float64: in float32, weaver's own pair
features of collinear particles are noise.
Writes ``results/stock_cpu.csv`` beside this file.
"""

import statistics
from pathlib import Path

import torch
from common import (
    argument_parser,
    first,
    median_ratio,
    read_jets,
    time_on,
    warm_up,
    write_csv,
)
from torch import nn
from tqdm import tqdm
from weaver.nn.model.ParticleNet import ParticleNet, ParticleNetTagger
from weaver.nn.model.ParticleTransformer import ParticleTransformer, ParticleTransformerTagger

from jetzoo import accelerate, profiling, repository
from jetzoo.engine.proof import in_float64
from jetzoo.nn.transformer import ParticleTransformer as ZooTransformer

FEATURES, CLASSES, VERTICES = 7, 10, 5

# ParticleNet as it was published.
GRAPH = {
    "conv_params": [(16, (64,) * 3), (16, (128,) * 3), (16, (256,) * 3)],
    "fc_params": [(256, 0.1)],
    "use_fusion": False,
}


def with_vertices(build, *inputs, **options):
    """Make a network of particles and secondary vertices."""
    return lambda: Chosen(build(FEATURES, FEATURES, CLASSES, **options), inputs)


def of_particles(build, *inputs, **options):
    """Make a network of particles."""
    return lambda: Chosen(build(FEATURES, CLASSES, **options), inputs)


class Chosen(nn.Module):
    """A network that is given some of the inputs of a batch.

    Parameters
    ----------
    network : nn.Module
    inputs : sequence of int
        Which of (points, features, vectors, mask) of particles and of secondary vertices.
    """

    def __init__(self, network, inputs):
        super().__init__()
        self.network = network
        self.inputs = inputs

    def forward(self, *batch):
        """Eight inputs to logits."""
        return self.network(*(batch[i] for i in self.inputs))


PUBLISHED = "ParticleTransformer"
PARTICLES, BOTH = (1, 2, 3), (1, 2, 3, 5, 6, 7)
NETWORKS = {
    PUBLISHED: of_particles(ParticleTransformer, *PARTICLES, use_pre_activation_pair=False),
    **{
        f"ParticleTransformer, version {version}": of_particles(
            ParticleTransformer, *PARTICLES, version=version
        )
        for version in (2, 3, 3.5, 3.6)
    },
    "ParticleTransformerTagger": with_vertices(ParticleTransformerTagger, *BOTH),
    "ParticleNet": of_particles(ParticleNet, 0, 1, 3, **GRAPH),
    "ParticleNetTagger": with_vertices(ParticleNetTagger, 0, 1, 3, 4, 5, 7, **GRAPH),
}


def batch_with_vertices(jets):
    """Jets whose secondary vertices are up to five of their particles.

    Returns
    -------
    tuple of Tensor
        Four inputs of the particles, and four of the vertices.
    """
    vertices = [x[..., :VERTICES].clone() for x in jets]
    counts = torch.arange(len(jets[0])) % (VERTICES + 1)
    vertices[3] *= torch.arange(VERTICES) < counts[:, None, None]
    return (*jets, *vertices)


def prepared(build, batch):
    """Build a network with the statistics of real jets, in eval mode and warm."""
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        model.train()(*batch)
        warm_up(model.eval(), [x[:4] for x in batch])
    return model.requires_grad_(False)


def forms(name, model):
    """The network as it is and accelerated; of the published ParT, the zoo's with its weights."""
    calls = {
        "weaver": model,
        "accelerate": Chosen(accelerate(model.network), model.inputs),
    }
    if name == PUBLISHED:
        zoo = ZooTransformer(FEATURES, CLASSES).eval()
        zoo.load_state_dict(model.network.state_dict())
        calls["zoo, accelerate"] = Chosen(accelerate(zoo), (0, 1, 2, 3))
    return calls


def measure(name, batch, repeats):
    """Time the forms of one network.

    Returns
    -------
    list of dict
        A row for each form.
    """
    model = prepared(NETWORKS[name], batch)
    calls = forms(name, model)
    with torch.no_grad():
        expected = in_float64(model)(*(x.double() for x in batch))
        seconds = time_on(calls, [batch], repeats)
        return [
            {
                "network": name,
                "form": form,
                "jets_per_second": len(batch[0]) / statistics.median(found),
                "times_weaver": median_ratio(seconds["weaver"], found),
                "times_zoo": median_ratio(seconds["zoo, accelerate"], found)
                if "zoo, accelerate" in seconds
                else "",
                "logit_error": float((calls[form](*batch) - expected).abs().max()),
            }
            for form, found in seconds.items()
        ]


def main():
    parser = argument_parser(__doc__, repeats=7, figures=False)
    parser.add_argument("--data", default=repository.sample_jets(), metavar="FILE")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--batch-size", type=int, default=256, metavar="N")
    args = parser.parse_args()
    batch = batch_with_vertices(first(read_jets(Path(args.data)), args.batch_size))
    stamp = {
        "batch_size": args.batch_size,
        "particles": float(batch[3].sum() / len(batch[3])),
        "data": Path(args.data).name,
        **profiling.machine_stamp(),
    }
    rows = []
    for name in tqdm(args.networks):
        rows += [row | stamp for row in measure(name, batch, args.repeats)]
    write_csv(args.results / "stock_cpu.csv", rows)


if __name__ == "__main__":
    main()
