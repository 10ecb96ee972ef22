"""A parametrised detector: what a tracker and two calorimeters make of the particles of an event.

It follows the chain of the Delphes cards [1] that the published data sets were made with: particles
fly on straight lines and helices to a cylinder; charged ones become tracks with an efficiency and a
momentum resolution; energies are summed in towers of an electromagnetic and a hadronic calorimeter
and smeared; the energy flow then takes every track, and a photon or a neutral hadron for what a
tower has in significant excess of its tracks. Where there is no excess, the energies of tower and
tracks are averaged by their resolutions. There is no pile-up.

All parameters are in `CMS` and `ATLAS` below. `CMS` is that of JetClass: its card [2] smears the
impact parameters in a step that leaves the tracks with their true momentum and without a momentum
uncertainty, so that the average is the tower's energy. This shows in the published jets, where
charged hadrons have the resolution of a hadronic calorimeter and are rare below 2 GeV.

References
----------
[1] DELPHES 3 Collaboration, arXiv:1307.6346; the cards of its distribution
[2] Qu, Li, Qian, arXiv:2202.03772; card of https://github.com/jet-universe/jetclass_generation
[3] CMS Collaboration, arXiv:1405.6569 (tracks; impact parameters in figure 15)
[4] CMS Collaboration, arXiv:1306.2016 and arXiv:1502.02701 (ECAL)
[5] ATLAS Collaboration, arXiv:physics/0608012 (ECAL) and arXiv:hep-ex/0004009 (HCAL)
"""

from dataclasses import dataclass

import numpy as np

SPEED_OF_LIGHT = 0.299792458  # GeV / (T m) per elementary charge
ELECTRON, MUON, PHOTON, NEUTRAL_HADRON = 11, 13, 22, 0
TRACKER_MAX_ETA = 2.5


@dataclass(frozen=True)
class Calorimeter:
    """Towers and their energy resolution.

    Attributes
    ----------
    eta_edges : ndarray (towers + 1,)
        Increasing.
    phi_towers : ndarray (towers,)
        How many towers go around at each pseudorapidity.
    resolution : tuple of (float, float, float, float)
        Up to |eta|, the constant, stochastic (GeV^1/2) and noise (GeV) terms of the energy
        resolution, added in quadrature.
    eta_shape : tuple of (float, function)
        Up to |eta|, a factor on the resolution as a function of |eta|.
    min_energy : float
        GeV, of a tower and of a neutral excess.
    min_significance : float
        The same in units of the resolution.
    """

    eta_edges: np.ndarray
    phi_towers: np.ndarray
    resolution: tuple
    min_energy: float
    min_significance: float
    eta_shape: tuple = ((np.inf, np.ones_like),)

    def sigma(self, eta, energy):
        """Energy resolution in GeV of a tower at `eta` with `energy` in GeV."""
        eta = abs(eta)
        terms = np.array([row[1:] for row in self.resolution])
        constant, stochastic, noise = terms[_region(eta, self.resolution)].T
        edges = [(edge,) for edge, _ in self.eta_shape]
        shape = np.select(
            [_region(eta, edges) == i for i in range(len(edges))],
            [factor(eta) for _, factor in self.eta_shape],
        )
        return shape * np.sqrt((constant * energy) ** 2 + stochastic**2 * energy + noise**2)


@dataclass(frozen=True)
class Detector:
    """The parameters of a detector.

    Attributes
    ----------
    radius, half_length : float
        Of the tracker in m; the calorimeters stand on this cylinder.
    field : float
        T, along the beam.
    efficiency : dict
        For each kind of charged particle (0 hadrons, 11, 13), rows of (least pT in GeV, efficiency
        up to |eta| = 1.5, efficiency up to |eta| = 2.5).
    momentum : dict or None
        For each kind, rows of (largest |eta|, constant, slope in 1/GeV): the relative resolution of
        pT is constant + slope pT, in quadrature. None: tracks have the true momentum, and towers
        decide.
    impact : tuple or None
        Rows of (largest |eta|, resolutions of d0, resolutions of dz), in mm at `IMPACT_PT`.
    ecal, hcal : Calorimeter
    """

    radius: float
    half_length: float
    field: float
    efficiency: dict
    momentum: dict | None
    impact: tuple | None
    ecal: Calorimeter
    hcal: Calorimeter


def _mirrored(edges):
    """Edges of both sides from those of the positive one, which begin with 0."""
    return np.concatenate([-np.array(edges[:0:-1]), edges])


