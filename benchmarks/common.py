"""What the benchmarks share: folders, options, CSV files, figures, batches, timings, jets."""

import argparse
import csv
import io
import os
import statistics
import warnings
from itertools import cycle
from pathlib import Path

import awkward as ak
import matplotlib as mpl
import numpy as np
import torch

from jetzoo import data_config, profiling, repository, schema, tables
from jetzoo.profiling.configurations import TRIMMER, WeaverNetwork
from jetzoo.style import OKABE_ITO, STYLE, save
from jetzoo.tagger import untrained

ROOT = Path(__file__).resolve().parents[1]
RESULTS, FIGURES = ROOT / "benchmarks" / "results", ROOT / "figures"

# The network and the data config of the benchmarks of a single network.
DATA_CONFIG = "QuarkGluon/qg_kin"

FINE_TUNE = "-FineTune"  # how the network files end that take pretrained weights


def networks():
    """List the names of the networks that are trained from scratch."""
    return tuple(name for name in repository.networks() if not name.endswith(FINE_TUNE))


def fine_tunings():
    """List the names of the networks that are trained from pretrained weights."""
    return tuple(name for name in repository.networks() if name.endswith(FINE_TUNE))


def published_jets():
    """Return the folder of the published jets, which may not exist."""
    return Path(os.environ.get("JETZOO_REAL_DATA", ROOT.parent / "shared" / "real"))


def published_file(dataset):
    """Return the file of 1,000 published jets of a data set, which may not exist."""
    return published_jets() / f"{dataset.lower()}_1000.parquet"


