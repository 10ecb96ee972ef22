"""Random and mutated files, random options: a command succeeds, or says why not in one sentence.

The default run is short and the same each time; with ``JETZOO_FUZZ=1`` it is long and random.
"""

import contextlib
import io
import json
import os

import handmade
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zoo import SMALL, build, stir, write_network

import jetzoo
from jetzoo import UserError, checkpoint, cli, data_config, formulas, models, repository, tables
from jetzoo.int8 import file as int8_file
from jetzoo.metrics import predictions
from jetzoo.prediction.files import predict_files

pytestmark = pytest.mark.filterwarnings("ignore")

KIN = "QuarkGluon/qg_kin"
TINY = {**SMALL, "num_layers": 1, "num_cls_layers": 1}

settings.register_profile(
    "short",
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "long", max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("long" if os.environ.get("JETZOO_FUZZ") else "short")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One whole file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    write_network(folder)
    rng = np.random.default_rng(3)
    handmade.write_parquet(folder / "jets.parquet", (3, 0, 9, 1, 12), rng)
    table = tables.read(folder / "jets.parquet", tables.describe(folder / "jets.parquet")[0])
    tables.write(folder / "jets.root", table)
    model = stir(build("ParT", **TINY))
    torch.save(model.state_dict(), folder / "part.pt")
    fast = jetzoo.accelerate(model, "int8", method="dynamic")
    int8_file.save(fast, folder / "int8.pt", "ParT", data_config.read(KIN), TINY)
    scores = np.array([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]])
    for suffix in tables.FORMATS:
        predictions.write_predictions(folder / f"pred{suffix}", "ab", scores, np.array([0, 1, 1]))
    (folder / "config.yaml").write_bytes(repository.data_config(KIN).read_bytes())
    card = {"network": "PFN", "data_config": KIN, "sha256": "0", "bytes": 1, "metrics": {"auc": 1}}
    (folder / "models.json").write_text(json.dumps({"PFN": card}))
    return folder


mutations = st.one_of(
    st.tuples(st.just("set"), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("cut"), st.floats(0, 1), st.just(b"")),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("remove"), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
)


def mutated(data, changes):
    """A file with some bytes changed, cut, inserted or removed."""
    for kind, place, extra in changes:
        at = int(place * len(data))
        rest = {"set": at + len(extra), "insert": at, "remove": at + len(extra)}.get(kind)
        tail = b"" if rest is None else data[rest:]
        data = data[:at] + (b"" if kind in ("cut", "remove") else extra) + tail
    return data


