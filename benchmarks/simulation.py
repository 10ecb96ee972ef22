"""Simulated against published jets of the same class and selection: figures and distances.

Writes figures/simulation_<set>.{png,pdf} and benchmarks/results/simulation.csv, with the
Kolmogorov-Smirnov distance of each quantity. The published jets are looked for in the folder
JETZOO_REAL_DATA; the simulated ones are the embedded samples, or larger sets of
`get_datasets.py SET --simulate N -d FOLDER`.
"""

from pathlib import Path

import awkward as ak
import numpy as np
from common import (
    argument_parser,
    colours,
    figure_style,
    particles,
    published_file,
    published_jets,
    save_figure,
    write_csv,
)
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import ks_2samp

from jetzoo import repository, schema
from jetzoo.tables import describe, read

TYPES = ("ChargedHadron", "NeutralHadron", "Photon", "Electron", "Muon")
# Names of the classes in the figures, by the label that the generator knows.
CLASSES = {
    "QuarkGluon": {0: "gluon", 1: "quark"},
    "TopLandscape": {0: "QCD", 1: "top"},
    "JetClass": {
        "HToBB": r"$H\to b\bar b$",
        "TTBar": r"$t\to bqq'$",
        "TTBarLep": r"$t\to b\ell\nu$",
    },
}
# Transverse momenta in GeV between which the jets were selected.
JET_PT = {"QuarkGluon": (500, 550), "TopLandscape": (550, 650), "JetClass": (500, 1000)}
# Quantities, their axes, and whether they are of the jet (or of its particles).
QUANTITIES = {
    "multiplicity": ("particles", np.arange(-0.5, 112, 4), True),
    "mass": ("jet mass [GeV]", np.linspace(0, 300, 31), True),
    "jet_pt": ("jet $p_T$ [GeV]", None, True),
    "pt": ("particle $p_T$ [GeV]", np.geomspace(0.1, 600, 41), False),
    "deta": (r"particle $\Delta\eta$", np.linspace(-0.9, 0.9, 41), False),
    "distance": (r"particle $\Delta R$", np.linspace(0, 1, 41), False),
}
TRACKS = {
    "d0": (r"tracks' $\tanh(d_0/\mathrm{mm})$", np.linspace(-1, 1, 41), False),
    "d0err": (r"tracks' $\sigma(d_0)$ [mm]", np.geomspace(0.008, 1, 25), False),
    "dz": (r"tracks' $\tanh(d_z/\mathrm{mm})$", np.linspace(-1, 1, 41), False),
    "dzerr": (r"tracks' $\sigma(d_z)$ [mm]", np.geomspace(0.025, 1, 25), False),
}
FRACTIONS = {
    kind: (f"fraction of {name}", np.linspace(0, 0.8, 17), True)
    for kind, name in (
        ("ChargedHadron", "charged hadrons"),
        ("NeutralHadron", "neutral hadrons"),
        ("Photon", "photons"),
    )
}


# The files of published jets of JetClass, and the label of the class in those of several.
JETCLASS_FILES = {
    "HToBB": ("jetclass_hbb_500.npz", None),
    "TTBar": ("jetclass_tops_100.npz", 8),
    "TTBarLep": ("jetclass_tops_100.npz", 9),
}
# Columns 5 to 14 of the features of JetClass_full, which are charge, type and impact parameters.
FULL_FEATURES = ("charge", *(f"is{kind}" for kind in TYPES), "d0", "d0err", "dz", "dzerr")


def published(dataset, label):
    """Published jets of a class as an array of records, as far as their columns are known."""
    if dataset != "JetClass":
        jets = ak.from_parquet(published_file(dataset))
        return jets[jets.label == label]
    name, number = JETCLASS_FILES[label]
    with np.load(published_jets() / name) as file:
        arrays = dict(file)
    if number is not None:
        chosen = arrays["labels"] == number
        arrays = {name: array[chosen] for name, array in arrays.items()}
    columns = {}
    if "pf_features_full" in arrays:
        values = np.moveaxis(arrays["pf_features_full"][:, 5:15], 1, 0)
        columns = dict(zip(FULL_FEATURES, values, strict=True))
    return particles(arrays["pf_vectors"], arrays["pf_mask"][:, 0] > 0, **columns)


def simulated(folder, dataset, label):
    """All simulated jets of a class, whatever the split."""
    pattern = f"Pythia/*/{label}_*.root" if dataset == "JetClass" else "*.parquet"
    paths = sorted((folder / dataset).glob(pattern))
    names = [name for name in describe(paths[0])[0] if name == "label" or name.startswith("part_")]
    jets = ak.concatenate([read(path, names) for path in paths])
    return jets if dataset == "JetClass" else jets[jets.label == label]