def _around(eta_edges, rows):
    """Number of towers in phi by rows of (largest |eta|, number)."""
    centre = abs(eta_edges[1:] + eta_edges[:-1]) / 2
    return np.array([number for _, number in rows])[_region(centre, rows)]


def _region(eta, rows):
    """Index of the first row whose leading |eta| is not exceeded; the last beyond all."""
    return np.searchsorted([row[0] for row in rows[:-1]], eta)


# The cards have the same efficiencies.
EFFICIENCY = {
    0: ((0.1, 0.70, 0.60), (1.0, 0.95, 0.85)),
    ELECTRON: ((0.1, 0.73, 0.50), (1.0, 0.95, 0.83), (100.0, 0.99, 0.90)),
    MUON: ((0.1, 0.75, 0.70), (1.0, 0.99, 0.98)),
}
MOMENTUM = {
    0: ((0.5, 0.06, 1.3e-3), (1.5, 0.10, 1.7e-3), (2.5, 0.25, 3.1e-3)),
    ELECTRON: ((0.5, 0.03, 1.3e-3), (1.5, 0.05, 1.7e-3), (2.5, 0.15, 3.1e-3)),
    MUON: ((0.5, 0.01, 1.0e-4), (1.5, 0.015, 1.5e-4), (2.5, 0.025, 3.5e-4)),
}
ECAL_EDGES = _mirrored([*(0.0174 * np.arange(171)), 3.125, *np.arange(3.3, 4.4, 0.175), 4.7, 5.0])
ECAL_AROUND = _around(ECAL_EDGES, ((2.96, 360), (5.0, 36)))
CMS_HCAL_EDGES = _mirrored(
    [*(0.087 * np.arange(20)), 1.74, 1.83, 1.93, 2.043, 2.172, 2.322, 2.5, 2.65, 2.868, 2.95]
    + [*np.arange(3.125, 4.53, 0.175), 4.7, 5.0]
)
ATLAS_EDGES = _mirrored(
    [*(0.1 * np.arange(27)), 2.8, 3.0, 3.2, 3.3, 3.5, 3.7, 3.9, 4.1, 4.3, 4.5, 4.7, 4.9]
)
ATLAS_AROUND = _around(ATLAS_EDGES, ((2.5, 36), (4.9, 18)))
# Resolution of the impact parameters [3, figure 15]; straight lines between in log pT.
IMPACT_PT = np.array([0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.5, 6.0, 10.0, 17.0, 30.0, 60.0, 150.0])  # GeV
IMPACT = (
    (
        0.9,
        (0.354, 0.230, 0.150, 0.089, 0.067, 0.049, 0.034, 0.0258, 0.0200, 0.0150, 0.0126)
        + (0.0110, 0.0109),
        (0.369, 0.312, 0.200, 0.135, 0.098, 0.073, 0.053, 0.0450, 0.0400, 0.0317, 0.0316)
        + (0.0316, 0.0316),
    ),
    (
        1.4,
        (0.456, 0.301, 0.180, 0.112, 0.082, 0.052, 0.038, 0.0277, 0.0218, 0.0155, 0.0132)
        + (0.0101, 0.0095),
        (0.706, 0.599, 0.350, 0.240, 0.159, 0.112, 0.077, 0.0610, 0.0525, 0.0409, 0.0378)
        + (0.0342, 0.0310),
    ),
    (
        2.5,
        (0.697, 0.532, 0.310, 0.181, 0.123, 0.084, 0.051, 0.0385, 0.0267, 0.0217, 0.0166)
        + (0.0144, 0.0137),
        (2.172, 2.068, 1.320, 0.825, 0.555, 0.351, 0.226, 0.1640, 0.1215, 0.1015, 0.0840)
        + (0.0790, 0.0840),
    ),
)