def try_all(read, path):
    """Read a file, which may be in vain but must not end in anything but a sentence."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            read(path)
    except UserError as error:
        assert "\n" not in str(error) and str(error)


def read_weights(path):
    jetzoo.load("ParT", path, KIN, "cpu", **TINY)


def read_int8(path):
    tagger = jetzoo.load(path)
    length = 5
    inputs = [torch.ones(2, n, length) for n in (2, 7, 4, 1)]
    assert tagger.model(*inputs).shape[0] == 2


def read_jets(path):
    tagger = jetzoo.load(path.with_name("Mean.py"), path.with_name("net.pt"), KIN, "cpu")
    predict_files(tagger, [path], path.with_name("out.parquet"))


def read_config(path):
    config = data_config.read(path)
    with contextlib.suppress(UserError):
        data_config.from_options(config.options)
    data_config.Inputs(config)


def evaluate(path):
    from jetzoo.metrics import numbers

    numbers.evaluate(*predictions.read_predictions([path]))


READERS = {
    "part.pt": read_weights,
    "int8.pt": read_int8,
    "jets.parquet": read_jets,
    "jets.root": read_jets,
    "pred.parquet": evaluate,
    "pred.root": evaluate,
    "config.yaml": read_config,
    "models.json": lambda path: models.read_cards(),
}


@pytest.fixture
def place(folder, tmp_path, monkeypatch):
    """An empty folder with a small network, which takes the place of models/, too."""
    monkeypatch.setattr(repository, "models", lambda: tmp_path)
    (tmp_path / "Mean.py").write_bytes((folder / "Mean.py").read_bytes())
    (tmp_path / "net.pt").write_bytes((folder / "net_best_epoch_state.pt").read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read(folder, place, name):
    (place / name).write_bytes((folder / name).read_bytes())
    READERS[name](place / name)  # raises nothing
    (place / name).write_bytes((folder / name).read_bytes()[:2])
    with pytest.raises(UserError):
        READERS[name](place / name)


@pytest.mark.parametrize("name", READERS)
def test_random_bytes(place, name):
    @given(st.binary(max_size=300))
    def check(data):
        (place / name).write_bytes(data)
        try_all(READERS[name], place / name)

    check()


@pytest.mark.parametrize("name", READERS)
def test_mutated_bytes(folder, place, name):
    whole = (folder / name).read_bytes()

    @given(st.lists(mutations, min_size=1, max_size=4))
    def check(changes):
        (place / name).write_bytes(mutated(whole, changes))
        try_all(READERS[name], place / name)

    check()


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


def paths_of(tree, path=()):
    """Every place in nested dicts and lists."""
    yield path
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from paths_of(value, (*path, key))


def replaced(tree, path, value):
    """A copy of nested dicts in which one place has another value."""
    if not path:
        return value
    return {**tree, path[0]: replaced(tree[path[0]], path[1:], value)}


def test_int8_files_with_other_values(folder, place):
    content = torch.load(folder / "int8.pt")
    places = [path for path in paths_of(content) if path and path != ("format",)]

    @given(st.sampled_from(places), values)
    def check(path, value):
        torch.save(replaced(content, path, value), place / "int8.pt")
        try_all(read_int8, place / "int8.pt")

    check()


def test_cards_with_other_values(folder, place):
    cards = json.loads((folder / "models.json").read_text())

    @given(st.sampled_from(list(paths_of(cards))), values)
    def check(path, value):
        (place / "models.json").write_text(json.dumps(replaced(cards, path, value)))
        try_all(READERS["models.json"], place)

    check()


words = st.sampled_from(
    ["np.", "ak.", "log", "part_px", "(", ")", "**", "*", "9", "[", "]", ",", ".", "__class__", "-"]
)
expressions = st.lists(words, max_size=9).map("".join) | st.text(max_size=9)


@given(expressions)
def test_random_formulas(formula):
    with contextlib.suppress(UserError):
        formulas.check_formula(formula)


OPTIONS = (
    *("num_layers", "num_cls_layers", "num_heads", "embed_dims", "pair_embed_dims", "ffn_ratio"),
    *("dropout", "attn_dropout", "fc_params", "pair_bias", "attention", "sort_by_pt", "mixer"),
    *("input_dim", "num_classes", "device", "fast", "nonsense"),
)
literals = values.map(repr) | st.text(max_size=8)


@given(
    options=st.lists(st.tuples(st.sampled_from(OPTIONS), literals), max_size=2),
    device=st.sampled_from(["cpu", "cpu", "meta", "abacus", "cuda:7", "\0"]),
    batch_size=st.sampled_from(["1", "0", "-1", "x", "3"]),
    output=st.sampled_from(["out.root", "out.txt", "jets.parquet", "", ".", "n" * 300 + ".root"]),
)
def test_random_options(folder, options, device, batch_size, output):
    words = ["predict", "ParT", f"--checkpoint={folder / 'part.pt'}", f"--data-config={KIN}"]
    given = {key: repr(value) for key, value in TINY.items()} | dict(options)
    for key, value in given.items():
        words += ["--network-option", key, value]
    words += [f"--device={device}", f"--batch-size={batch_size}"]
    words += [f"--output={folder / output}", str(folder / "jets.parquet")]
    before = (folder / "jets.parquet").read_bytes()
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            code = cli.main(words)
        except SystemExit as error:  # argparse
            code = error.code
    assert code in (0, 2) and "Traceback" not in errors.getvalue()
    assert (folder / "jets.parquet").read_bytes() == before


def test_checkpoints_with_other_values(folder, place):
    state = torch.load(folder / "part.pt")
    tensors = st.sampled_from(
        [torch.ones(2), torch.ones(()), torch.ones(2, 2).to_sparse(), torch.ones(1).expand(10**9)]
        + [torch.ones(3, dtype=x) for x in (torch.int8, torch.bool, torch.complex64)]
    )

    @given(st.sampled_from(sorted(state)), values | tensors)
    def check(key, value):
        torch.save({**state, key: value}, place / "part.pt")
        with contextlib.suppress(UserError):
            content = checkpoint.read(place / "part.pt")
            checkpoint.load_weights(build("ParT", **TINY), content, "part.pt", "ParT")

    check()
