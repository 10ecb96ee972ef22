"""The data configs, read through weaver's own loader, against the formulas written out in NumPy."""

from pathlib import Path

import awkward as ak
import handmade
import numpy as np
import pytest
from weaver.utils.dataset import DataConfig, SimpleIterDataset

from jetzoo import tables

DATA = Path(__file__).resolve().parent.parent / "data"
LENGTH = 128
# Empty, single, common, exactly full and too long jets.
COUNTS = (0, 1, 2, 31, 57, 128, 141)

KIN = ("pt_log", "e_log", "logptrel", "logerel", "deltaR")
TYPES = ("isChargedHadron", "isNeutralHadron", "isPhoton", "isElectron", "isMuon")
PLUS = ("isCHad", "isNHad", *TYPES[2:])
TRACK = ("d0", "d0err", "dz", "dzerr")
ANGLES = ("deta", "dphi")
OBSERVERS = ["jet_pt", "jet_eta"]
JETCLASS_OBSERVERS = [
    *OBSERVERS,
    *("jet_phi", "jet_energy", "jet_nparticles", "jet_sdmass"),
    *(f"jet_tau{i}" for i in (1, 2, 3, 4)),
]

FEATURES = {
    "JetClass/JetClass_kin": KIN + ANGLES,
    "JetClass/JetClass_kinpid": (*KIN, "charge", *TYPES, *ANGLES),
    "JetClass/JetClass_full": (*KIN, "charge", *TYPES, *TRACK, *ANGLES),
    "QuarkGluon/qg_kin": KIN + ANGLES,
    "QuarkGluon/qg_kinpid": (*KIN, "charge", *TYPES, *ANGLES),
    "QuarkGluon/qg_kinpidplus": (*KIN, "charge", *PLUS, *ANGLES),
    "TopLandscape/top_kin": KIN + ANGLES,
}


def feature(name, part, jet_pt, jet_energy):
    """One input feature of the particles of one jet, before padding, in double precision."""
    pt = np.hypot(part("px"), part("py"))

    def standard(x, center, scale):
        return np.clip((x - center) * scale, -5, 5)

    def is_any(weights):
        return sum(weight * (abs(part("pid")) == pid) for pid, weight in weights.items())

    match name:
        case "pt_log":
            return standard(np.log(pt), 1.7, 0.7)
        case "e_log":
            return standard(np.log(part("energy")), 2.0, 0.7)
        case "logptrel":
            return standard(np.log(pt / jet_pt), -4.7, 0.7)
        case "logerel":
            return standard(np.log(part("energy") / jet_energy), -4.7, 0.7)
        case "deltaR":
            return standard(np.hypot(part("deta"), part("dphi")), 0.2, 4.0)
        case "isCHad":
            return is_any({211: 1, 321: 0.5, 2212: 0.2})
        case "isNHad":
            return is_any({130: 1, 2112: 0.2})
        case "d0" | "dz":
            return np.tanh(part(f"{name}val"))
        case "d0err" | "dzerr":
            return np.clip(part(name), 0, 1)
    return part(name)


def expected(config, jets, i):
    """Inputs of jet `i` as a dict of (C, 128) arrays."""

    def part(name):
        return np.asarray(jets[f"part_{name}"][i], dtype="float64")

    def wrap(rows):  # (C, n) -> (C, 128), repeating from the first particle on
        return np.stack([np.resize(row, LENGTH) if len(row) else np.zeros(LENGTH) for row in rows])

    scale = float(jets["jet_pt"][i]), float(jets["jet_energy"][i])
    return {
        "pf_points": wrap([part(name) for name in ANGLES]),
        "pf_features": wrap([feature(name, part, *scale) for name in FEATURES[config]]),
        "pf_vectors": wrap([part(name) for name in ("px", "py", "pz", "energy")]),
        "pf_mask": (np.arange(LENGTH) < len(part("px")))[None].astype(float),
    }


def read(config, path):
    """(inputs, labels, observers) of every jet of a file, in its order, as weaver tests on them."""
    dataset = SimpleIterDataset(
        {"": [str(path)]},
        str(DATA / f"{config}.yaml"),
        for_training=False,
        fetch_by_files=True,
        fetch_step=1,
        name="test",
    )
    return list(dataset)


def assert_same(config, read_jets, jets):
    for i, (inputs, _, _) in enumerate(read_jets):
        for name, values in expected(config, jets, i).items():
            np.testing.assert_allclose(
                inputs[name], values, rtol=1e-5, atol=2e-5, err_msg=f"{name} of jet {i}"
            )