CMS = Detector(
    radius=1.29,
    half_length=3.0,
    field=3.8,
    efficiency=EFFICIENCY,
    momentum=None,
    impact=IMPACT,
    ecal=Calorimeter(
        ECAL_EDGES,
        ECAL_AROUND,
        ((2.5, 0.008, 0.11, 0.40), (5.0, 0.107, 2.08, 0.0)),
        min_energy=0.5,
        min_significance=2.0,
        eta_shape=(
            (1.5, lambda eta: 1 + 0.64 * eta**2),
            (2.5, lambda eta: 2.16 + 5.6 * (eta - 2) ** 2),
            (5.0, np.ones_like),
        ),
    ),
    hcal=Calorimeter(
        CMS_HCAL_EDGES,
        _around(CMS_HCAL_EDGES, ((1.653, 72), (4.525, 36), (5.0, 18))),
        ((3.0, 0.050, 1.50, 0.0), (5.0, 0.130, 2.70, 0.0)),
        min_energy=1.0,
        min_significance=1.0,
    ),
)
ATLAS = Detector(
    radius=1.15,
    half_length=3.51,
    field=2.0,
    efficiency=EFFICIENCY,
    momentum=MOMENTUM,
    impact=None,
    # When the jets were made, the card had one grid of towers for both calorimeters.
    ecal=Calorimeter(
        ATLAS_EDGES,
        ATLAS_AROUND,
        ((3.2, 0.0017, 0.101, 0.0), (4.9, 0.035, 0.285, 0.0)),
        min_energy=0.5,
        min_significance=1.0,
    ),
    hcal=Calorimeter(
        ATLAS_EDGES,
        ATLAS_AROUND,
        ((1.7, 0.0302, 0.5205, 1.59), (3.2, 0.050, 0.706, 0.0), (4.9, 0.0942, 1.00, 0.0)),
        min_energy=1.0,
        min_significance=1.0,
    ),
)


def reconstruct(particles, detector, rng):
    """Energy-flow objects of events.

    Parameters
    ----------
    particles : dict of ndarray (particles,)
        Stable visible particles: `event`, the number of the event; `pid`; `charge`; `px`, `py`,
        `pz`, `energy`, `mass` in GeV; `x`, `y`, `z` of the production vertex in mm.
    detector : Detector
    rng : numpy.random.Generator

    Returns
    -------
    dict of ndarray (objects,)
        In the order of events: `event`; `pid`, that of the particle for tracks, 22 for photons and
        0 for neutral hadrons; `charge`; `px`, `py`, `pz`, `energy`, neutrals being massless; and,
        for tracks of a detector with `impact`, else 0, `d0val`, `d0err`, `dzval`, `dzerr` in mm.
    """
    r, pt = np.hypot(particles["x"], particles["y"]), np.hypot(particles["px"], particles["py"])
    inside = (
        (r < 1e3 * detector.radius)
        & (abs(particles["z"]) < 1e3 * detector.half_length)
        & (pt > 1e-4)
    )
    particles = {name: column[inside] for name, column in particles.items()}
    flight = _propagate(particles, detector)
    tracks = _track(particles, flight, detector, rng)

    kind = abs(particles["pid"])
    towers = []
    for calorimeter, pid in ((detector.ecal, PHOTON), (detector.hcal, NEUTRAL_HADRON)):
        electromagnetic = (kind == ELECTRON) | (kind == PHOTON)
        seen = electromagnetic if pid == PHOTON else ~electromagnetic & (kind != MUON)
        hits = {
            "event": particles["event"][seen],
            "eta": flight["eta"][seen],
            "phi": flight["phi"][seen],
            "energy": particles["energy"][seen],
        }
        measured = seen[tracks["index"]]
        neutral, scale = _energy_flow(
            hits, {name: column[measured] for name, column in tracks.items()}, calorimeter, rng
        )
        tracks["scale"][measured] = scale
        towers.append(neutral | {"pid": np.full(len(neutral["event"]), pid)})
    return _merge(particles, tracks, towers)


