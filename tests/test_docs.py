"""README and documentation: length, links, commands, the network of the guide, the tutorial."""

import ast
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import jetzoo
from jetzoo import cli, repository
from jetzoo.datasets import command as datasets_command

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
TUTORIAL = DOCS / "tutorial" / "tutorial.md"
PAGES = [README, *(x for x in sorted(DOCS.rglob("*.md")) if "_build" not in x.parts)]
ASSIGNMENT = re.compile(r"[A-Za-z_]+=\S*\s+")


def blocks(page, language):
    """The code blocks of a page in a language."""
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```$", page.read_text(), re.M | re.S)


def lines(page):
    """The shell lines of a page, with variables that are plain texts replaced by their values."""
    values = {}
    for line in "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        for name, value in values.items():
            line = line.replace(f"${name}", value)
        if assignment := re.fullmatch(r'(\w+)="(.*)"', line):
            values[assignment[1]] = assignment[2]
        yield line


def commands(start):
    """The commands of all pages that begin with ``start``, as (page, words), each of them once."""
    found = {}
    for page in PAGES:
        for line in lines(page):
            for command in [line.strip(), *re.findall(r"\$\((.*?)\)", line)]:
                while ASSIGNMENT.match(command):
                    command = ASSIGNMENT.sub("", command, count=1)
                if command.startswith(start):
                    found.setdefault(tuple(shlex.split(command, comments=True)), page)
    return [(page.relative_to(ROOT).as_posix(), words) for words, page in found.items()]


def ids(case):
    page, words = case
    return f"{page}: {' '.join(words)}"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A user's folder with the network and the data config that the guide adds."""
    (network,) = (x for x in blocks(DOCS / "guide/network.md", "python") if "def get_model" in x)
    folder = tmp_path / "mine"
    path = folder / "networks" / "MeanNetwork.py"
    path.parent.mkdir(parents=True)
    path.write_text(network)
    config = folder / "data" / "QuarkGluon" / "qg_mine.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(repository.data_config("QuarkGluon/qg_kin").read_text())
    monkeypatch.setenv("JETZOO_PATH", str(folder))
    return folder


def test_readme_is_one_page():
    assert len(README.read_text().splitlines()) <= 200


def test_version_of_the_citation():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search("^version: (.*)$", citation, re.M)[1] == jetzoo.__version__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    targets = [x.partition("#")[0] for x in targets if not re.match(r"(https?|mailto):", x)]
    missing = [x for x in targets if x and not (page.parent / x).exists()]
    assert missing == []


def test_tests_that_the_pages_name_exist():
    named = {
        x for page in PAGES for x in re.findall(r"`(test_\w+\.py)::(test_\w+)`", page.read_text())
    }
    assert len(named) > 100
    for file, name in sorted(named):
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_of_a_page(page):
    for block in [*blocks(page, "python"), *blocks(page, "{code-cell} python")]:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "jetzoo":
                assert hasattr(jetzoo, node.attr)


@pytest.mark.parametrize("case", commands("jetzoo "), ids=ids)
def test_jetzoo_command(case, mine, monkeypatch):
    seen = []
    rows = [(name, text, add, seen.append) for name, text, add, _ in cli.COMMANDS]
    monkeypatch.setattr(cli, "COMMANDS", rows)
    _, (_, *words) = case
    if words == ["--version"]:
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0
    else:
        assert cli.main(words) == 0
        assert len(seen) == 1


def test_paths_of_the_pages_exist(mine, capsys):
    cases = commands("jetzoo path ")
    assert len(cases) >= 2
    for _, words in cases:
        assert cli.main(words[1:]) == 0
        assert Path(capsys.readouterr().out.strip()).exists()


@pytest.mark.parametrize("case", commands("./get_datasets.py "), ids=ids)
def test_data_set_command(case):
    _, (_, *words) = case
    datasets_command._check(datasets_command._parser().parse_args(words))


def test_training_commands(mine):
    cases = commands("./train_")
    assert len(cases) > 20

    def run(case):
        # A dry run prints a note where files or GPUs are absent.
        script, *words = [
            x for x in case[1] if not x.startswith("--resume") and "20260101" not in x
        ]
        return subprocess.run(
            [ROOT / script, *words, "--dry-run"],
            cwd=mine.parent,
            capture_output=True,
            text=True,
            timeout=300,
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for case, done in zip(cases, pool.map(run, cases), strict=True):
            assert done.returncode == 0, f"{ids(case)}: {done.stderr}"
            assert "--network-config" in done.stdout, ids(case)


def test_network_of_the_guide(mine, data_config):
    module = repository.network_module("MeanNetwork")
    model, _ = module.get_model(data_config, width=32)
    assert model.embed[0].out_features == 32
    mask = torch.arange(20) < torch.tensor([20, 3, 1])[:, None]
    mask = mask[:, None].float()
    jets = (torch.randn(3, 2, 20), torch.randn(3, 7, 20), torch.randn(3, 4, 20), mask)
    logits = model(*jets)
    logits.sum().backward()
    assert all(x.grad is not None for x in model.parameters())
    alone = torch.cat([model(*(x[i : i + 1] for x in jets)) for i in range(3)])
    torch.testing.assert_close(alone, logits)
    fast = jetzoo.accelerate(model.eval())
    torch.testing.assert_close(fast(*jets), logits.detach())
    inference, _ = module.get_model(data_config, width=32, for_inference=True)
    inference.load_state_dict(model.state_dict())
    torch.testing.assert_close(inference(*jets), logits.softmax(1))


@pytest.mark.slow
def test_tutorial(monkeypatch):
    """The tutorial runs from top to bottom, and what it says holds."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {}
    for cell in blocks(TUTORIAL, "{code-cell} python"):
        exec(compile(cell, str(TUTORIAL), "exec"), names)
    assert names["difference"] < 1e-5  # fast engine and network
    assert abs(names["alone"] - names["scores"][:5]).max() < 1e-5
    assert names["metrics"]["auc"] == pytest.approx(0.871, abs=5e-4)
    assert abs(names["after"]["auc"] - names["before"]["auc"]) < 2e-3
    assert (names["again"].predict(names["jets"][512:]) == names["int8_scores"]).all()
    assert names["weights"].sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    """Broken links and references are warnings, which are errors."""
    pytest.importorskip("myst_nb", reason="the site needs the extra docs")
    options = ["-W", "--keep-going", "-n", "-D", "nb_execution_mode=off"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for page in ("index", "api/tagger", "api/networks", "tutorial/tutorial", "results"):
        assert (tmp_path / "html" / f"{page}.html").is_file()
