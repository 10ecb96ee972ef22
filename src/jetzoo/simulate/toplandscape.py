"""Top and QCD jets by the recipe of the top-tagging reference data set.

Proton collisions at 14 TeV in Pythia 8 without pile-up: pairs of hadronically decaying tops, and
QCD dijets. The detector is that of ATLAS in Delphes. Energy-flow objects are clustered with
anti-kT, R = 0.8; the leading jet is kept if it has 550-650 GeV of transverse momentum and
|eta| < 2, and, of a top, if the top and its three quarks lie within 0.8. The 200 hardest
constituents are stored as massless four-vectors.

Three things are not in the papers and were found from the published jets. Multiple interactions,
said to be ignored, are on here, as the jets have the particles and the width that they bring. The
hard process begins at 520 GeV (QCD) and 500 GeV (tops), which gives their spectra of transverse
momentum and, of QCD jets, their number of particles: softer processes, whose jets get their
momentum from initial-state radiation, would be about a third of the QCD jets. Tops have 171 GeV, as
in the Pythia 8.2 of that time, not the 173 GeV of the present one.

References
----------
Butter, Kasieczka, Plehn, Russell, "Deep-learned Top Tagging with a Lorentz Layer",
arXiv:1707.08966; Kasieczka et al., "The Machine Learning Landscape of Top Taggers",
arXiv:1902.09914; data at https://doi.org/10.5281/zenodo.2603256.
"""

import awkward as ak
import numpy as np

from jetzoo.schema import jets_table, massless_p4
from jetzoo.simulate.detector import ATLAS
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
from jetzoo.simulate.pythia import new_pythia

PATHS = {split: f"{split}_file.parquet" for split in ("train", "val", "test")}
CLASSES = {
    0: ("HardQCD:all = on", "PhaseSpace:pTHatMin = 520.", "PhaseSpace:pTHatMax = 900."),
    1: (
        "Top:gg2ttbar = on",
        "Top:qqbar2ttbar = on",
        "24:onMode = off",
        "24:onIfAny = 1 2 3 4 5",
        "PhaseSpace:pTHatMin = 500.",
        "PhaseSpace:pTHatMax = 900.",
        "6:m0 = 171.",
    ),
}
RADIUS = 0.8
JET_PT = (550.0, 650.0)  # GeV
JET_MAX_ETA = 2.0
MAX_PARTICLES = 200
TOP = 6


def simulate(label, num_jets, seed):
    """Simulate jets of one class.

    Parameters
    ----------
    label : int
        1 for top jets, 0 for QCD jets.
    num_jets : int
    seed : int
        From 1 to 900,000,000.

    Returns
    -------
    ak.Array
        Jets as of `jetzoo.schema.jets_table`.
    """
    particles = collect(_constituents(label, seed), num_jets)
    particles = particles[ak.argsort(direction(particles).pt, axis=1, ascending=False)]
    particles = direction(particles[:, :MAX_PARTICLES])
    p4 = massless_p4(particles.pt, particles.eta, particles.phi)
    return jets_table(*p4, np.full(num_jets, label))


def _constituents(label, seed):
    """The constituents of the selected jets, batch by batch: (jets, constituents)."""
    veto = DecayVeto(TOP, 500.0, 900.0) if label == 1 else None
    pythia = new_pythia(("Beams:eCM = 14000.", *CLASSES[label]), seed, veto)
    for record, objects in batches(pythia, ATLAS, np.random.default_rng(seed)):
        # Tracks are massless before the clustering, too, as no published particle is far outside.
        objects["energy"] = np.hypot(direction(objects).pt, objects.pz)
        jets, constituents = cluster(objects, RADIUS, JET_PT[0])
        # Only the leading jet of an event counts.
        jets, constituents = jets[:, :1], constituents[:, :1]
        selected = (jets.pt < JET_PT[1]) & (abs(jets.eta) < JET_MAX_ETA)
        if label == 1:
            selected = selected & _holds_top(jets, record)
        yield ak.flatten(constituents[selected], axis=1)


def _holds_top(jets, record):
    """Which jets have a top and all that it decayed to within their radius."""
    partons = hard_partons(record)
    matched = False
    for sign in (1, -1):
        # The W and the b of a top carry its sign, and what the W decays to has it as mother.
        decay = partons[partons.mother * sign > 0]
        tops = direction(record.p[decay.resonance[decay.mother == sign * TOP]])
        matched = matched | is_matched(jets, decay, RADIUS) & (distance(jets, tops[:, 0]) < RADIUS)
    return matched
