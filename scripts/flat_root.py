#!/usr/bin/env python3
"""Write jets of the project as a flat ROOT file with the names that CMS gives its branches.

It is an example of jets from elsewhere, on which "Your own data" of the documentation trains: one
entry per jet, lists of the same length for its particles, angles in place of momenta, and one
integer label.
"""

import argparse
import sys

import awkward as ak
import numpy as np

from jetzoo import UserError, tables

# What a jet comes from, as a PDG id: of files with one label for signal, and of JetClass.
LABELS = {
    "QuarkGluon": {1: 1, 0: 21},
    "TopLandscape": {1: 6, 0: 0},
    "JetClass": {
        "label_QCD": 0,
        "label_Hbb": 5,
        "label_Hcc": 4,
        "label_Hgg": 21,
        "label_H4q": 25,
        "label_Hqql": 25,
        "label_Zqq": 23,
        "label_Wqq": 24,
        "label_Tbqq": 6,
        "label_Tbl": 6,
    },
}
# Other columns of the particles, where a file has them: name, and the name and type in the output.
PARTICLES = {
    "part_charge": ("charge", np.int32),
    "part_pid": ("pdgId", np.int32),
    "part_d0val": ("d0", np.float32),
    "part_d0err": ("d0Err", np.float32),
    "part_dzval": ("dz", np.float32),
    "part_dzerr": ("dzErr", np.float32),
}


def flavour(jets):
    """PDG id of the particle that each jet comes from; 0 where it is any light quark or a gluon.

    Parameters
    ----------
    jets : ak.Array of records, (num_jets,)

    Returns
    -------
    ndarray, int32, (num_jets,)
    """
    if "label" not in jets.fields:
        ids = LABELS["JetClass"]
        return sum(np.asarray(jets[name], np.int32) * number for name, number in ids.items())
    ids = LABELS["QuarkGluon" if "part_pid" in jets.fields else "TopLandscape"]
    return np.where(np.asarray(jets.label) == 1, ids[1], ids[0]).astype(np.int32)


def flat(jets):
    """Jets of the project's schemas under other names.

    Parameters
    ----------
    jets : ak.Array of records, (num_jets,)
        See :mod:`jetzoo.schema`; momenta and energies in GeV.

    Returns
    -------
    ak.Array of records, (num_jets,)
        ``Jet_pt``, ``Jet_eta``, ``Jet_phi``, ``Jet_mass``, ``Jet_flavour``, and the lists
        ``JetPFCands_pt``, ``_eta``, ``_phi``, ``_mass`` and what else the jets have.
    """
    px, py, pz, energy = (
        ak.values_astype(jets[f"part_{x}"], np.float64) for x in ("px", "py", "pz", "energy")
    )
    pt = np.hypot(px, py)
    particles = {
        "pt": pt,
        "eta": np.arcsinh(pz / pt),
        "phi": np.arctan2(py, px),
        "mass": np.sqrt(np.maximum(energy**2 - pt**2 - pz**2, 0)),
    }
    particles = {name: ak.values_astype(x, np.float32) for name, x in particles.items()}
    for name, (new, kind) in PARTICLES.items():
        if name in jets.fields:
            particles[new] = ak.values_astype(jets[name], kind)
    momentum = np.asarray(jets.jet_pt, np.float64) * np.cosh(np.asarray(jets.jet_eta, np.float64))
    mass2 = np.asarray(jets.jet_energy, np.float64) ** 2 - momentum**2
    columns = {f"Jet_{name}": jets[f"jet_{name}"] for name in ("pt", "eta", "phi")}
    columns["Jet_mass"] = np.sqrt(np.maximum(mass2, 0)).astype(np.float32)
    columns["Jet_flavour"] = flavour(jets)
    return ak.Array(columns | {f"JetPFCands_{name}": x for name, x in particles.items()})


def main():
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("jets", nargs="+", metavar="FILE", help="of a data set of the project")
    parser.add_argument("--output", required=True, metavar="FILE", help=".root")
    args = parser.parse_args()
    try:
        output = tables.check_output(args.output, args.jets, ".root")
        parts = []
        for path in args.jets:
            with tables.about(path):
                jets = tables.read(path, tables.describe(path)[0])
                missing = {"part_energy", "jet_energy"} - set(jets.fields)
                if missing or not {"label", "label_QCD"} & set(jets.fields):
                    raise UserError("These are no jets of a data set of the project.")
                parts.append(flat(jets))
        tables.writable_folder(output.parent)
        tables.write(output, ak.concatenate(parts))
    except UserError as error:
        print(f"flat_root.py: {error}", file=sys.stderr)
        return 2
    print(f"wrote {sum(map(len, parts)):,} jets to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
