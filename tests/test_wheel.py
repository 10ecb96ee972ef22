"""The project as users install it: a wheel, built from the sdist, in an empty folder."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder without the checkout, and a function that runs a program of a new environment."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    # What jetzoo depends on takes minutes to install: it is lent by the environment of the tests,
    # whose own jetzoo stands behind that of the wheel.
    site = Path(next((folder / "env" / "lib").glob("python*"))) / "site-packages"
    pip = [sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True)
    lent = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "lent.pth").write_text(f"{lent}\n")
    (folder / "work").mkdir()

    def run(*command, **options):
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JETZOO"))},
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        done = subprocess.run(
            [str(python), *command],
            cwd=folder / "work",
            env=environment,
            capture_output=True,
            text=True,
            **options,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return folder, site, run


def test_a_wheel_tags_jets_without_the_checkout(installed):
    folder, site, run = installed
    before = {path for path in site.rglob("*") if "__pycache__" not in path.parts}
    code = """
import json, awkward as ak, jetzoo
from jetzoo import repository
assert repository.checkout() is None
jets = ak.from_parquet(repository.samples("QuarkGluon") / "val_file_0.parquet")[:64]
scores = jetzoo.load("ParT_QuarkGluon_kin", fast=True).predict(jets)
print(json.dumps([jetzoo.__file__, jetzoo.__version__, scores.shape, float(scores.sum())]))
print(jetzoo.load("ParT_full").classes[0])
"""
    line, first_class = run("-c", code).splitlines()
    path, version, shape, total = json.loads(line)
    assert Path(path).is_relative_to(site)
    assert shape == [64, 2]
    assert total == pytest.approx(64, abs=1e-3)
    assert first_class == "label_QCD"
    assert run("-m", "jetzoo", "--version").strip() == f"jetzoo {version}"

    jets = run("-m", "jetzoo", "path", "samples/QuarkGluon").strip() + "/val_file_0.parquet"
    run("-m", "jetzoo", "predict", "ParT_QuarkGluon_kin", "--output", "s.parquet", jets)
    assert (folder / "work" / "s.parquet").stat().st_size > 0
    run("-m", "jetzoo", "profile", "ParT", "--batch-size", "8", "--repeats", "1")
    assert (folder / "work" / "profile" / "index.html").is_file()
    after = {path for path in site.rglob("*") if "__pycache__" not in path.parts}
    assert after == before  # what is made goes to the present folder or the cache


def test_weaver_trains_from_a_wheel(installed):
    folder, site, run = installed
    network, config, jets = (
        run("-m", "jetzoo", "path", name).strip()
        for name in ("ParT", "QuarkGluon/qg_kin", "samples/QuarkGluon")
    )
    assert all(Path(path).is_relative_to(site) for path in (network, config, jets))
    options = [
        "--num-epochs",
        "1",
        "--batch-size",
        "32",
        "--num-workers",
        "0",
        "--fetch-step",
        "1",
        "--gpus",
    ]
    options += ["", "--samples-per-epoch", "64", "--samples-per-epoch-val", "32", "--in-memory"]
    for option in ("num_layers", "num_cls_layers"):
        options += ["--network-option", option, "1"]
    run(
        *("-c", "from weaver.train import main; main()", "-n", network, "-c", config),
        *("--data-train", f"{jets}/train_file_0.parquet"),
        *("--data-val", f"{jets}/val_file_0.parquet"),
        *("--data-test", f"{jets}/val_file_0.parquet"),
        *("--model-prefix", "run/net", "--predict-output", str(folder / "work" / "pred.root")),
        *options,
    )
    assert (folder / "work" / "run" / "net_best_epoch_state.pt").is_file()
    assert (folder / "work" / "pred.root").is_file()