def _propagate(particles, detector):
    """Where particles meet the cylinder (eta, phi), and the impact parameters of charged ones."""
    radius, half_length = detector.radius, detector.half_length
    x, y, z = (particles[name] / 1e3 for name in "xyz")  # m
    px, py, pz = (particles[name] for name in ("px", "py", "pz"))
    pt = np.hypot(px, py)
    charged = particles["charge"] != 0
    # The distances flown in the transverse plane to the end of the cylinder, and to its side.
    to_end = (half_length - np.copysign(z, z * pz)) * pt / np.maximum(abs(pz), 1e-9)
    along, across = (x * px + y * py) / pt, (x * py - y * px) / pt
    to_side = -along + np.sqrt(np.maximum(radius**2 - across**2, 0))
    length = np.minimum(to_side, to_end)
    x_out, y_out = x + length * px / pt, y + length * py / pt
    d0, dz = np.zeros_like(pt), np.zeros_like(pt)

    c = charged
    # A helix turns by the angle `turn` clockwise, if its signed radius is positive, about (xc, yc).
    curvature = pt[c] / (SPEED_OF_LIGHT * detector.field * particles["charge"][c])  # m
    sign, phi0 = np.sign(curvature), np.arctan2(py[c], px[c])
    xc, yc = x[c] + curvature * py[c] / pt[c], y[c] - curvature * px[c] / pt[c]
    centre, size = np.hypot(xc, yc), abs(curvature)
    cosine = (radius**2 - centre**2 - size**2) / (2 * curvature * centre)
    opening = np.arccos(np.clip(cosine, -1, 1))
    middle = phi0 + np.arctan2(xc, yc)
    turn = np.minimum(
        (sign * (middle + opening)) % (2 * np.pi), (sign * (middle - opening)) % (2 * np.pi)
    )
    length_c = np.minimum(np.where(abs(cosine) > 1, np.inf, size * turn), to_end[c])
    angle = sign * length_c / size - phi0
    length[c] = length_c
    x_out[c], y_out[c] = xc + curvature * np.sin(angle), yc + curvature * np.cos(angle)
    # The point closest to the beam lies on the line from there to the centre.
    d0[c] = sign * (centre - size) * 1e3
    back = sign * (-phi0 - np.arctan2(-sign * xc, -sign * yc))
    back = (back + np.pi) % (2 * np.pi) - np.pi
    dz[c] = (z[c] - size * back * pz[c] / pt[c]) * 1e3
    z_out = z + length * pz / pt
    return {
        "eta": np.arcsinh(z_out / np.maximum(np.hypot(x_out, y_out), 1e-9)),
        "phi": np.arctan2(y_out, x_out),
        "d0": d0,
        "dz": dz,
    }


def _track(particles, flight, detector, rng):
    """Tracks: the `index` of their particle, momenta, resolutions and where they end."""
    pt = np.hypot(particles["px"], particles["py"])
    eta = abs(flight["eta"])
    kind = abs(particles["pid"])
    kind = np.where((kind == ELECTRON) | (kind == MUON), kind, 0)
    efficiency = np.zeros_like(pt)
    for name, rows in detector.efficiency.items():
        row = np.searchsorted([least for least, _, _ in rows], pt) - 1
        barrel, endcap = (np.array([row[i] for row in rows])[row] for i in (1, 2))
        value = np.where(eta <= 1.5, barrel, endcap) * (row >= 0)
        efficiency = np.where(kind == name, value, efficiency)
    efficiency *= (particles["charge"] != 0) & (eta <= TRACKER_MAX_ETA)
    index = np.flatnonzero(rng.random(len(pt)) < efficiency)

    pt, eta, kind = pt[index], eta[index], kind[index]
    resolution, scale = np.zeros_like(pt), np.ones_like(pt)
    if detector.momentum:
        for name, rows in detector.momentum.items():
            _, constant, slope = np.array(rows)[_region(eta, rows)].T
            resolution = np.where(kind == name, np.hypot(constant, slope * pt), resolution)
        resolution = np.minimum(resolution, 1)
        scale = _log_normal(np.ones_like(pt), resolution, rng)
    p = np.hypot(pt, particles["pz"][index])
    tracks = {
        "index": index,
        "event": particles["event"][index],
        "eta": flight["eta"][index],
        "phi": flight["phi"][index],
        "energy": np.hypot(scale * p, particles["mass"][index]),
        "resolution": resolution,
        "momentum_scale": scale,
        "scale": np.ones_like(pt),
    }
    if detector.impact:
        errors = _impact_errors(pt, abs(np.arcsinh(particles["pz"][index] / pt)), detector.impact)
        for name, error in zip(("d0", "dz"), errors, strict=True):
            tracks[f"{name}err"] = error
            tracks[f"{name}val"] = rng.normal(flight[name][index], error)
    return tracks


def _impact_errors(pt, eta, rows):
    """Resolution of d0 and dz in mm."""
    region = _region(eta, rows)
    return [
        np.choose(region, [np.interp(np.log(pt), np.log(IMPACT_PT), row[i]) for row in rows])
        for i in (1, 2)
    ]


