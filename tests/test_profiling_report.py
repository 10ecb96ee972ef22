"""Configurations, the data loader, figures, and the command `jetzoo profile`."""

import csv
import html.parser
import io
import json
import logging
import random
import shutil
import subprocess

import handmade
import numpy as np
import pytest
import torch
from jets import COUNTS
from profiled import CONFIG, LIMITS, SMALL, inputs, part, step_of
from torch import nn

from jetzoo import UserError, choices, data_config, repository, tables
from jetzoo.cli import main
from jetzoo.profiling import configurations, figures, loading, report, runs
from jetzoo.profiling.rows import Row
from jetzoo.profiling.steps import NETWORK, STEP
from jetzoo.profiling.tracing import trace
from jetzoo.repository import network_module


def jets_of(count):
    return inputs([9] * count)


def test_configurations_compute_the_same():
    jets = inputs([5, 9, 3, 8])
    config = data_config.read(CONFIG)

    def rebuild(**options):
        torch.manual_seed(1)
        return network_module("ParT").get_model(config, **options)[0]

    model = rebuild().eval()
    with torch.no_grad():
        expected = model(*jets)
        for name in ("base", "packed", "padded", "fast", "reference", "sdpa"):
            network = configurations.configure(name, model, rebuild, jets_of).eval()
            torch.testing.assert_close(network(*jets), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ParT", "PN"])
def test_networks_of_weaver(name):
    """They compute the same, at first on padded jets, then on jets cut to the longest."""
    torch.manual_seed(1)
    model, _ = network_module(name).get_model(data_config.read(CONFIG))
    network = configurations.WeaverNetwork(model.eval()).eval()
    jets = inputs([25, 19, 30, 28])  # of fewer than 17 particles weaver's PN sees padding
    with torch.no_grad():
        expected = model(*jets)
        for _ in range(configurations.TRIMMER + 1):
            torch.testing.assert_close(network(*jets), expected, rtol=1e-4, atol=1e-4)


def test_refused_configurations(monkeypatch):
    check = configurations.check_names
    check(["base", "padded", "jagged"], True)
    for names, trains, message in (
        (["quick"], False, "'quick'.*base"),
        (["base", "fast"], True, "fast is for inference only"),
        (["base", "base"], False, "only once"),
    ):
        with pytest.raises(UserError, match=message):
            check(names, trains)
    with pytest.raises(UserError, match="padded stands for weaver-core's own ParT"):
        configurations.configure("padded", nn.Linear(2, 2), None, None)

    def refuses(model, precision, **options):
        raise ValueError(f"no {precision} here")

    monkeypatch.setattr("jetzoo.accelerate", refuses, raising=False)
    with pytest.raises(UserError, match="bf16 is not possible with this network: no bf16 here"):
        configurations.configure("bf16", part(), None, jets_of)


def test_loader_and_balance():
    slow = loading.Loading(
        {(kept, n): rate for kept in (False, True) for n, rate in ((0, 150), (1, 100), (2, 180))}
    )
    assert slow.balance(50, False) == slow.balance(100, True) == 1
    assert slow.balance(101, False) == 2 and slow.balance(950, False) == 10
    text = slow.sentence("the inference", 950, False)
    assert text.startswith("The loading is the bottleneck") and "10 workers" in text
    assert slow.sentence("the inference", 50, True).startswith("The inference is the bottleneck")


def test_rates_of_weavers_loader(tmp_path, monkeypatch):
    path = tmp_path / "jets.parquet"
    handmade.write_parquet(path, np.full(40, 5), np.random.default_rng(0))
    config = str(repository.data_config(CONFIG))
    monkeypatch.setattr(loading, "WORKERS", (0, 1))
    found = loading.measure([path], config, 16, seconds=0.05)
    assert set(found.rates) == {(kept, n) for kept in (False, True) for n in (0, 1)}
    assert min(found.rates.values()) > 0
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.fixture
def command(tmp_path, monkeypatch, network, jets_file):
    monkeypatch.setattr(runs, "machine_limits", lambda device, dtype: LIMITS)
    path, checkpoint = map(str, network)
    out = tmp_path / "a" / "profile"

    def run(*options, network=path, checkpoint=checkpoint, data=str(jets_file)):
        words = ["profile", network, "--data", data, "--device", "cpu", "--out", str(out)]
        words += ["--checkpoint", checkpoint] if checkpoint else []
        return main([*words, "--repeats", "1", *options])

    run.out = out
    return run


def read_csv(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


class Page(html.parser.HTMLParser):
    """Links, sources of images, and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.links, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        self.sources += [attributes["src"]] if "src" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []


def test_profile_writes_everything(command, monkeypatch, capsys):
    monkeypatch.setattr(
        loading,
        "measure",
        lambda files, config, size: loading.Loading(
            {(kept, n): 10.0 for kept in (False, True) for n in loading.WORKERS}
        ),
    )
    assert command("--train", "--loader", "--batch-size", "8") == 0
    keys = ["base_training_step", "base_inference"]
    drawn = ["comparison", "loading"]
    drawn += [f"{name}_{key}" for name in ("layers", "roofline", "memory") for key in keys]
    expected = {f"{name}.{kind}" for name in drawn for kind in ("png", "pdf")}
    expected |= {f"trace_{key}.json.gz" for key in keys}
    expected |= {"modules.csv", "comparison.csv", "loading.csv", "profile.json", "index.html"}
    assert {path.name for path in command.out.iterdir()} == expected

    rows = read_csv(command.out / "modules.csv")
    for mode in ("training step", "inference"):
        chosen = {row["module"]: row for row in rows if row["mode"] == mode}
        assert sum(float(row["share"]) for row in chosen.values()) == pytest.approx(1, abs=0.01)
        assert {"fc", NETWORK, STEP} <= set(chosen)
        flops = 2 * 8 * 7 * 2
        # A gradient for the weights; the features want none.
        assert int(chosen["fc"]["flops"]) == (2 * flops if mode == "training step" else flops)
        assert int(chosen[NETWORK]["flops_with_inner"]) == int(chosen["fc"]["flops"])
    kinds = read_csv(command.out / "comparison.csv")
    assert {row["mode"] for row in kinds} == {"training step", "inference"}
    summary = json.loads((command.out / "profile.json").read_text())
    assert summary["fastest"] == choices.known("cpu")
    assert summary["jets"] == 8 and [run["mode"] for run in summary["runs"]] == [
        "training step",
        "inference",
    ]
    page = Page((command.out / "index.html").read_text())
    assert len(page.sources) == len(drawn)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert all((command.out / link).is_file() for link in page.links) and len(page.links) == 2
    assert "script" not in page.tags and "link" not in page.tags
    assert "<code>jetzoo explore" in (command.out / "index.html").read_text()
    printed = capsys.readouterr().out
    assert "bottleneck" in printed and "index.html" in printed.replace("\n", "")


def test_compare(command, capsys):
    compared = ["--compare", "base", "fast"]
    batch = ["--batch-size", "512"]
    command.out.mkdir(parents=True)
    (command.out / "explore.html").write_text("")  # to which the page links
    assert command(*SMALL, *compared, *batch, network="ParT", checkpoint=None) == 0
    printed = capsys.readouterr().out
    assert f"have {len(COUNTS)} jets, fewer than a batch of 512" in printed
    assert "weights are random" in printed
    page = (command.out / "index.html").read_text()
    assert "explore.html" in Page(page).links and "<code>jetzoo explore" not in page
    rows = read_csv(command.out / "comparison.csv")
    assert {row["configuration"] for row in rows} == {"base", "fast"}
    kinds = {row["kind"] for row in rows if row["configuration"] == "base"}
    assert {"embedding", "pair embedding", "attention", "feed-forward", "head"} <= kinds
    assert {row["times_first"] for row in rows if row["configuration"] == "base"} == {"1.0"}


def test_misuse_is_one_sentence_and_leaves_nothing(command, tmp_path, capsys):
    nothing = tmp_path / "nothing.parquet"
    handmade.write_parquet(nothing, np.zeros(0, int), np.random.default_rng(0))
    cut = tmp_path / "cut.parquet"
    tables.write(cut, tables.read(tmp_path / "jets.parquet", ["label", "jet_pt"]))
    before = sorted(tmp_path.rglob("*"))
    for run, message in (
        (lambda: command(network="PFN"), "does not fit PFN"),
        (lambda: command(checkpoint="absent.pt"), "no checkpoint absent.pt"),
        (lambda: command("--device", "abacus"), "abacus"),
        (lambda: command(data="absent.parquet"), "no file absent.parquet"),
        (lambda: command(data=str(nothing)), "no jets"),
        (lambda: command(data=str(cut)), "no branch"),
        (lambda: command("--compare", "base", "quick"), "no configuration 'quick'"),
        (lambda: command("--compare", "base", "padded"), "weaver-core's own ParT"),
        (lambda: command("--compare", "base", "sdpa"), "no option 'attention'"),
        (lambda: command("--compare", "base", "--fast"), "leave out --fast"),
        (lambda: command("--fast", "--train"), "inference only"),
        (lambda: command("--data-config", "absent"), "no data config 'absent'"),
        (lambda: command("--network-option", "depth", "3"), "no option 'depth'"),
        (lambda: command("--out", str(nothing)), "cannot be made"),
    ):
        assert run() == 2
        error = capsys.readouterr().err.split("\r")[-1]
        assert message in error and error.strip().startswith("jetzoo: "), error
        assert error.strip().count("\n") == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_backend_that_cannot_run_here(command, capsys):
    options = [*SMALL, "--network-option", "pair_bias", "False"]
    if torch.cuda.is_available():
        pytest.skip("it can run here")
    assert command("--compare", "flash_attn", *options, network="ParT", checkpoint=None) == 2
    assert "flash_attn cannot run on cpu" in capsys.readouterr().err
    assert not command.out.exists()


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def test_page_in_a_browser(command, tmp_path):
    """The page as a headless browser renders it: tables, and images of the size they are drawn."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("there is no browser here (chromium or google-chrome)")
    assert command("--batch-size", "8") == 0
    page = command.out / "index.html"
    # What the browser makes of the images is written into the page by a script of the test.
    probe = tmp_path / "probe.html"
    script = (
        "<script>onload = () => { document.title = [...document.images].map("
        "image => image.naturalWidth).join(); }</script></body>"
    )
    probe.write_text(page.read_text().replace("</body>", script))
    dom = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu"]
        + [f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=5000"]
        + ["--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    widths = dom.split("<title>")[1].split("</title>")[0].split(",")
    assert len(widths) == 4 and all(int(width) > 300 for width in widths)
    assert dom.count("<table>") == 2 and "Modules: base, inference" in dom
    shot = tmp_path / "page.png"
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,3000"]
        + [f"--user-data-dir={tmp_path / 'browser'}", f"--screenshot={shot}", page.as_uri()],
        capture_output=True,
        timeout=60,
    )
    assert shot.stat().st_size > 20_000


def test_figures_show_the_numbers():
    rows = [
        Row("embed", "Linear", 1, 0.01, flops=10**6, bytes_moved=10**5, operations=1),
        Row("blocks.0.attn", "Attention", 1, 0.03, operations=5, kind="attention"),
    ]
    found = [
        runs.ProfileRun(
            name, "inference", False, 10, seconds, 0.1, 1.1, rows, trace(step_of()), LIMITS
        )
        for name, seconds in (("base", 0.04), ("fast", 0.02))
    ]
    colours = figures.kind_colours(found)
    (axes,) = figures.comparison(found, colours).axes
    widths = [bar.get_width() for bar in axes.patches]
    assert sum(widths) == pytest.approx(4 + 2)  # ms per jet
    assert {"250 jets/s", "500 jets/s, 2.00x"} <= {text.get_text() for text in axes.texts}
    (axes,) = figures.layers(found[0]).axes
    assert {"25%", "75%"} <= {text.get_text() for text in axes.texts}
    (axes,) = figures.roofline(found[0], colours).axes
    x, y = axes.lines[-1].get_data()
    assert (x[0], y[0]) == (pytest.approx(10), pytest.approx(0.1))  # FLOP/byte, GFLOP/s


@pytest.mark.parametrize("fails", [False, True])
def test_the_process_is_left_as_it_was(network, jets_file, monkeypatch, fails):
    """Random states, threads and log levels are put back, after an error, too."""
    monkeypatch.setattr(runs, "machine_limits", lambda device, dtype: LIMITS)

    def disturb(files, config, batch_size):
        random.random(), np.random.random(), torch.rand(1)  # noqa: NPY002
        torch.set_num_threads(threads + 1)
        logging.getLogger("jetzoo").setLevel(logging.CRITICAL)
        if fails:
            raise UserError("It fails.")

    monkeypatch.setattr(loading, "measure", disturb)
    logger = logging.getLogger("jetzoo")
    threads, level = torch.get_num_threads(), logger.level
    python, numpy = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    state = torch.get_rng_state()
    arguments = {"names": ["base", "fast"], "device": "cpu", "batch_size": 8, "repeats": 1}
    try:
        report.profile(*network, CONFIG, [jets_file], with_loading=True, **arguments)
        assert not fails
    except UserError:
        assert fails
    assert random.getstate() == python and torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy)  # noqa: NPY002
    assert torch.get_num_threads() == threads and logger.level == level


def test_labels_that_are_no_class(command, tmp_path, capsys):
    jets = tables.read(tmp_path / "jets.parquet", tables.describe(tmp_path / "jets.parquet")[0])
    jets["label"] = np.where(np.arange(len(jets)) == 3, 7, jets["label"])
    tables.write(tmp_path / "seven.parquet", jets)
    assert command("--train", data=str(tmp_path / "seven.parquet")) == 2
    error = capsys.readouterr().err.split("\r")[-1].strip()
    assert error.startswith("jetzoo: ") and "1 of 10 jets have labels" in error
    assert not command.out.exists()
