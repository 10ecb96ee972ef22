"""Jets of ten classes by the recipe of JetClass.

Proton collisions at 13 TeV in Pythia 8 without pile-up; a Higgs boson is made together with a Z, a
W or Z with a Z, quarks and gluons with a Z that decays to neutrinos, and tops in pairs. (JetClass
takes the hard processes from MadGraph.) The detector is that of CMS in Delphes, with impact
parameters. Energy-flow objects are clustered with anti-kT, R = 0.8; jets of 500-1000 GeV and
|eta| < 2 are kept if, for the classes with a resonance, all quarks, gluons and charged leptons
(electrons or muons) that it decays to lie within 0.8.

References
----------
Qu, Li, Qian, "Particle Transformer for Jet Tagging", arXiv:2202.03772; data at
https://doi.org/10.5281/zenodo.6619768; settings of https://github.com/jet-universe/jetclass_generation.
"""

from dataclasses import dataclass

import awkward as ak
import fastjet
import numpy as np

from jetzoo.schema import kinematic_columns
from jetzoo.simulate.detector import CMS, ELECTRON, MUON, NEUTRAL_HADRON, PHOTON
from jetzoo.simulate.events import (
    DecayVeto,
    batches,
    cluster,
    collect,
    direction,
    distance,
    hard_partons,
    is_matched,
)
from jetzoo.simulate.pythia import NEUTRINOS, new_pythia

FOLDERS = {"train": "train_100M", "val": "val_5M", "test": "test_20M"}
PATHS = {
    split: f"Pythia/{folder}/{{label}}_{{shard:03d}}.root" for split, folder in FOLDERS.items()
}
LABELS = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")
TOP, Z, W, HIGGS = 6, 23, 24, 25


@dataclass(frozen=True)
class Class:
    """What makes the jets of a class.

    Attributes
    ----------
    label : str
        Of `LABELS`.
    settings : tuple of str
        Pythia's.
    resonance : int or None
        |PDG id| of what the jet holds.
    num_leptons : int
        Charged leptons among its decay products.
    """

    label: str
    settings: tuple
    resonance: int | None = None
    num_leptons: int = 0


def _decays(pid, *products):
    return (f"{pid}:onMode = off", f"{pid}:onIfAny = {' '.join(map(str, products))}")


def _higgs(label, decay, *more, num_leptons=0):
    settings = ("HiggsSM:ffbar2HZ = on", *INVISIBLE_Z, "25:onMode = off", f"25:onIfMatch = {decay}")
    return Class(label, (*settings, *more), HIGGS, num_leptons)


def _tops(label, *products, num_leptons=0):
    settings = ("Top:gg2ttbar = on", "Top:qqbar2ttbar = on", *_decays(W, *products))
    return Class(label, settings, TOP, num_leptons)


QUARKS, LEPTONS = (1, 2, 3, 4, 5), (11, 13)
INVISIBLE_Z = ("WeakZ0:gmZmode = 2", *_decays(Z, *NEUTRINOS))
CLASSES = {
    "ZJetsToNuNu": Class(
        "QCD",
        ("WeakBosonAndParton:qqbar2gmZg = on", "WeakBosonAndParton:qg2gmZq = on", *INVISIBLE_Z),
    ),
    "HToBB": _higgs("Hbb", "5 -5"),
    "HToCC": _higgs("Hcc", "4 -4"),
    "HToGG": _higgs("Hgg", "21 21"),
    "HToWW4Q": _higgs("H4q", "24 -24", *_decays(W, *QUARKS)),
    "HToWW2Q1L": _higgs("Hqql", "24 -24", *_decays(W, *QUARKS, *LEPTONS), num_leptons=1),
    "ZToQQ": Class(
        "Zqq",
        (
            "WeakDoubleBoson:ffbar2gmZgmZ = on",
            "WeakZ0:gmZmode = 2",
            *_decays(Z, *QUARKS, *NEUTRINOS),
        ),
        Z,
    ),
    "WToQQ": Class("Wqq", ("WeakDoubleBoson:ffbar2ZW = on", *INVISIBLE_Z, *_decays(W, *QUARKS)), W),
    "TTBar": _tops("Tbqq", *QUARKS),
    "TTBarLep": _tops("Tbl", *LEPTONS, num_leptons=1),
}
RADIUS = 0.8
JET_PT = (500.0, 1000.0)  # GeV
JET_MAX_ETA = 2.0
# Of the hard process. Softer ones, whose jets get their momentum from initial-state radiation,
# would be 5% of the selected H->bb jets, 7% of the QCD and 12% of the top jets.
HARD_PT = (440.0, 1200.0)  # GeV
OUTGOING = 62  # Pythia's status of a resonance that is about to decay
# What aux_truth_match says, by the heaviest of the decay products that are not a top's b.
TRUTH = {
    "QCD": {0: 50},
    "Hbb": {5: 41},
    "Hcc": {4: 42},
    "Hgg": {21: 44},
    "H4q": dict.fromkeys(QUARKS, 45),
    "Hqql": dict.fromkeys(LEPTONS, 46),
    "Zqq": {1: 33, 2: 33, 3: 33, 4: 32, 5: 31},
    "Wqq": {2: 22, 3: 22, 4: 21, 5: 21},
    "Tbqq": {2: 12, 3: 12, 4: 11, 5: 11},
    "Tbl": {11: 15, 13: 16},
}


def simulate(label, num_jets, seed):
    """Simulate jets of one class.

    Parameters
    ----------
    label : str
        The name of its files, of `CLASSES`.
    num_jets : int
    seed : int
        From 1 to 900,000,000.

    Returns
    -------
    ak.Array
        One record per jet with the columns of the published ROOT files: `part_*`, `label_*`,
        `jet_*`, `aux_*`; charge, flags and labels are int32, all else float32. Particles are
        sorted by descending transverse momentum.
    """
    kind = CLASSES[label]
    return _table(collect(_selected_jets(kind, seed), num_jets), kind)