def _energy_flow(hits, tracks, calorimeter, rng):
    """Neutral excess of the towers, and the factor on the momentum of each of the tracks."""
    num_hits = len(hits["event"])
    event, eta, phi = (np.concatenate([hits[n], tracks[n]]) for n in ("event", "eta", "phi"))
    ring = np.searchsorted(calorimeter.eta_edges, eta) - 1
    covered = (ring >= 0) & (ring < len(calorimeter.phi_towers))
    ring = np.clip(ring, 0, len(calorimeter.phi_towers) - 1)
    around = calorimeter.phi_towers[ring]
    sector = np.floor((phi + np.pi) / (2 * np.pi) * around).astype(np.int64) % around
    key = (event * len(calorimeter.phi_towers) + ring) * 360 + sector
    keys, tower = np.unique(key[covered], return_inverse=True)
    sector, ring, event = keys % 360, keys // 360, keys // 360 // len(calorimeter.phi_towers)
    ring = ring % len(calorimeter.phi_towers)

    def add_up(values, start):
        """Sum over the hits of each tower, of what stands from `start` on among all hits."""
        weights = np.zeros(len(covered))
        weights[start : start + len(values)] = values
        return np.bincount(tower, weights[covered], len(keys))

    edges = calorimeter.eta_edges
    centre = (edges[ring] + edges[ring + 1]) / 2
    energy = add_up(hits["energy"], 0)
    energy = _log_normal(energy, calorimeter.sigma(centre, energy), rng)
    sigma = calorimeter.sigma(centre, energy)
    low = (energy < calorimeter.min_energy) | (energy < calorimeter.min_significance * sigma)
    energy[low] = 0
    track_energy = add_up(tracks["energy"], num_hits)
    track_variance = add_up((tracks["resolution"] * tracks["energy"]) ** 2, num_hits)
    excess = np.maximum(energy - track_energy, 0)
    neutral = (excess > calorimeter.min_energy) & (
        excess > calorimeter.min_significance * np.sqrt(track_variance + sigma**2)
    )

    with np.errstate(divide="ignore", invalid="ignore"):
        # The mean of both measurements, weighted by their inverse variances. A track without a
        # variance leaves it to the tower.
        mean = (sigma**2 * track_energy + track_variance * energy) / (sigma**2 + track_variance)
        mean = np.where(track_variance == 0, energy, mean)
        factor = np.where(neutral, 1.0, mean / track_energy)
    scale = np.ones(len(tracks["event"]))
    on_tower = covered[num_hits:]
    scale[on_tower] = factor[tower[covered[:num_hits].sum() :]]

    # Somewhere in the tower.
    u, v = rng.random((2, len(keys)))
    eta = edges[ring] + u * (edges[ring + 1] - edges[ring])
    phi = (sector + v) / calorimeter.phi_towers[ring] * 2 * np.pi - np.pi
    objects = {"event": event, "eta": eta, "phi": phi, "energy": excess}
    return {name: column[neutral] for name, column in objects.items()}, scale


def _log_normal(mean, sigma, rng):
    """Log-normal with this mean and standard deviation; 0 for a mean of 0."""
    width2 = np.log1p((sigma / np.maximum(mean, 1e-12)) ** 2)
    gauss = rng.standard_normal(len(mean))
    return np.where(mean > 0, mean * np.exp(np.sqrt(width2) * gauss - width2 / 2), 0.0)


def _merge(particles, tracks, towers):
    index, scale = tracks["index"], tracks["momentum_scale"] * tracks["scale"]
    columns = {name: scale * particles[name][index] for name in ("px", "py", "pz")}
    p2 = columns["px"] ** 2 + columns["py"] ** 2 + columns["pz"] ** 2
    columns |= {
        "event": tracks["event"],
        "pid": particles["pid"][index],
        "charge": particles["charge"][index],
        "energy": np.sqrt(p2 + particles["mass"][index] ** 2),
    }
    for name in ("d0val", "d0err", "dzval", "dzerr"):
        columns[name] = tracks.get(name, np.zeros(len(index)))
    # What the towers leave nothing of is not there.
    columns = {name: column[scale > 0] for name, column in columns.items()}
    for tower in towers:
        pt = tower["energy"] / np.cosh(tower["eta"])
        neutral = {
            "event": tower["event"],
            "pid": tower["pid"],
            "px": pt * np.cos(tower["phi"]),
            "py": pt * np.sin(tower["phi"]),
            "pz": pt * np.sinh(tower["eta"]),
            "energy": tower["energy"],
        }
        zeros = np.zeros(len(pt))
        columns = {
            name: np.concatenate([column, neutral.get(name, zeros).astype(column.dtype)])
            for name, column in columns.items()
        }
    order = np.argsort(columns["event"], kind="stable")
    return {name: column[order] for name, column in columns.items()}
