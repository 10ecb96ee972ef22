"""Small hand-made jets in the schemas of the three data sets, written as those data sets are."""

import awkward as ak
import numpy as np
import uproot

# File name -> class, in the order of the labels.
JETCLASS = {
    "ZJetsToNuNu": "QCD",
    "HToBB": "Hbb",
    "HToCC": "Hcc",
    "HToGG": "Hgg",
    "HToWW4Q": "H4q",
    "HToWW2Q1L": "Hqql",
    "ZToQQ": "Zqq",
    "WToQQ": "Wqq",
    "TTBar": "Tbqq",
    "TTBarLep": "Tbl",
}
JETCLASS_LABELS = [f"label_{name}" for name in JETCLASS.values()]

# |PDG id| -> (charge of the positive code, particle type); 310, the K0S, is of no type.
SPECIES = {
    211: (1, "isChargedHadron"),
    321: (1, "isChargedHadron"),
    2212: (1, "isChargedHadron"),
    130: (0, "isNeutralHadron"),
    2112: (0, "isNeutralHadron"),
    22: (0, "isPhoton"),
    11: (-1, "isElectron"),
    13: (-1, "isMuon"),
    310: (0, None),
}


def particles(counts, rng, spread=0.15):
    """Particles and jets as a dict of float32 or int32 columns.

    Parameters
    ----------
    counts : sequence of int
        Particles of each jet, 0 allowed.
    rng : numpy.random.Generator
    spread : float or array of one per jet
        Width of the jet in eta and phi.

    Returns
    -------
    dict of awkward.Array
        ``part_*`` jagged and ordered by pT, ``jet_*`` flat.
    """
    n_jets, total = len(counts), int(np.sum(counts))
    jet = np.repeat(np.arange(n_jets), counts)
    jet_eta = rng.uniform(-2, 2, n_jets)
    jet_phi = rng.uniform(-np.pi, np.pi, n_jets)
    pt = np.exp(rng.normal(1.0, 3.0, total))
    pt = pt[np.lexsort((-pt, jet))]
    eta_offset, dphi = rng.normal(0, np.broadcast_to(spread, n_jets)[jet], (2, total))
    eta, phi = jet_eta[jet] + eta_offset, jet_phi[jet] + dphi
    pid = rng.choice(list(SPECIES), total)
    sign = np.where(pid == 22, 1, rng.choice([-1, 1], total))
    px, py, pz = pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)
    columns = {
        "part_px": px,
        "part_py": py,
        "part_pz": pz,
        "part_energy": np.sqrt(px**2 + py**2 + pz**2 + 0.14**2),
        "part_deta": eta_offset * np.sign(jet_eta)[jet],
        "part_dphi": dphi,
        "part_pid": pid * sign,
        "part_charge": np.array([SPECIES[p][0] for p in pid]) * sign,
        **{
            f"part_{kind}": np.array([SPECIES[p][1] == kind for p in pid], dtype="int32")
            for kind in dict.fromkeys(kind for _, kind in SPECIES.values() if kind)
        },
        "part_d0val": rng.normal(0, 2, total),
        "part_d0err": rng.exponential(0.5, total),
        "part_dzval": rng.normal(0, 2, total),
        "part_dzerr": rng.exponential(0.5, total),
    }

    def narrow(values):
        return values.astype("int32" if values.dtype.kind == "i" else "float32")

    sums = {k: np.bincount(jet, columns[f"part_{k}"], n_jets) for k in ("px", "py", "energy")}
    return {
        **{name: ak.unflatten(narrow(values), counts) for name, values in columns.items()},
        "jet_pt": narrow(np.hypot(sums["px"], sums["py"])),
        "jet_eta": narrow(jet_eta),
        "jet_phi": narrow(jet_phi),
        "jet_energy": narrow(sums["energy"]),
        "jet_nparticles": np.array(counts, dtype="int32"),
    }


def write_parquet(path, counts, rng, **options):
    """Jets of the QuarkGluon and TopLandscape schemas; the last label alternates 1, 0, 1, ..."""
    jets = particles(counts, rng, **options)
    jets["label"] = 1 - np.arange(len(counts)) % 2
    path.parent.mkdir(parents=True, exist_ok=True)
    ak.to_parquet(ak.Array(jets), path)
    return jets


def write_root(path, counts, rng, labels, **options):
    """Jets of the JetClass schema, as a TTree; `labels` gives the class of each."""
    jets = particles(counts, rng, **options)
    for i, name in enumerate(JETCLASS_LABELS):
        jets[name] = (np.asarray(labels) == i).astype("int32")
    for name in ("jet_sdmass", "jet_tau1", "jet_tau2", "jet_tau3", "jet_tau4"):
        jets[name] = rng.uniform(0, 1, len(counts)).astype("float32")
    write_tree(path, jets)
    return jets


def write_tree(path, columns):
    """Write a TTree named `tree`; assigning to the file would make an RNTuple."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = ak.Array(columns)
    with uproot.recreate(path) as file:
        file.mktree("tree", {name: table[name].type for name in table.fields}).extend(
            {name: table[name] for name in table.fields}
        )


def write_dataset(folder, dataset, rng, jets=64):
    """A whole tiny data set in the published folder layout, one file per split and class."""
    for split, published in (("train", "train_100M"), ("val", "val_5M"), ("test", "test_20M")):
        if dataset == "JetClass":
            for label, group in enumerate(JETCLASS):
                counts = rng.integers(3, 30, jets // 8)
                path = folder / "Pythia" / published / f"{group}_000.root"
                write_root(path, counts, rng, np.full(len(counts), label))
        else:
            name = f"{split}_file_0.parquet" if dataset == "QuarkGluon" else f"{split}_file.parquet"
            write_parquet(folder / name, rng.integers(3, 30, jets), rng)
