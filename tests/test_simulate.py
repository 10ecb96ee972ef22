"""The quark/gluon generator, and the sample made with it that the repository embeds."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import awkward as ak
import killed_runs
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from jetzoo import UserError
from jetzoo.datasets import CATALOGUE, Dataset, command, simulation
from jetzoo.datasets.folder import at_work, publish
from jetzoo.datasets.simulation import generate
from jetzoo.schema import write_parquet

SAMPLE = ROOT / "data" / "samples" / "QuarkGluon"
SPLITS = ("train", "val", "test")
PUBLISHED_MULTIPLICITY = {0: 54, 1: 34}
PUBLISHED_PIDS = {11, 13, 22, 130, 211, 321, 2112, 2212}

needs_pythia = pytest.mark.skipif(
    find_spec("pythia8mc") is None, reason="needs pip install -e '.[simulate]'"
)


def read(folder):
    return ak.concatenate([ak.from_parquet(path) for path in sorted(folder.glob("*.parquet"))])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


@pytest.fixture(scope="module")
def jets_folder(tmp_path_factory):
    pytest.importorskip("pythia8mc")
    folder = tmp_path_factory.mktemp("QuarkGluon")
    generate("QuarkGluon", 20, folder, seed=5)
    return folder


@pytest.fixture(scope="module")
def sample():
    return read(SAMPLE)


def check_jets(jets):
    """What holds of any jets of the recipe."""
    pt = np.hypot(jets.part_px, jets.part_py)  # rounded to 1e-6
    assert ak.all(pt[:, 1:] <= pt[:, :-1] * (1 + 4e-6))
    p2 = pt**2 + jets.part_pz**2
    assert ak.all(abs(jets.part_energy**2 - p2) <= 1e-5 * p2)

    # FastJet ran on the massive particles; (pT, y, phi) of each is what is kept.
    jet_px, jet_py = ak.sum(jets.part_px, axis=1), ak.sum(jets.part_py, axis=1)
    np.testing.assert_allclose(np.hypot(jet_px, jet_py), jets.jet_pt, rtol=1e-5)
    assert ak.min(jets.jet_pt) >= 500 - 1e-3
    assert ak.max(jets.jet_pt) <= 550 + 1e-3
    # Massless particles move the jet's rapidity a little.
    assert ak.max(abs(jets.jet_eta)) < 1.75
    assert ak.max(np.hypot(jets.part_deta, jets.part_dphi)) < 0.7

    eta = np.arcsinh(jets.part_pz / pt)
    deta = (eta - jets.jet_eta) * np.sign(jets.jet_eta)
    phi = np.arctan2(jets.part_py, jets.part_px)
    # Angles are stored to 2.5e-4 of their value.
    assert ak.all(abs(deta - jets.part_deta) < 1e-4)
    assert ak.all(abs(np.sin(phi - jets.jet_phi - jets.part_dphi)) < 1e-4)
    assert ak.all(ak.num(jets.part_pid) == jets.jet_nparticles)
    assert set(np.unique(abs(ak.flatten(jets.part_pid)))) <= PUBLISHED_PIDS


def test_generated_jets(jets_folder):
    sizes = {"train": 14, "val": 2, "test": 4}
    assert {path.name for path in jets_folder.iterdir()} == {f"{s}_file_0.parquet" for s in SPLITS}
    for split, size in sizes.items():
        jets = ak.from_parquet(jets_folder / f"{split}_file_0.parquet")
        assert len(jets) == size
        assert ak.sum(jets.label) == size / 2
    jets = read(jets_folder)
    assert jets.fields == read(SAMPLE).fields
    assert jets.type.content == read(SAMPLE).type.content
    check_jets(jets)
    assert len(np.unique(jets.jet_pt)) == len(jets)


def test_same_bytes_for_the_same_seed_whatever_the_jobs(jets_folder, tmp_path):
    paths = generate("QuarkGluon", 20, tmp_path / "same", seed=5, jobs=2)
    assert paths == [tmp_path / "same" / f"{split}_file_0.parquet" for split in SPLITS]
    assert contents(tmp_path / "same") == contents(jets_folder)
    generate("QuarkGluon", 20, tmp_path / "other", seed=6)
    other, jets = read(tmp_path / "other"), read(jets_folder)
    assert not set(other.jet_pt.to_numpy()) & set(jets.jet_pt.to_numpy())


@needs_pythia
@pytest.mark.slow
def test_same_bytes_on_a_cluster(jets_folder, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        arguments = ["QuarkGluon", "--simulate", "20", "--seed", "5"]
        where = ["--dask", cluster.scheduler_address, "--dir", str(tmp_path)]
        assert command.main([*arguments, *where]) == 0
    assert contents(tmp_path / "QuarkGluon") == contents(jets_folder)


@needs_pythia
def test_interrupted_run_continues(jets_folder, tmp_path, monkeypatch):
    class Interrupted(simulation.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(simulation, "tqdm", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate("QuarkGluon", 20, tmp_path, seed=5)
    (partial,) = tmp_path.iterdir()
    done = {path.name: path.stat().st_mtime_ns for path in partial.iterdir()}
    assert "0_0.parquet" in done

    kept = []

    def look(source, *args):
        kept.append({path.name: path.stat().st_mtime_ns for path in source.iterdir()})
        publish(source, *args)

    monkeypatch.setattr(simulation, "publish", look)
    generate("QuarkGluon", 20, tmp_path, seed=5)
    assert done.items() <= kept[0].items()
    assert contents(tmp_path) == contents(jets_folder)
    assert [path.suffix for path in tmp_path.iterdir()] == [".parquet"] * 3


@needs_pythia
def test_finished_jets_are_not_overwritten(jets_folder):
    before = contents(jets_folder)
    with pytest.raises(UserError, match="already holds other jets"):
        generate("QuarkGluon", 20, jets_folder, seed=6)
    assert contents(jets_folder) == before


@pytest.fixture
def toy(monkeypatch):
    """A generator without Pythia, in this process."""
    monkeypatch.setitem(sys.modules, "toy_generator", killed_runs.ToyGenerator())
    monkeypatch.setitem(CATALOGUE, "Toy", killed_runs.TOY)
    monkeypatch.setattr(simulation, "ProcessPoolExecutor", killed_runs.InlineExecutor)
    monkeypatch.setattr(simulation, "CHUNK_JETS", 10)


def interrupt(monkeypatch, num_jets, folder, seed=1):
    """A run whose chunks are all there, and no more."""
    with monkeypatch.context() as patch:

        def killed(*args):
            raise KeyboardInterrupt

        patch.setattr(simulation, "_read", killed)
        with pytest.raises(KeyboardInterrupt):
            generate("Toy", num_jets, folder, seed=seed)
    return folder / f".partial-{num_jets}-{seed}"


@pytest.mark.parametrize("damage", ["empty", "cut", "short", "bytes", "zeros"])
def test_damaged_chunks_are_simulated_again(toy, tmp_path, monkeypatch, damage):
    generate("Toy", 60, tmp_path / "whole")
    partial = interrupt(monkeypatch, 60, tmp_path / "toy")
    chunks = sorted(partial.glob("*.parquet"))
    assert [chunk.name for chunk in chunks] == [
        f"{i}_{j}.parquet" for i in (0, 1) for j in (0, 1, 2)
    ]
    chunk, content = chunks[1], chunks[1].read_bytes()
    if damage == "short":
        write_parquet(ak.from_parquet(chunk)[:4], chunk)
    else:
        damaged = {
            "empty": b"",
            "cut": content[:-10],
            "bytes": b"PAR1 and no more",
            "zeros": content[:100] + bytes(400) + content[500:],
        }
        chunk.write_bytes(damaged[damage])
    generate("Toy", 60, tmp_path / "toy")
    assert contents(tmp_path / "toy") == contents(tmp_path / "whole")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_chunk_is_whole_or_not(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("chunk") / "0_0.parquet"
    write_parquet(killed_runs.ToyGenerator.simulate(0, 3, 1), path)
    whole = path.read_bytes()
    assert simulation._is_whole(path, 3)
    if data.draw(st.booleans()):
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        assert not simulation._is_whole(path, 3)
    else:
        path.write_bytes(data.draw(st.sampled_from([b"", b"PAR1"])) + data.draw(st.binary()))
        assert not simulation._is_whole(path, 3)


def test_an_unfinished_run_never_replaces_finished_files(toy, tmp_path, monkeypatch):
    interrupt(monkeypatch, 40, tmp_path)
    generate("Toy", 60, tmp_path)
    finished = contents(tmp_path)
    for num_jets, seed in ((40, 1), (60, 1), (60, 2)):
        with pytest.raises(UserError, match="already holds other jets"):
            generate("Toy", num_jets, tmp_path, seed=seed)
        assert contents(tmp_path) == finished


def test_a_run_killed_while_moving_does_not_mix_with_another(toy, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:

        def killed(source, target, names):
            raise KeyboardInterrupt

        patch.setattr("jetzoo.datasets.folder.move_files", killed)
        with pytest.raises(KeyboardInterrupt):
            generate("Toy", 40, tmp_path)
    generate("Toy", 60, tmp_path)
    finished = contents(tmp_path)
    with pytest.raises(UserError, match="already holds other jets"):
        generate("Toy", 40, tmp_path)
    assert contents(tmp_path) == finished


def test_two_runs_at_once(toy, tmp_path):
    with at_work(tmp_path), pytest.raises(UserError, match="another run works in"):
        generate("Toy", 40, tmp_path)
    generate("Toy", 40, tmp_path)


def test_run_killed_at_any_move_is_repeated(tmp_path):
    script = Path(__file__).with_name("killed_runs.py")
    run = subprocess.run(
        [sys.executable, script, "simulate", tmp_path], capture_output=True, text=True
    )
    # Two chunks and three files are written, a list of the files, and the files are moved.
    assert (run.returncode, run.stdout) == (0, "9\n"), run.stderr


def test_a_process_that_dies_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "dying_generator.py").write_text(
        "import os\nCLASSES, PATHS = {0: 0}, {}\n\n\n"
        "def simulate(label, num_jets, seed):\n    os._exit(9)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    row = Dataset("Dying", "*", generator="dying_generator")
    monkeypatch.setitem(CATALOGUE, "Dying", row)
    with pytest.raises(UserError, match="a process of the simulation ended"):
        generate("Dying", 10, tmp_path / "jets")


@needs_pythia
def test_full_disk(tmp_path):
    """No file may grow beyond 8 KB: what a full disk does to a writer, in its process."""
    command = f"ulimit -f 8; exec {sys.executable} {ROOT / 'get_datasets.py'} QuarkGluon"
    run = subprocess.run(
        ["bash", "-c", f"{command} -d {tmp_path} --simulate 60"], capture_output=True, text=True
    )
    assert run.returncode == 2
    sentence = run.stderr.splitlines()[-1]
    assert re.search(f"{tmp_path}/QuarkGluon/.* cannot be written: File too large", sentence)
    assert "Traceback" not in run.stderr
    assert [path.name for path in (tmp_path / "QuarkGluon").iterdir()] == [".partial-60-1"]


@pytest.mark.parametrize("label", [0, 1])
def test_jet_finder_and_veto_on_whole_events(label):
    """Jets against the FastJet package; the veto keeps the events that the selection keeps."""
    fastjet = pytest.importorskip("fastjet")
    pytest.importorskip("pythia8mc")
    from jetzoo.simulate import quarkgluon
    from jetzoo.simulate.pythia import new_pythia

    class Watcher(quarkgluon.EarlyVeto):
        def doVetoPT(self, position, event):
            self.verdicts.append(super().doVetoPT(position, event))
            return False

    window = ("PhaseSpace:pTHatMin = 490.", "PhaseSpace:pTHatMax = 570.")
    watcher = Watcher()
    pythia = new_pythia((*quarkgluon.settings(label), *window), 11, watcher)
    finder = quarkgluon.anti_kt(0.4)
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, 0.4)
    selected, spared = 0, 0
    for _ in range(60):
        watcher.verdicts = []
        assert pythia.next()
        finder.analyze(pythia.event)
        particles = []
        for i, p in enumerate(pythia.event):
            if p.isFinal() and p.idAbs() not in (12, 14, 16):
                particles.append(fastjet.PseudoJet(p.px(), p.py(), p.pz(), p.e()))
                particles[-1].set_user_index(i)
        sequence = fastjet.ClusterSequence(particles, definition)
        leading = fastjet.sorted_by_pt(sequence.inclusive_jets(100.0))[0]
        assert finder.pT(0) == pytest.approx(leading.pt(), rel=1e-9)
        assert finder.y(0) == pytest.approx(leading.rap(), abs=1e-9)
        constituents = {p.user_index() for p in leading.constituents()}
        assert set(finder.constituents(0)) == constituents
        if 500 <= leading.pt() <= 550 and abs(leading.rap()) < 1.7:
            selected += 1
            assert not any(watcher.verdicts)
        else:
            spared += any(watcher.verdicts)
    assert selected > 10
    assert spared > 10


@pytest.mark.parametrize("module", ["pythia8mc", "jetzoo.simulate.quarkgluon"])
def test_missing_extra_is_one_sentence(module, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "jetzoo.simulate.quarkgluon", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"needs .*: pip install -e '\.\[simulate\]'"):
        generate("QuarkGluon", 20, tmp_path / "jets")
    assert not (tmp_path / "jets").exists()


@needs_pythia
@pytest.mark.parametrize(
    "dataset, num_jets, seed, sentence",
    [
        ("ImageNet", 20, 1, "no generator of ImageNet, only of .*QuarkGluon"),
        ("QuarkGluon", 19, 1, "takes 20 to 1000000000 jets at once, not 19"),
        ("QuarkGluon", 10**9 + 1, 1, "takes 20 to 1000000000 jets at once"),
        ("QuarkGluon", 20, -1, "not be negative"),
    ],
)
def test_misuse(tmp_path, dataset, num_jets, seed, sentence):
    with pytest.raises(UserError, match=sentence):
        generate(dataset, num_jets, tmp_path / "jets", seed=seed)
    assert not (tmp_path / "jets").exists()


@pytest.mark.parametrize("num_jets", [20, 33, 8000, 1_000_001])
def test_shards_cover_the_jets_once(num_jets):
    counts = {0: num_jets // 2, 1: num_jets - num_jets // 2}
    paths = {split: split + "_{shard}" for split in SPLITS}
    shards = dict(simulation._files(paths, counts))
    for label, count in counts.items():
        spans = [shard[label] for shard in shards.values()]
        assert [span[0] for span in spans] == [0] + [span[1] for span in spans[:-1]]
        assert spans[-1][1] == count
    sizes = {name: sum(b - a for a, b in shard.values()) for name, shard in shards.items()}
    assert 0 < min(sizes.values()) <= max(sizes.values()) <= 100_000
    for split, fraction in {"train": 0.7, "val": 0.1, "test": 0.2}.items():
        total = sum(size for name, size in sizes.items() if name.startswith(split))
        assert total == pytest.approx(fraction * num_jets, abs=2)


def test_rounding():
    x = ak.Array([[1.0, 1 + 2**-11, -(1 + 2**-12)], [], [0.0, 3e-5, -499.7]])
    x = ak.values_astype(x, np.float32)
    rounded = simulation._round(x, 12)
    assert rounded.type == x.type
    np.testing.assert_array_equal(rounded[0], np.float32([1.0, 1 + 2**-11, -1.0]))
    np.testing.assert_allclose(rounded[2], x[2], rtol=2**-12)
    assert np.all(np.abs(np.ldexp(np.frexp(rounded[2])[0], 12)) % 1 == 0)


def test_sample(sample):
    assert sum(path.stat().st_size for path in SAMPLE.glob("*.parquet")) <= 6e6
    assert len(sample) == 8000
    for split, size in {"train": 5600, "val": 800, "test": 1600}.items():
        label = ak.from_parquet(SAMPLE / f"{split}_file_0.parquet").label.to_numpy()
        assert len(label) == size
        assert label.sum() == size / 2
        # Shuffled: the classes are as mixed in the first half as in the second.
        assert abs(label[: size // 2].mean() - 0.5) < 4 * 0.5 / np.sqrt(size)
    check_jets(sample)
    assert set(np.unique(abs(ak.flatten(sample.part_pid)))) == PUBLISHED_PIDS
    assert len(np.unique(sample.jet_pt)) > 7900
    for label, mean in PUBLISHED_MULTIPLICITY.items():
        num_particles = sample.jet_nparticles[sample.label == label]
        assert ak.mean(num_particles) == pytest.approx(mean, abs=1)


@pytest.mark.real
@pytest.mark.parametrize("label", [0, 1])
def test_sample_looks_like_the_published_jets(label, sample, real_data):
    published = ak.from_parquet(real_data / "quarkgluon_1000.parquet")
    published = published[published.label == label]
    simulated = sample[sample.label == label]
    # 500 against 4000 jets: the statistic exceeds 0.09 once in 700 comparisons of like with like.
    for name in ("jet_nparticles", "jet_mass", "jet_pt", "jet_eta"):
        real, mine = published[name].to_numpy(), simulated[name].to_numpy()
        assert ks_2samp(real, mine).statistic < 0.09, name
        error = np.hypot(real.std() / len(real) ** 0.5, mine.std() / len(mine) ** 0.5)
        assert abs(real.mean() - mine.mean()) < 4 * error, name
    # Particles of a jet go together, so a bound on the shape and not a probability.
    for name in ("part_deta", "part_dphi", "part_energy"):
        real, mine = (ak.flatten(jets[name]).to_numpy() for jets in (published, simulated))
        assert ks_2samp(real, mine).statistic < 0.03, name
