"""From Pythia's event records to jets of detector objects, a batch of events at a time.

`Pythia.nextBatch` hands over whole records as arrays, so that no Python code runs per particle.
"""

import awkward as ak
import fastjet
import numpy as np
import pythia8mc

from jetzoo.simulate.detector import reconstruct
from jetzoo.simulate.pythia import NEUTRINOS

RESONANCES = (6, 23, 24, 25)
HARD = 23  # Pythia's status of the outgoing partons of the hard process and of resonance decays
MAX_ETA = 4.0  # of particles that may come near a jet


class DecayVeto(pythia8mc.UserHooks):
    """Give up, before any showering, events that will hardly give a jet of the selection.

    What is asked of the hard process is asked of at least one resonance of the wanted kind: a
    transverse momentum, a pseudorapidity, and that its visible decay products are close together.

    Parameters
    ----------
    pid : int
        The kind of resonance, as |PDG id|.
    min_pt, max_pt : float
        GeV.
    num_leptons : int
        How many of the decay products are charged leptons.
    """

    MAX_ETA = 2.3
    MAX_DISTANCE = 1.1

    def __init__(self, pid, min_pt, max_pt, num_leptons=0):
        super().__init__()
        self.pid = pid
        self.min_pt, self.max_pt = min_pt, max_pt
        self.num_leptons = num_leptons

    def canVetoProcessLevel(self):
        return True

    def doVetoProcessLevel(self, process):
        return not any(self._is_good(process, i) for i in range(5, process.size()))

    def _is_good(self, process, i):
        resonance = process[i]
        if (
            resonance.idAbs() != self.pid
            or not self.min_pt < resonance.pT() < self.max_pt
            or abs(resonance.eta()) > self.MAX_ETA
        ):
            return False
        products = list(visible_products(process, i))
        return (
            len(products) > 0
            and sum(p.isLepton() for p in products) == self.num_leptons
            and all(
                np.hypot(p.eta() - resonance.eta(), _wrap(p.phi() - resonance.phi()))
                < self.MAX_DISTANCE
                for p in products
            )
        )


def visible_products(process, i):
    """The quarks, gluons and charged leptons that entry `i` of a hard process decays to."""
    for j in process[i].daughterList():
        if process[j].idAbs() in RESONANCES:
            yield from visible_products(process, j)
        elif process[j].idAbs() not in NEUTRINOS:
            yield process[j]


def batches(pythia, detector, rng, num_events=50):
    """Endless batches of events.

    Parameters
    ----------
    pythia : pythia8mc.Pythia
    detector : jetzoo.simulate.detector.Detector
    rng : numpy.random.Generator
    num_events : int
        Per batch.

    Yields
    ------
    record : ak.Array
        Pythia's event record, `id`, `status`, `mother1`, `p`, ... of type (events, particles).
    objects : ak.Array
        Energy-flow objects (events, objects) as of `jetzoo.simulate.detector.reconstruct`.
    """
    charges = {}
    while True:
        record = pythia.nextBatch(num_events).prt
        p, offsets = ak.flatten(record), np.append(0, np.cumsum(ak.num(record)))
        pid, p4 = _numpy(p.id), {name: _numpy(p.p[name]) for name in ("px", "py", "pz", "e")}
        final = (_numpy(p.status) > 0) & ~np.isin(abs(pid), NEUTRINOS)
        pt = np.hypot(p4["px"], p4["py"])
        final &= abs(p4["pz"]) < np.sinh(MAX_ETA) * pt
        kinds, which = np.unique(pid[final], return_inverse=True)
        for kind in kinds:
            if kind not in charges:
                charges[kind] = pythia.particleData.charge(int(kind))
        vertex = p.vProd[final]
        particles = {
            "event": np.repeat(np.arange(len(record)), np.diff(offsets))[final],
            "pid": pid[final],
            "charge": np.array([charges[kind] for kind in kinds])[which],
            "px": p4["px"][final],
            "py": p4["py"][final],
            "pz": p4["pz"][final],
            "energy": p4["e"][final],
            "mass": _numpy(p.m)[final],
            "x": _numpy(ak.fill_none(vertex.px, 0.0)),
            "y": _numpy(ak.fill_none(vertex.py, 0.0)),
            "z": _numpy(ak.fill_none(vertex.pz, 0.0)),
        }
        objects = reconstruct(particles, detector, rng)
        counts = np.bincount(objects.pop("event"), minlength=len(record))
        yield record, ak.unflatten(ak.zip(objects), counts)


def collect(jets, num_jets):
    """The first `num_jets` jets of an endless iterable of arrays (jets,)."""
    found, num_found = [], 0
    for some in jets:
        found.append(some)
        num_found += len(some)
        if num_found >= num_jets:
            break
    return ak.concatenate(found)[:num_jets]


def cluster(objects, radius, min_pt):
    """Anti-kT jets, E-scheme.

    Parameters
    ----------
    objects : ak.Array (events, objects)
    radius : float
    min_pt : float
        GeV.

    Returns
    -------
    jets : ak.Array (events, jets)
        `pt`, `eta`, `phi`, `energy`, sorted by descending pt.
    constituents : ak.Array (events, jets, constituents)
        The objects.
    """
    p4 = ak.zip({name: objects[name] for name in ("px", "py", "pz")} | {"E": objects.energy})
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, radius)
    sequence = fastjet.ClusterSequence(ak.to_packed(p4), definition)
    p4, indices = sequence.inclusive_jets(min_pt), sequence.constituent_index(min_pt)
    jets = ak.with_field(direction(p4), p4.E, "energy")
    order = ak.argsort(jets.pt, axis=1, ascending=False)
    jets, indices = jets[order], indices[order]
    flat = ak.flatten(indices, axis=2)
    return jets, ak.unflatten(objects[flat], ak.flatten(ak.num(indices, axis=2)), axis=1)


def hard_partons(record):
    """Quarks, gluons and charged leptons that resonances of the hard process decayed to.

    Parameters
    ----------
    record : ak.Array (events, particles)

    Returns
    -------
    ak.Array (events, partons)
        `pid`; `eta` and `phi` before final-state radiation; `mother`, the PDG id of the resonance,
        and `resonance`, its index in the record.
    """
    hard = record[abs(record.status) == HARD]
    hard = hard[_isin(record.id[hard.mother1], RESONANCES) & ~_isin(hard.id, NEUTRINOS)]
    partons = direction(hard.p)
    partons["pid"] = hard.id
    partons["mother"] = record.id[hard.mother1]
    partons["resonance"] = hard.mother1
    return partons


def is_matched(jets, partons, radius):
    """Which jets have all partons, of which there are some, within a radius: (events, jets)."""
    apart = distance(jets[:, :, np.newaxis], partons[:, np.newaxis])
    return ak.all(apart < radius, axis=2) & (ak.num(partons) > 0)


def direction(p):
    """`pt`, `eta` and `phi` of four-vectors."""
    pt = np.hypot(p.px, p.py)
    return ak.zip({"pt": pt, "eta": np.arcsinh(p.pz / pt), "phi": np.arctan2(p.py, p.px)})


def distance(a, b):
    """Distance in pseudorapidity and azimuth."""
    return np.hypot(a.eta - b.eta, _wrap(a.phi - b.phi))


def _wrap(phi):
    return (phi + np.pi) % (2 * np.pi) - np.pi


def _isin(pid, kinds):
    """Which PDG ids (events, particles) are of these kinds, up to the sign."""
    return ak.unflatten(np.isin(abs(_numpy(ak.flatten(pid))), kinds), ak.num(pid))


def _numpy(array):
    return ak.to_numpy(array, allow_missing=False)