@pytest.mark.parametrize("config", FEATURES)
def test_inputs_labels_and_observers(config, tmp_path):
    rng = np.random.default_rng(1)
    # One jet is wide enough for deltaR to be clipped; soft particles clip the logarithms.
    spread = np.where(np.array(COUNTS) == 57, 0.9, 0.15)
    if config.startswith("JetClass"):
        path = tmp_path / "jets.root"
        labels = [3, 0, 9, 1, 8, 5, 2]
        jets = handmade.write_root(path, COUNTS, rng, labels, spread=spread)
        observers = JETCLASS_OBSERVERS
    else:
        path = tmp_path / "jets.parquet"
        jets = handmade.write_parquet(path, COUNTS, rng, spread=spread)
        labels = 1 - jets["label"]  # quark (top) is the first class, gluon (QCD) the second
        observers = OBSERVERS
    read_jets = read(config, path)

    assert len(read_jets) == len(COUNTS)
    assert_same(config, read_jets, jets)
    assert [int(y["_label_"]) for _, y, _ in read_jets] == list(labels)
    assert list(read_jets[0][2]) == observers
    for name in observers:
        np.testing.assert_allclose([z[name] for _, _, z in read_jets], jets[name], rtol=1e-6)
    # The jets must really have reached the limits that are tested.
    features = np.concatenate([inputs["pf_features"] for inputs, _, _ in read_jets], axis=1)
    assert features[0].min() == -5 and features[4].max() == 5
    if config.endswith("full"):
        assert features[12].max() == 1


@pytest.mark.parametrize("config", FEATURES)
def test_selections_can_be_added(config):
    """weaver's `--extra-selection-*` and `--cross-validation` need the key to be there."""
    config = DataConfig.load(
        DATA / f"{config}.yaml", extra_selection="jet_pt > 500", extra_test_selection="jet_pt > 600"
    )
    assert config.selection == "(jet_pt > 500)"
    assert config.test_time_selection == "(jet_pt > 600)"


def test_the_mass_of_a_jet_is_a_target():
    """The mass of the particles in double precision, and the inputs of `JetClass_kin`."""
    kin, mass = (DataConfig.load(DATA / f"JetClass/JetClass_{x}.yaml") for x in ("kin", "mass"))
    assert mass.options["inputs"] == kin.options["inputs"]
    assert mass.preprocess_params == kin.preprocess_params
    path = DATA / "samples/JetClass/Pythia/test_20M/TTBar_000.root"
    names = [f"part_{name}" for name in ("px", "py", "pz", "energy")]
    jets = tables.read(path, names)
    px, py, pz, energy = (ak.to_numpy(ak.sum(jets[name], axis=1)) for name in names)
    expected = np.sqrt(energy**2 - px**2 - py**2 - pz**2) / 100
    found = [float(y["jet_mass"]) for _, y, _ in read("JetClass/JetClass_mass", path)]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.median(found) == pytest.approx(1.72, abs=0.1)  # the top quark


def test_labels_follow_the_published_order():
    """A published JetClass checkpoint has its outputs in this order."""
    for kind in ("kin", "kinpid", "full"):
        config = DataConfig.load(DATA / f"JetClass/JetClass_{kind}.yaml")
        assert config.label_value == handmade.JETCLASS_LABELS
        assert config.input_names == ("pf_points", "pf_features", "pf_vectors", "pf_mask")


@pytest.mark.real
@pytest.mark.parametrize(
    "config, name", [("QuarkGluon/qg_kin", "quarkgluon"), ("TopLandscape/top_kin", "toplandscape")]
)
def test_published_jets(config, name, real_data):
    path = real_data / f"{name}_1000.parquet"
    jets = ak.from_parquet(path)
    read_jets = read(config, path)
    assert_same(config, read_jets, jets)
    assert [int(y["_label_"]) for _, y, _ in read_jets] == list(1 - jets.label)


@pytest.mark.real
def test_published_inputs(real_data, tmp_path):
    """The published inputs of 100 JetClass tops come out again, but for the clipping they lack."""
    tops = np.load(real_data / "jetclass_tops_100.npz")
    counts = tops["pf_mask"][:, 0].sum(axis=-1).astype(int)

    def jagged(values):
        return ak.Array([row[:n] for row, n in zip(values, counts, strict=True)])

    px, py, pz, energy = (jagged(tops["pf_vectors"][:, i]) for i in range(4))
    _, _, logptrel, logerel, _, deta, dphi = tops["pf_features_kin"].swapaxes(0, 1)
    # The jets' pT and energy are not in the file; the leading particle's share of them is.
    leading = slice(None), 0
    jets = {
        "part_px": px,
        "part_py": py,
        "part_pz": pz,
        "part_energy": energy,
        "part_deta": jagged(deta),
        "part_dphi": jagged(dphi),
        "jet_pt": np.hypot(px, py)[leading] / np.exp(logptrel[leading] / 0.7 - 4.7),
        "jet_energy": energy[leading] / np.exp(logerel[leading] / 0.7 - 4.7),
    }
    for name in [*handmade.JETCLASS_LABELS, *JETCLASS_OBSERVERS]:
        jets.setdefault(name, np.zeros(len(counts)))
    handmade.write_tree(tmp_path / "tops.root", jets)

    for i, (inputs, _, _) in enumerate(read("JetClass/JetClass_kin", tmp_path / "tops.root")):
        np.testing.assert_allclose(
            inputs["pf_features"][:, : counts[i]],
            np.clip(tops["pf_features_kin"][i][:, : counts[i]], -5, 5),
            atol=1e-4,
        )
