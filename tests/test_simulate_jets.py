"""The top-tagging and JetClass generators, and the samples of them that the repository embeds."""

import awkward as ak
import numpy as np
import pytest
import uproot
from conftest import ROOT
from scipy.stats import ks_2samp

from jetzoo.datasets.simulation import generate

pytest.importorskip("pythia8mc")
pytest.importorskip("fastjet")

from jetzoo.simulate import events, jetclass  # noqa: E402
from jetzoo.simulate.pythia import new_pythia  # noqa: E402

SAMPLES = ROOT / "data" / "samples"
FOLDERS = {"train": "train_100M", "val": "val_5M", "test": "test_20M"}


def read_tops(folder):
    return ak.concatenate([ak.from_parquet(path) for path in sorted(folder.glob("*.parquet"))])


def read_jetclass(folder, name):
    paths = sorted(folder.glob(f"Pythia/*/{name}_*.root"))
    return ak.concatenate([uproot.open(path)["tree"].arrays() for path in paths])


@pytest.fixture(scope="module")
def top_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("TopLandscape")
    generate("TopLandscape", 20, folder, seed=5)
    return folder


@pytest.fixture(scope="module")
def jetclass_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("JetClass")
    generate("JetClass", 100, folder, seed=5)
    return folder


def check_kinematics(jets):
    """Order, and the columns that follow from the particles' momenta (rounded to 1e-6)."""
    pt = np.hypot(jets.part_px, jets.part_py)
    assert ak.all(pt[:, 1:] <= pt[:, :-1] * (1 + 4e-6))
    px, py, pz, energy = (
        ak.sum(jets[f"part_{name}"], axis=1) for name in ("px", "py", "pz", "energy")
    )
    np.testing.assert_allclose(np.hypot(px, py), jets.jet_pt, rtol=1e-5)
    np.testing.assert_allclose(energy, jets.jet_energy, rtol=1e-5)
    np.testing.assert_allclose(np.arcsinh(pz / np.hypot(px, py)), jets.jet_eta, atol=1e-4)
    assert ak.all(ak.num(pt) == jets.jet_nparticles)
    deta = (np.arcsinh(jets.part_pz / pt) - jets.jet_eta) * np.sign(jets.jet_eta)
    assert ak.all(abs(deta - jets.part_deta) < 1e-3)
    assert ak.max(abs(jets.jet_eta)) < 2.01


def check_tops(jets):
    check_kinematics(jets)
    p2 = jets.part_px**2 + jets.part_py**2 + jets.part_pz**2
    assert ak.all(abs(jets.part_energy**2 - p2) <= 1e-5 * p2)
    assert ak.min(jets.jet_pt) > 550 - 1
    assert ak.max(jets.jet_pt) < 650 + 1
    assert ak.max(jets.jet_nparticles) <= 200
    assert ak.max(np.hypot(jets.part_deta, jets.part_dphi)) < 1.2
    assert 150 < np.median(jets.jet_mass[jets.label == 1].to_numpy()) < 190


def check_jetclass(name, jets):
    kind = jetclass.CLASSES[name]
    check_kinematics(jets)
    assert ak.min(jets.jet_pt) > 500 - 0.01
    assert ak.max(jets.jet_pt) < 1000 + 0.01
    for other in jetclass.LABELS:
        assert ak.all(jets[f"label_{other}"] == (other == kind.label))
    flags = sum(jets[f"part_is{kind}"] for kind in ("ChargedHadron", "Electron", "Muon"))
    assert ak.all(flags == abs(jets.part_charge))
    neutral = jets.part_isPhoton + jets.part_isNeutralHadron
    assert ak.all(flags + neutral == 1)
    # Slow massive particles have a larger pseudorapidity than rapidity, of which the jet is made.
    distance = ak.flatten(np.hypot(jets.part_deta, jets.part_dphi)).to_numpy()
    assert np.quantile(distance, 0.99) < 1
    for column in ("d0val", "d0err", "dzval", "dzerr"):
        assert ak.all((jets[f"part_{column}"] == 0) | (flags == 1))
    taus = [jets[f"jet_tau{i}"].to_numpy() for i in (1, 2, 3, 4)]
    assert min(tau.min() for tau in taus) >= 0
    assert max(tau.max() for tau in taus) < 1
    assert (taus[0] > taus[3]).all()
    assert set(jets.aux_truth_match.to_numpy()) <= set(jetclass.TRUTH[kind.label].values())
    if kind.resonance:
        assert set(abs(jets.aux_genpart_pid)) == {kind.resonance}
        away = np.hypot(
            jets.aux_genpart_eta - jets.jet_eta,
            np.sin(jets.aux_genpart_phi - jets.jet_phi),
        )
        assert np.quantile(away.to_numpy(), 0.9) < 0.5


def test_tops(top_folder):
    for split, size in {"train": 14, "val": 2, "test": 4}.items():
        jets = ak.from_parquet(top_folder / f"{split}_file.parquet")
        assert len(jets) == size
        assert ak.sum(jets.label) == size / 2
    assert len(list(top_folder.iterdir())) == 3
    jets = read_tops(top_folder)
    check_tops(jets)
    sample = ak.from_parquet(SAMPLES / "TopLandscape" / "val_file.parquet")
    assert jets.type.content == sample.type.content