def _selected_jets(kind, seed):
    """The selected jets with their `objects` and columns `aux_*`, batch by batch: (jets,)."""
    veto = kind.resonance and DecayVeto(kind.resonance, *HARD_PT, kind.num_leptons)
    window = (f"PhaseSpace:pTHatMin = {HARD_PT[0]}", f"PhaseSpace:pTHatMax = {HARD_PT[1]}")
    pythia = new_pythia(("Beams:eCM = 13000.", *window, *kind.settings), seed, veto)
    for record, objects in batches(pythia, CMS, np.random.default_rng(seed)):
        jets, constituents = cluster(objects, RADIUS, JET_PT[0])
        selected = (jets.pt < JET_PT[1]) & (abs(jets.eta) < JET_MAX_ETA)
        truth = _truth(jets, record, kind)
        selected = selected & (truth["aux_truth_match"] > 0)
        jets["objects"] = constituents
        for name, column in truth.items():
            jets[name] = column
        yield ak.flatten(jets[selected], axis=1)


def _truth(jets, record, kind):
    """The columns `aux_*` (events, jets); aux_truth_match is 0 where the decay is not inside."""
    zeros = ak.zeros_like(jets.pt)
    if kind.resonance is None:
        names = ("aux_genpart_pt", "aux_genpart_eta", "aux_genpart_phi", "aux_genpart_pid")
        return dict.fromkeys(names, zeros) | {"aux_truth_match": zeros + TRUTH[kind.label][0]}
    partons = hard_partons(record)
    if kind.resonance == TOP:
        # The W and the b of a top carry its sign, and what the W decays to has it as mother.
        groups = [partons[partons.mother > 0], partons[partons.mother < 0]]
    elif kind.resonance == Z:
        edges = (ak.fill_none(f(partons.resonance, axis=1), 0) for f in (ak.min, ak.max))
        groups = [partons[partons.resonance == edge] for edge in edges]
    else:
        groups = [partons]
    code = zeros
    for group in groups:
        rest = abs(group.pid[abs(group.mother) != TOP])
        heaviest = ak.fill_none(ak.max(rest, axis=1), 0)
        values = np.zeros(30)
        values[list(TRUTH[kind.label])] = list(TRUTH[kind.label].values())
        matched = is_matched(jets, group, RADIUS)
        code = ak.where(matched, values[ak.to_numpy(heaviest)], code)
    outgoing = record[(abs(record.id) == kind.resonance) & (abs(record.status) == OUTGOING)]
    resonances = direction(outgoing.p)
    resonances["pid"] = outgoing.id
    nearest = ak.argmin(
        distance(jets[:, :, np.newaxis], resonances[:, np.newaxis]), axis=2, keepdims=False
    )
    resonances = resonances[nearest]
    columns = {
        f"aux_genpart_{name}": ak.fill_none(resonances[name], 0)
        for name in ("pt", "eta", "phi", "pid")
    }
    return columns | {"aux_truth_match": code}


def _table(jets, kind):
    objects = jets.objects
    objects = objects[ak.argsort(direction(objects).pt, axis=1, ascending=False, stable=True)]
    p4 = [objects[name] for name in ("px", "py", "pz", "energy")]
    columns = kinematic_columns(*p4)
    del columns["jet_mass"]
    floats = {name: objects[name] for name in ("d0val", "d0err", "dzval", "dzerr")}
    pid = abs(objects.pid)
    flags = {
        "charge": objects.charge,
        "isChargedHadron": (objects.charge != 0) & (pid != ELECTRON) & (pid != MUON),
        "isNeutralHadron": pid == NEUTRAL_HADRON,
        "isPhoton": pid == PHOTON,
        "isElectron": pid == ELECTRON,
        "isMuon": pid == MUON,
    }
    particles = {name: column for name, column in columns.items() if name.startswith("part_")}
    particles |= {f"part_{name}": column for name, column in floats.items()}
    jet = {name: column for name, column in columns.items() if name.startswith("jet_")}
    jet["jet_nparticles"] = ak.num(objects)
    jet |= _substructure(p4)
    jet |= {name: jets[name] for name in jets.fields if name.startswith("aux_")}
    table = {name: ak.values_astype(column, np.float32) for name, column in particles.items()}
    table |= {f"part_{name}": ak.values_astype(flag, np.int32) for name, flag in flags.items()}
    table |= {
        f"label_{label}": np.full(len(jets), label == kind.label, np.int32) for label in LABELS
    }
    table |= {name: ak.values_astype(column, np.float32) for name, column in jet.items()}
    return ak.zip(table, depth_limit=1)


def _substructure(p4):
    """Mass after soft drop (beta = 0, z > 0.1) and N-subjettiness (beta = 1, kT axes, one pass)."""
    particles = ak.to_packed(ak.zip(dict(zip(("px", "py", "pz", "E"), p4, strict=True))))
    # A radius that keeps the jet whole.
    definition = fastjet.JetDefinition(fastjet.cambridge_algorithm, 10 * RADIUS)
    sequence = fastjet.ClusterSequence(particles, definition)
    groomed = sequence.exclusive_jets_softdrop_grooming(
        1, beta=0.0, symmetry_cut=0.1, symmetry_measure="scalar_z", R0=RADIUS
    )
    taus = sequence.njettiness("NormalizedMeasure", "OnePass_KT_Axes", [1, 2, 3, 4], 1.0, RADIUS)
    return {"jet_sdmass": groomed.msoftdrop} | {f"jet_tau{i + 1}": taus[:, i] for i in range(4)}