def quantities(jets):
    """Values of each quantity that the columns of the jets allow, as flat arrays."""
    momenta = (jets[f"part_{name}"] for name in ("px", "py", "pz", "energy"))
    columns = schema.kinematic_columns(*momenta)
    deta, dphi = columns["part_deta"], columns["part_dphi"]
    values = {
        "multiplicity": ak.num(deta),
        "mass": columns["jet_mass"],
        "jet_pt": columns["jet_pt"],
        "pt": np.hypot(columns["part_px"], columns["part_py"]),
        "deta": deta,
        "distance": np.hypot(deta, dphi),
    }
    if "part_d0err" in jets.fields:
        values |= {kind: ak.mean(jets[f"part_is{kind}"] > 0, axis=1) for kind in TYPES}
        charged = jets.part_charge != 0
        for name in ("d0", "dz"):
            known = f"part_{name}" in jets.fields
            value = jets[f"part_{name}"] if known else np.tanh(jets[f"part_{name}val"])
            values[name] = value[charged]
            # The published ones are clipped there. They come from a table, the simulated ones from
            # a curve through it: without the rounding the distance would count broken ties.
            errors = ak.to_numpy(ak.flatten(jets[f"part_{name}err"][charged]))
            values[f"{name}err"] = np.round(np.minimum(errors, 1).astype(np.float64), 3)
    return {name: np.asarray(ak.flatten(value, axis=None)) for name, value in values.items()}


def panels_of(dataset):
    """The quantities of the figure of a data set, and their axes."""
    if dataset != "JetClass":
        return QUANTITIES
    shown = {name: axis for name, axis in QUANTITIES.items() if name != "deta"}
    return shown | FRACTIONS | TRACKS


def draw(dataset, values):
    """Overlaid distributions; `values[class]` is a pair of quantities, published and simulated."""
    panels = panels_of(dataset)
    rows = len(panels) // 3
    with figure_style(10):
        figure = Figure(figsize=(10.5, 2.9 * rows), layout="constrained")
        axes = figure.subplots(rows, 3)
        colour = colours(values)
        for axis, (name, (label, bins, _)) in zip(axes.flat, panels.items(), strict=True):
            bins = np.linspace(*JET_PT[dataset], 17) if bins is None else bins
            for kind, (data, generated) in values.items():
                if name in data:
                    compare_in(axis, data[name], generated[name], bins, colour[kind], kind)
            axis.set(xlabel=label, ylabel="density")
            if bins[0] > 0 and bins[-1] / bins[0] > 20:
                axis.set_xscale("log")
            if name == "pt" or name in TRACKS:
                axis.set_yscale("log")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        line = Line2D([], [], color="black")
        points = Line2D([], [], color="black", marker="o", markersize=2.5, linestyle="")
        figure.legend(
            [*handles, points, line],
            [*labels, "published", "simulated"],
            loc="outside upper center",
            ncols=5,
        )
    return figure


def compare_in(axis, data, generated, bins, colour, label):
    """Densities in bins: points with statistical errors are published, lines are simulated."""
    width = np.diff(bins)
    counts = np.histogram(generated, bins)[0]
    axis.stairs(counts / len(generated) / width, bins, color=colour)
    counts = np.histogram(data, bins)[0]
    norm = len(data) * width
    filled = counts > 0
    axis.errorbar(
        (bins[1:] + bins[:-1])[filled] / 2,
        (counts / norm)[filled],
        (np.sqrt(counts) / norm)[filled],
        fmt="o",
        markersize=2.5,
        linewidth=0.8,
        color=colour,
        label=label,
    )


def compare(dataset, label, published, simulated):
    """A row for each quantity of a class."""
    for name in published:
        x, y = published[name], simulated[name]
        ks = ks_2samp(x, y).statistic
        # What two samples of one distribution stay below in 95 of 100 cases; particles of a jet
        # are not independent, so that it holds for quantities of jets only.
        of_jets = (QUANTITIES | FRACTIONS | TRACKS).get(name, (0, 0, True))[2]
        limit = 1.36 * np.sqrt(1 / len(x) + 1 / len(y)) if of_jets else np.nan
        yield {
            "set": dataset,
            "class": label,
            "quantity": name,
            "published": len(x),
            "simulated": len(y),
            "ks": f"{ks:.3f}",
            "ks_95": "" if np.isnan(limit) else f"{limit:.3f}",
            "mean_published": f"{x.mean():.4g}",
            "mean_simulated": f"{y.mean():.4g}",
        }


def main():
    """Run the command line."""
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add("sets", nargs="*", default=list(CLASSES), help=f"of {', '.join(CLASSES)} (default: all)")
    add(
        "--simulated",
        type=Path,
        default=repository.samples(""),
        metavar="FOLDER",
        help="holds a folder of each set (default: data/samples)",
    )
    args = parser.parse_args()
    if unknown := set(args.sets) - set(CLASSES):
        parser.error(f"there is no set {', '.join(unknown)}")
    if not published_jets().is_dir():
        parser.error("the published jets are not here (set JETZOO_REAL_DATA)")
    rows = []
    for dataset in args.sets:
        values = {}
        for label, name in CLASSES[dataset].items():
            pair = published(dataset, label), simulated(args.simulated, dataset, label)
            values[name] = tuple(map(quantities, pair))
            rows += compare(dataset, label, *values[name])
        save_figure(draw(dataset, values), args.figures / f"simulation_{dataset}")
    write_csv(args.results / "simulation.csv", rows)


if __name__ == "__main__":
    main()