def test_jetclass(jetclass_folder):
    files = sorted(path.relative_to(jetclass_folder) for path in jetclass_folder.rglob("*.root"))
    assert len(files) == 30
    for name in jetclass.CLASSES:
        for split, size in {"train": 7, "val": 1, "test": 2}.items():
            path = jetclass_folder / "Pythia" / FOLDERS[split] / f"{name}_000.root"
            with uproot.open(path) as file:
                assert file.classnames() == {"tree;1": "TTree"}
                assert file["tree"].num_entries == size
        check_jetclass(name, read_jetclass(jetclass_folder, name))


def test_same_jets_for_the_same_seed():
    first, again = (jetclass.simulate("ZJetsToNuNu", 3, seed=8) for _ in range(2))
    assert ak.array_equal(first, again)


def test_matching_asks_for_all_partons():
    jets = ak.Array(
        [[{"eta": 0.0, "phi": 3.1}], [{"eta": 0.0, "phi": 0.0}], [{"eta": 0.0, "phi": 0.0}]]
    )
    partons = ak.Array(
        [
            [{"eta": 0.5, "phi": 3.1}, {"eta": 0.0, "phi": -3.1}],
            [{"eta": 0.5, "phi": 0.0}, {"eta": 0.6, "phi": 0.6}],
            [{"eta": 0.5, "phi": 0.0}][:0],
        ]
    )
    assert events.is_matched(jets, partons, 0.8).tolist() == [[True], [False], [False]]


@pytest.mark.parametrize("name, products", [("TTBar", 3), ("HToWW2Q1L", 3), ("ZToQQ", 2)])
def test_veto_keeps_contained_decays(name, products):
    """What the veto keeps is a resonance of the window whose products are those of the class."""
    kind = jetclass.CLASSES[name]
    kept = []

    class Watcher(events.DecayVeto):
        def doVetoProcessLevel(self, process):
            if not super().doVetoProcessLevel(process):
                good = [i for i in range(5, process.size()) if self._is_good(process, i)]
                for i in good:
                    pids = [abs(p.id()) for p in events.visible_products(process, i)]
                    kept.append((process[i].pT(), pids))
            return True

    veto = Watcher(kind.resonance, 440.0, 1200.0, kind.num_leptons)
    settings = (
        "Beams:eCM = 13000.",
        "PartonLevel:all = off",
        "Check:abortIfVeto = on",
        "PhaseSpace:pTHatMin = 400.",
    )
    pythia = new_pythia((*settings, *kind.settings), 3, veto)
    for _ in range(300):
        pythia.next()
    assert len(kept) > 10
    for pt, pids in kept:
        assert 440 < pt < 1200
        assert len(pids) == products
        assert sum(pid in (11, 13) for pid in pids) == kind.num_leptons


def test_samples():
    for name in ("TopLandscape", "JetClass"):
        sizes = [path.stat().st_size for path in (SAMPLES / name).rglob("*.*") if path.is_file()]
        assert sum(sizes) <= 6e6
        assert max(sizes) < 4e6
    check_tops(read_tops(SAMPLES / "TopLandscape"))
    for name in jetclass.CLASSES:
        jets = read_jetclass(SAMPLES / "JetClass", name)
        assert len(jets) >= 100
        check_jetclass(name, jets)
    mass = np.median(read_jetclass(SAMPLES / "JetClass", "HToBB").jet_sdmass.to_numpy())
    assert 110 < mass < 125


@pytest.mark.real
@pytest.mark.parametrize("label", [0, 1])
def test_tops_look_like_the_published_jets(label, real_data):
    published = ak.from_parquet(real_data / "toplandscape_1000.parquet")
    published = published[published.label == label]
    simulated = read_tops(SAMPLES / "TopLandscape")
    simulated = simulated[simulated.label == label]
    # About 500 against 2500 jets: like with like exceeds 0.096 once in 1000 comparisons.
    for name in ("jet_nparticles", "jet_mass", "jet_pt", "jet_eta"):
        ks = ks_2samp(published[name].to_numpy(), simulated[name].to_numpy()).statistic
        assert ks < 0.1, (name, ks)
    for name in ("part_deta", "part_dphi", "part_energy"):
        real, mine = (ak.flatten(jets[name]).to_numpy() for jets in (published, simulated))
        assert ks_2samp(real, mine).statistic < 0.04, name


@pytest.mark.real
def test_jetclass_looks_like_the_published_jets(real_data):
    with np.load(real_data / "jetclass_hbb_500.npz") as file:
        real, vectors = file["pf_mask"][:, 0] > 0, file["pf_vectors"].astype(float)
    simulated = read_jetclass(SAMPLES / "JetClass", "HToBB")
    px, py, pz, energy = vectors.sum(axis=2, where=real[:, None]).T
    pt = np.hypot(px, py)
    mass = np.sqrt(np.maximum(energy**2 - pt**2 - pz**2, 0))
    p4 = [
        ak.sum(ak.values_astype(simulated[f"part_{n}"], float), axis=1) for n in ("px", "py", "pz")
    ]
    mine = np.sqrt(np.maximum(simulated.jet_energy.to_numpy() ** 2 - sum(x**2 for x in p4), 0))
    # 500 against 250 jets: like with like exceeds 0.15 once in 1000 comparisons.
    assert ks_2samp(real.sum(axis=1), simulated.jet_nparticles.to_numpy()).statistic < 0.15
    assert ks_2samp(pt, simulated.jet_pt.to_numpy()).statistic < 0.15
    assert ks_2samp(mass, mine).statistic < 0.15
    part_pt = np.hypot(vectors[:, 0], vectors[:, 1])[real]
    mine = ak.flatten(np.hypot(simulated.part_px, simulated.part_py)).to_numpy()
    assert ks_2samp(part_pt, mine).statistic < 0.04