def argument_parser(description, repeats=None, batch_sizes=None, device=False, figures=True):
    """Make a parser with the options that the benchmarks have in common.

    Parameters
    ----------
    description : str
        Docstring of the script; ``--help`` shows all of it.
    repeats : int, optional
        Default of ``--repeats``; without it there is no such option.
    batch_sizes : list of int, optional
        Default of ``--batch-sizes``.
    device : bool
        Add ``--device``.
    figures : bool
        Add ``--figures``.

    Returns
    -------
    argparse.ArgumentParser
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help="where the CSV goes (default: benchmarks/results)",
    )
    if figures:
        add(
            "--figures",
            type=Path,
            default=FIGURES,
            metavar="DIR",
            help="where the figures go (default: figures)",
        )
    if device:
        add("--device", default="cpu", help="cpu (default) or cuda")
    if batch_sizes:
        add("--batch-sizes", type=int, nargs="+", default=batch_sizes, metavar="N")
    if repeats:
        add("--repeats", type=int, default=repeats, metavar="N", help="timed calls of each")
    return parser


def write_csv(path, rows):
    """Write rows, whose columns may differ; floats get six digits.

    Parameters
    ----------
    path : Path
        Appears when complete.
    rows : list of dict
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    tables.writable_folder(path.parent)
    with tables.atomic(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    print(f"wrote {path}")


def read_csv(path):
    """Read the rows of a CSV file as dictionaries of text."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def save_figure(figure, path):
    """Write a figure as PNG and PDF; the suffix of the path does not matter."""
    tables.writable_folder(path.parent)
    for kind in ("png", "pdf"):
        with tables.atomic(path.with_suffix(f".{kind}")) as partial:
            save(figure, partial, format=kind, dpi=160)
    print(f"wrote {path.with_suffix('.png')} and .pdf")


def figure_style(font_size):
    """Matplotlib context of the project's style, in which all text has one size."""
    sizes = ("font.size", "axes.labelsize", "axes.titlesize", "legend.fontsize")
    return mpl.rc_context(STYLE | dict.fromkeys(sizes, font_size))


def colours(names):
    """Give each name the next colour; they start again after the last one.

    Parameters
    ----------
    names : iterable of str

    Returns
    -------
    dict of str to str
    """
    return dict(zip(dict.fromkeys(names), cycle(OKABE_ITO), strict=False))


def first(jets, count):
    """Take the first jets, and start from the beginning again if there are too few."""
    index = torch.arange(count) % len(jets[0])
    return [x[index] for x in jets]


def batches_of(jets, size, device="cpu"):
    """Cut jets into batches of a size: one, or as many as make 16 jets.

    Parameters
    ----------
    jets : sequence of Tensor
        The four inputs of a network.
    size : int
    device : str or torch.device

    Returns
    -------
    list of tuple of Tensor
    """
    jets = [x.to(device) for x in first(jets, size * max(16 // size, 1))]
    return [*zip(*(x.split(size) for x in jets), strict=True)]


def time_on(calls, batches, repeats, warmup=1, device="cpu"):
    """Time networks on the same batches, all batches by each network in turn.

    Parameters
    ----------
    calls : dict of str to callable
        Called with the four inputs of a network.
    batches : list of tuple of Tensor
    repeats, warmup : int
    device : str or torch.device

    Returns
    -------
    dict of str to ndarray, (repeats,)
        Seconds that all batches take.
    """

    def on_all(call):
        return lambda: [call(*batch) for batch in batches]

    seconds = profiling.interleaved(
        {name: on_all(call) for name, call in calls.items()}, repeats, warmup, device
    )
    return {name: np.array(x) for name, x in seconds.items()}


def median_ratio(seconds, other):
    """Median over the turns of the ratio of two timings."""
    return statistics.median(a / b for a, b in zip(seconds, other, strict=True))


def weaver_network(model, device="cpu", **options):
    """Build weaver-core's own network with the weights of the zoo's ParT or PN.

    Parameters
    ----------
    model : nn.Module
        Of ``networks/``.
    device : str or torch.device
    **options
        Of the constructor of weaver's ParT, beyond the published settings; ParticleNet needs none.

    Returns
    -------
    nn.Module
        In eval mode, called with the four inputs of a network. It cuts batches to their longest jet
        after ``TRIMMER`` calls.
    """
    network = WeaverNetwork(model)
    if options and not network.uses_points:
        part = network.mod
        network.mod = type(part)(
            input_dim=part.embed.input_bn.num_features,
            num_classes=part.fc[-1].out_features,
            use_pre_activation_pair=False,
            **options,
        )
        network.mod.load_state_dict(part.state_dict())
    return network.to(device).eval()


def warm_up(network, jets):
    """Call a network until weaver's trimmer has started."""
    for _ in range(TRIMMER):
        network(*jets)


def weaver_onnx(model, output="softmax"):
    """weaver's export of its own ParT or ParticleNet.

    Parameters
    ----------
    model : nn.Module
        Of ``networks/``, whose weights it gets.
    output : str
        ``softmax``, or ``logits``: then it stops before the softmax.

    Returns
    -------
    bytes
        An ONNX file; its inputs are called ``pf_points`` (of ParticleNet alone), ``pf_features``,
        ``pf_vectors`` (of ParT alone) and ``pf_mask``.
    """
    wrapper = weaver_network(model, for_inference=True)
    network = wrapper.mod
    if wrapper.uses_points:
        channels = {"pf_points": 2, "pf_features": network.bn_fts.num_features, "pf_mask": 1}
    else:
        features = network.embed.input_bn.num_features
        channels = {"pf_features": features, "pf_vectors": 4, "pf_mask": 1}
    network.for_inference = output == "softmax"  # no other effect after __init__
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(torch.ones(2, count, 128) for count in channels.values()),
            file,
            input_names=list(channels),
            output_names=[output],
            dynamic_axes={**{name: {0: "N", 2: "n_pf"} for name in channels}, output: {0: "N"}},
            opset_version=17,
            dynamo=False,
        )
    return file.getvalue()


def onnxruntime_call(file):
    """Make a function that runs a network in onnxruntime, on as many threads as PyTorch has.

    Parameters
    ----------
    file : str or bytes
        Path or content of an ONNX file.

    Returns
    -------
    callable
        Takes tensors in the order of the inputs of the file, and returns the first output.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]

    def run(*inputs):
        arrays = [x.contiguous().numpy() for x in inputs]
        return torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0])

    return run


def trimmed(call):
    """Let a network see batches cut to their longest jet."""

    def run(*jets):
        longest = max(int(jets[-1].sum(2).max()), 2)
        return call(*(x[..., :longest] for x in jets))

    return run


def in_buckets(call, size=32, several=map):
    """Let a network see buckets of jets of similar length, cut to their longest jet.

    Parameters
    ----------
    call : callable
    size : int
        Jets of a bucket.
    several : callable
        Called as ``map``; may run several buckets at once.
    """

    def run(*jets):
        order = jets[-1].sum(2)[:, 0].argsort()
        buckets = [[x[rows] for x in jets] for rows in order.split(size)]
        logits = torch.cat([*several(lambda bucket: trimmed(call)(*bucket), buckets)])
        return torch.empty_like(logits).index_copy_(0, order, logits)

    return run


def particles(vectors, mask, **columns):
    """Jets as the data configs take them, from padded four-vectors.

    Parameters
    ----------
    vectors : ndarray, (B, 4, N)
        px, py, pz, E in GeV.
    mask : ndarray of bool, (B, N)
        Where there is a particle.
    **columns : ndarray, (B, N)
        Of the particles, without the prefix ``part_``.

    Returns
    -------
    ak.Array of records, (B,)
        With the columns of :func:`jetzoo.schema.kinematic_columns`.
    """
    counts = mask.sum(axis=1)

    def jagged(padded):
        return ak.unflatten(padded[mask].astype(np.float64), counts)

    table = schema.kinematic_columns(*map(jagged, np.moveaxis(vectors, 1, 0)))
    table |= {f"part_{name}": jagged(column) for name, column in columns.items()}
    return ak.zip(table, depth_limit=1)


def read_table(path):
    """Read jets as the data configs take them.

    Parameters
    ----------
    path : Path
        Parquet in the schema of ``data/QuarkGluon``, or ``.npz`` with ``pf_vectors`` (B, 4, N) and
        ``pf_mask`` (B, 1, N).

    Returns
    -------
    ak.Array of records, (B,)
    """
    if path.suffix != ".npz":
        return ak.from_parquet(path)
    with np.load(path) as file:
        return particles(file["pf_vectors"], file["pf_mask"][:, 0] > 0)


def read_jets(path):
    """Read the inputs of a network with the kinematic features, padded as weaver pads them.

    Parameters
    ----------
    path : Path
        See :func:`read_table`.

    Returns
    -------
    list of Tensor
    """
    return inputs_of(read_table(path))


def inputs_of(jets):
    """The inputs of a network with the kinematic features, padded as weaver pads them.

    Parameters
    ----------
    jets : ak.Array of records
        See :func:`read_table`.

    Returns
    -------
    list of Tensor
    """
    inputs = data_config.Inputs(data_config.read(DATA_CONFIG))
    return [torch.from_numpy(x) for x in inputs(jets).values()]


def random_network(name, jets):
    """A network at its published size; norms and biases are moved away from ones and zeros."""
    torch.manual_seed(0)
    model = untrained(name, DATA_CONFIG, "cpu").model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.train()(*first(jets, 256))  # running statistics of real jets
    return model.eval().requires_grad_(False)
