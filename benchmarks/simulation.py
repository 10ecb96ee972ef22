"""Simulated against published jets of the same class and selection: figures and distances.

Writes figures/simulation_<set>.{png,pdf} and benchmarks/results/simulation.csv, with the
Kolmogorov-Smirnov distance of each quantity. The published jets are looked for in the folder
JETZOO_REAL_DATA; the simulated ones are the embedded samples, or larger sets of
`get_datasets.py SET --simulate N -d FOLDER`.
"""

import argparse
import csv
import os
from pathlib import Path

import awkward as ak
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import ks_2samp

from jetzoo.evaluate import OKABE_ITO
from jetzoo.tables import atomic, describe, read, writable_folder

ROOT = Path(__file__).resolve().parents[1]
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


def published_jets(folder, dataset, label):
    """Published jets of a class as an array of records, as far as their columns are known."""
    if dataset != "JetClass":
        name = {"QuarkGluon": "quarkgluon_1000", "TopLandscape": "toplandscape_1000"}[dataset]
        jets = ak.from_parquet(folder / f"{name}.parquet")
        return jets[jets.label == label]
    with np.load(folder / f"jetclass_{'hbb_500' if label == 'HToBB' else 'tops_100'}.npz") as file:
        arrays = dict(file)
    if label != "HToBB":
        chosen = arrays["labels"] == {"TTBar": 8, "TTBarLep": 9}[label]
        arrays = {name: array[chosen] for name, array in arrays.items()}
    real = arrays["pf_mask"][:, 0] > 0  # (jets, particles)
    columns = dict(
        zip(("px", "py", "pz", "energy"), np.moveaxis(arrays["pf_vectors"], 1, 0), strict=True)
    )
    if "pf_features_full" in arrays:
        names = ["charge", *(f"is{kind}" for kind in TYPES), "d0", "d0err", "dz", "dzerr"]
        columns |= dict(
            zip(names, np.moveaxis(arrays["pf_features_full"][:, 5:15], 1, 0), strict=True)
        )
    return ak.zip(
        {
            f"part_{name}": ak.unflatten(column[real].astype(np.float64), real.sum(axis=1))
            for name, column in columns.items()
        },
        depth_limit=1,
    )


def simulated_jets(folder, dataset, label):
    """All simulated jets of a class, whatever the split."""
    pattern = f"Pythia/*/{label}_*.root" if dataset == "JetClass" else "*.parquet"
    paths = sorted((folder / dataset).glob(pattern))
    names = [name for name in describe(paths[0])[0] if name == "label" or name.startswith("part_")]
    jets = ak.concatenate([read(path, names) for path in paths])
    return jets if dataset == "JetClass" else jets[jets.label == label]


def quantities(jets):
    """Values of each quantity that the columns of the jets allow, as flat arrays."""
    px, py, pz = (ak.values_astype(jets[f"part_{name}"], np.float64) for name in ("px", "py", "pz"))
    jet_px, jet_py, jet_pz = (ak.sum(x, axis=1) for x in (px, py, pz))
    energy = ak.sum(ak.values_astype(jets.part_energy, np.float64), axis=1)
    jet_pt, pt = np.hypot(jet_px, jet_py), np.hypot(px, py)
    eta = np.arcsinh(jet_pz / jet_pt)
    deta = (np.arcsinh(pz / pt) - eta) * np.where(eta < 0, -1.0, 1.0)
    dphi = (np.arctan2(py, px) - np.arctan2(jet_py, jet_px) + np.pi) % (2 * np.pi) - np.pi
    values = {
        "multiplicity": ak.num(px),
        "mass": np.sqrt(np.maximum(energy**2 - jet_pt**2 - jet_pz**2, 0)),
        "jet_pt": jet_pt,
        "pt": pt,
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


def draw(dataset, values, path):
    """Overlaid distributions; `values[class]` is a pair of quantities, published and simulated."""
    axes_of = dict(QUANTITIES)
    if dataset == "JetClass":
        del axes_of["deta"]
        axes_of |= FRACTIONS | TRACKS
    low, high = {"QuarkGluon": (500, 550), "TopLandscape": (550, 650), "JetClass": (500, 1000)}[
        dataset
    ]
    rows = len(axes_of) // 3
    figure, axes = plt.subplots(rows, 3, figsize=(10.5, 2.9 * rows), layout="constrained")
    for panel, (name, (label, bins, _)) in zip(axes.flat, axes_of.items(), strict=True):
        bins = np.linspace(low, high, 17) if bins is None else bins
        for colour, (kind, (published, simulated)) in zip(OKABE_ITO, values.items(), strict=False):
            if name not in published:
                continue
            width = np.diff(bins)
            counts = np.histogram(simulated[name], bins)[0]
            panel.stairs(counts / len(simulated[name]) / width, bins, color=colour)
            counts = np.histogram(published[name], bins)[0]
            norm = len(published[name]) * width
            there = counts > 0
            panel.errorbar(
                (bins[1:] + bins[:-1])[there] / 2,
                (counts / norm)[there],
                (np.sqrt(counts) / norm)[there],
                fmt="o",
                markersize=2.5,
                linewidth=0.8,
                color=colour,
                label=kind,
            )
        panel.set_xlabel(label)
        panel.set_ylabel("density")
        if bins[0] > 0 and bins[-1] / bins[0] > 20:
            panel.set_xscale("log")
        if name in ("pt", "d0", "dz", "d0err", "dzerr"):
            panel.set_yscale("log")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    line = plt.Line2D([], [], color="black")
    points = plt.Line2D([], [], color="black", marker="o", markersize=2.5, linestyle="")
    figure.legend(
        [*handles, points, line],
        [*labels, "published", "simulated"],
        loc="outside upper center",
        ncols=5,
    )
    for suffix in (".png", ".pdf"):
        figure.savefig(path.with_suffix(suffix), dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("sets", nargs="*", default=list(CLASSES), help=f"of {', '.join(CLASSES)} (default: all)")
    add(
        "--simulated",
        type=Path,
        default=ROOT / "data" / "samples",
        metavar="FOLDER",
        help="holds a folder of each set (default: data/samples)",
    )
    args = parser.parse_args()
    if unknown := set(args.sets) - set(CLASSES):
        parser.error(f"there is no set {', '.join(unknown)}")
    folder = Path(os.environ.get("JETZOO_REAL_DATA", ROOT.parent / "shared" / "real"))
    if not folder.is_dir():
        parser.error("the published jets are not here (set JETZOO_REAL_DATA)")
    figures = writable_folder(ROOT / "figures")

    rows = []
    for dataset in args.sets:
        values = {}
        for label, name in CLASSES[dataset].items():
            published = quantities(published_jets(folder, dataset, label))
            simulated = quantities(simulated_jets(args.simulated, dataset, label))
            values[name] = published, simulated
            rows += compare(dataset, label, published, simulated)
        draw(dataset, values, figures / f"simulation_{dataset}")
    results = ROOT / "benchmarks" / "results" / "simulation.csv"
    with atomic(results) as path, open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


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


if __name__ == "__main__":
    main()
