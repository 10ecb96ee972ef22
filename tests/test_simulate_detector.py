"""The detector, on particles made by hand."""

import numpy as np
import pytest

from jetzoo.simulate import detector
from jetzoo.simulate.detector import ATLAS, CMS, reconstruct

PION_MASS = 0.13957


def particles(num, pid, charge, pt, eta, phi=0.3, mass=0.0, vertex=(0.0, 0.0, 0.0)):
    """One particle in each of many events."""
    pt, eta, phi = (np.broadcast_to(np.asarray(x, float), num) for x in (pt, eta, phi))
    px, py, pz = pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)
    return {
        "event": np.arange(num),
        "pid": np.full(num, pid),
        "charge": np.full(num, float(charge)),
        "px": px,
        "py": py,
        "pz": pz,
        "energy": np.sqrt(px**2 + py**2 + pz**2 + mass**2),
        "mass": np.full(num, mass),
    } | {name: np.full(num, float(value)) for name, value in zip("xyz", vertex, strict=True)}


def together(*parts):
    """The particles of several lists in the same events."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["event"], kind="stable")
    return {name: column[order] for name, column in joined.items()}


def see(parts, which, seed=1):
    return reconstruct(parts, which, np.random.default_rng(seed))


@pytest.mark.parametrize(
    "which, eta, relative",
    [
        # 50 GeV: the terms of the cards by hand.
        (CMS, 0.3, (1 + 0.64 * 0.09) * np.sqrt(0.4**2 + 0.6050 + 0.16) / 50),
        (CMS, 2.2, (2.16 + 5.6 * 0.04) * np.sqrt(0.4**2 + 0.6050 + 0.16) / 50),
        (ATLAS, 0.3, np.sqrt(0.085**2 + 0.51) / 50),
    ],
)
def test_photons(which, eta, relative):
    seen = see(particles(4000, 22, 0, 50 / np.cosh(eta), eta), which)
    assert len(seen["event"]) == 4000
    assert set(seen["pid"]) == {22}
    ratio = seen["energy"] / 50
    assert ratio.mean() == pytest.approx(1, abs=4 * relative / 4000**0.5)
    assert ratio.std() == pytest.approx(relative, rel=0.06)
    pt = np.hypot(seen["px"], seen["py"])
    np.testing.assert_allclose(np.hypot(pt, seen["pz"]), seen["energy"])
    # Anywhere in the tower, which is the same for all.
    width = 0.0174 if which is CMS else 0.1
    assert np.ptp(np.arcsinh(seen["pz"] / pt)) == pytest.approx(width, rel=0.01)
    assert np.ptp(np.arctan2(seen["py"], seen["px"])) == pytest.approx(
        np.pi / (180 if which is CMS else 18), rel=0.01
    )
    assert not seen["d0err"].any() and not seen["charge"].any()


def test_thresholds():
    # An ECAL tower of CMS needs 0.5 GeV and twice its resolution: about 0.83 GeV.
    assert see(particles(4000, 22, 0, 1.0, 0.0), CMS)["energy"].min() == pytest.approx(
        0.826, abs=0.01
    )
    assert see(particles(4000, 22, 0, 0.7, 0.0), ATLAS)["energy"].min() == pytest.approx(
        0.5, abs=0.01
    )
    # A HCAL tower needs 2.25 GeV, so that slow charged hadrons are lost, too.
    assert see(particles(4000, 130, 0, 3.0, 0.0, mass=0.498), CMS)["energy"].min() > 2.25
    slow = see(particles(4000, 211, 1, 1.2, 0.0, mass=PION_MASS), CMS)
    assert len(slow["event"]) < 0.25 * 4000


@pytest.mark.parametrize(
    "pid, pt, eta, efficiency",
    [
        (211, 5.0, 0.3, 0.95),
        (211, 5.0, 2.0, 0.85),
        (211, 0.8, 0.3, 0.70),
        (11, 200.0, 1.0, 0.99),
        (13, 20.0, 2.0, 0.98),
        (13, 20.0, 2.6, 0.0),
        (211, 0.09, 0.0, 0.0),
    ],
)
def test_efficiency(pid, pt, eta, efficiency):
    seen = see(particles(5000, pid, 1, pt, eta, mass=PION_MASS), ATLAS)
    tracks = (seen["charge"] != 0).sum() / 5000
    assert tracks == pytest.approx(
        efficiency, abs=4 * (efficiency * (1 - efficiency) / 5000) ** 0.5
    )


def test_muons_have_the_momentum_resolution_and_no_towers():
    seen = see(particles(5000, -13, 1, 30.0, 1.0, mass=0.1057), ATLAS)
    assert set(seen["pid"]) == {-13}
    pt = np.hypot(seen["px"], seen["py"])
    assert pt.std() / 30 == pytest.approx(np.hypot(0.015, 1.5e-4 * 30), rel=0.06)
    np.testing.assert_allclose(np.arcsinh(seen["pz"] / pt), 1.0)
    # The card of JetClass leaves the momentum as it is.
    exact = see(particles(100, -13, 1, 30.0, 1.0, mass=0.1057), CMS)
    np.testing.assert_allclose(np.hypot(exact["px"], exact["py"]), 30.0)


@pytest.mark.parametrize("which", [CMS, ATLAS])
def test_energy_flow_counts_no_energy_twice(which):
    pions = particles(4000, 211, 1, 40.0, 0.1, mass=PION_MASS)
    alone = see(pions, which)
    total = np.bincount(alone["event"], alone["energy"], 4000)
    assert total.mean() == pytest.approx(pions["energy"].mean(), rel=0.02)
    # Photons do not care for the pions, whose energy is in the other calorimeter.
    both = see(together(pions, particles(4000, 22, 0, 60.0, 0.1)), which)
    assert (both["pid"] == 22).sum() == 4000
    total = np.bincount(both["event"], both["energy"], 4000)
    assert total.mean() == pytest.approx(pions["energy"].mean() + 60 * np.cosh(0.1), rel=0.02)
    # A neutral hadron in the tower of a track is what the tower has more than the track.
    flight = detector._propagate(pions, which)
    neutral = particles(4000, 130, 0, 80.0, flight["eta"][0], flight["phi"][0], mass=0.498)
    both = see(together(pions, neutral), which)
    total = np.bincount(both["event"], both["energy"], 4000)
    assert total.mean() == pytest.approx((pions["energy"] + neutral["energy"]).mean(), rel=0.02)
    excess = both["energy"][both["pid"] == 0]
    assert excess.mean() == pytest.approx(neutral["energy"][0], rel=0.1)


def test_charged_hadrons_of_cms_are_measured_by_the_calorimeter():
    seen = see(particles(5000, 211, 1, 20.0, 0.0, mass=PION_MASS), CMS)
    tracks = seen["energy"][seen["charge"] != 0]
    # sqrt(1.5^2 20 + (0.05 20)^2) = 6.8 GeV; upward fluctuations become neutral hadrons.
    assert 4.5 < tracks.std() < 7
    mass2 = seen["energy"] ** 2 - seen["px"] ** 2 - seen["py"] ** 2 - seen["pz"] ** 2
    np.testing.assert_allclose(mass2[seen["charge"] != 0], PION_MASS**2, rtol=1e-6)


def test_helix_against_stepping():
    """End and closest approach of random tracks, by rotating the momentum in small steps."""
    rng = np.random.default_rng(3)
    num = 30
    eta = rng.uniform(0.5, 1.5, num) * rng.choice([-1, 1], num)  # slower ones loop for long
    parts = particles(num, 211, 1, rng.uniform(0.3, 5, num), eta, rng.uniform(-3, 3, num))
    parts["charge"] = rng.choice([-1.0, 1.0], num)
    for name, size in zip("xyz", (200, 200, 300), strict=True):
        parts[name] = rng.uniform(-size, size, num)
    flight = detector._propagate(parts, CMS)
    step = 5e-4  # m in the transverse plane
    pt = np.hypot(parts["px"], parts["py"])
    bend = parts["charge"] * 0.299792458 * 3.8 / pt * step
    slope = parts["pz"] / pt

    def fly(direction):
        position = np.array([parts[name] / 1e3 for name in "xyz"])
        angle = np.arctan2(parts["py"], parts["px"])
        best = np.full(num, np.inf)
        best_z, end, out = np.zeros(num), np.zeros((3, num)), np.zeros(num, bool)
        for _ in range(16_000):
            angle = angle - direction * bend / 2
            position = position + direction * step * np.array([np.cos(angle), np.sin(angle), slope])
            angle = angle - direction * bend / 2
            r = np.hypot(position[0], position[1])
            leaves = ~out & ((r > CMS.radius) | (abs(position[2]) > CMS.half_length))
            end[:, leaves] = position[:, leaves]
            out |= leaves
            closer = ~out & (r < best)
            best[closer], best_z[closer] = r[closer], position[2][closer]
            if out.all():
                break
        assert out.all()
        return best, best_z, end

    forward, backward = fly(1), fly(-1)
    end = forward[2]
    np.testing.assert_allclose(
        flight["eta"], np.arcsinh(end[2] / np.hypot(end[0], end[1])), atol=5e-4
    )
    assert np.abs(np.sin(flight["phi"] - np.arctan2(end[1], end[0]))).max() < 5e-4
    closest = np.minimum(forward[0], backward[0]) * 1e3
    np.testing.assert_allclose(np.abs(flight["d0"]), closest, atol=0.005)
    z = np.where(forward[0] < backward[0], forward[1], backward[1]) * 1e3
    np.testing.assert_allclose(flight["dz"], z, atol=0.5)


def test_impact_parameters():
    seen = see(particles(5000, 13, -1, 10.0, 0.3, mass=0.1057), CMS)
    for name, error in (("d0", 0.0200), ("dz", 0.0400)):
        np.testing.assert_allclose(seen[f"{name}err"], error)
        assert (seen[f"{name}val"] / error).std() == pytest.approx(1, rel=0.05)
        assert abs(seen[f"{name}val"].mean()) < 4 * error / 5000**0.5


@pytest.mark.parametrize("charge", [-1, 1])
@pytest.mark.parametrize("x", [-2.0, 2.0])
def test_sign_of_impact_parameters(charge, x):
    """At `x` mm beside the beam, flying in y, and 3 mm along the beam: d0 is (x py - y px) / pT."""
    vertex = (x, 0.0, 3.0)
    seen = see(particles(2000, 13, charge, 100.0, 0.0, np.pi / 2, 0.1057, vertex), CMS)
    assert seen["d0val"].mean() == pytest.approx(x, abs=0.002)
    assert seen["dzval"].mean() == pytest.approx(3, abs=0.005)


def test_particles_from_outside_are_not_seen():
    far = particles(100, 22, 0, 50.0, 0.0, vertex=(1300.0, 0.0, 0.0))
    assert len(see(far, CMS)["event"]) == 0


def test_events_do_not_mix():
    parts = together(particles(50, 22, 0, 20.0, 0.5), particles(50, 211, 1, 20.0, 0.5))
    seen = see(parts, ATLAS)
    assert (np.diff(seen["event"]) >= 0).all()
    assert set(seen["event"]) == set(range(50))
    assert (np.bincount(seen["event"][seen["pid"] == 22], minlength=50) == 1).all()


@pytest.mark.real
def test_errors_of_published_muons(real_data):
    """Muons keep their momentum in the published chain, so that their errors can be looked up."""
    with np.load(real_data / "jetclass_tops_100.npz") as file:
        features, vectors = file["pf_features_full"], file["pf_vectors"].astype(float)
    muon = features[:, 10] > 0
    px, py, pz, _ = (vectors[:, i][muon] for i in range(4))
    pt = np.hypot(px, py)
    eta = abs(np.arcsinh(pz / pt))
    d0err, dzerr = detector._impact_errors(pt, eta, detector.IMPACT)
    assert len(pt) > 30
    for mine, published in ((d0err, features[:, 12][muon]), (dzerr, features[:, 14][muon])):
        ratio = mine / published
        assert np.median(ratio) == pytest.approx(1, abs=0.05)
        assert np.mean(abs(ratio - 1) < 0.15) > 0.9
