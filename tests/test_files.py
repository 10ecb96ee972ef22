"""Weights and int8 networks are taken if they are whole, and never run code."""

import itertools
import math
import pickle
from collections import OrderedDict
from pathlib import Path

import awkward as ak
import handmade
import numpy as np
import pytest
import torch
from zoo import SMALL, build, stir

import jetzoo
from jetzoo import UserError, checkpoint, data_config, formulas, repository
from jetzoo.int8 import file as int8_file

KIN = "QuarkGluon/qg_kin"
TINY = {**SMALL, "num_layers": 1, "num_cls_layers": 1}


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """A small ParT, its weights and its int8 file."""
    folder = tmp_path_factory.mktemp("part")
    model = stir(build("ParT", **TINY))
    torch.save(model.state_dict(), folder / "net.pt")
    rng = np.random.default_rng(5)
    handmade.write_parquet(folder / "jets.parquet", rng.integers(1, 30, 40), rng)
    tagger = jetzoo.load("ParT", folder / "net.pt", KIN, "cpu", **TINY)
    inputs = tagger.inputs(ak.from_parquet(folder / "jets.parquet")).values()
    jets = tuple(map(torch.from_numpy, inputs))
    fast = jetzoo.accelerate(model, "int8", calibration=jets)
    int8_file.save(fast, folder / "int8.pt", "ParT", data_config.read(KIN), TINY)
    return folder


def load_part(path):
    return jetzoo.load("ParT", path, KIN, "cpu", **TINY)


# Weights


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_wrapped_weights_are_the_same(part, tmp_path, prefix, wrapper, nested):
    state = torch.load(part / "net.pt")
    assert all(key.startswith("mod.") for key in state)
    if not wrapper:
        state = {key.removeprefix("mod."): value for key, value in state.items()}
    state = OrderedDict((prefix + key, value) for key, value in state.items())
    path = tmp_path / "net.pt"
    torch.save({"state_dict": state, "epoch": 3} if nested else state, path)
    ours, expected = (load_part(x).model.state_dict() for x in (path, part / "net.pt"))
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=0)


def broken(change):
    """A way to break the weights of a ParT: one entry, or the dict, is changed."""

    def write(state, path):
        torch.save(change(state), path)

    return write


WEIGHT = "mod.blocks.0.fc1.weight"
ROUND = {}
ROUND["state_dict"] = ROUND
VARIANCE = "mod.embed.input_bn.running_var"
COUNT = "mod.embed.input_bn.num_batches_tracked"


@pytest.mark.parametrize(
    "write, message",
    [
        (broken(lambda s: {1: s[WEIGHT]}), "not a state dict"),
        (broken(lambda s: {**s, 1: s[WEIGHT]}), "not a state dict"),
        (broken(lambda s: {"state_dict": {2: s[WEIGHT]}}), "not a state dict"),
        (broken(lambda s: {}), "not a state dict"),
        (broken(lambda s: ROUND), "not a state dict"),
        (broken(lambda s: {**s, WEIGHT: "text"}), "not a state dict"),
        (broken(lambda s: {**s, WEIGHT: s[WEIGHT].to(torch.int8)}), "fc1.weight of type int8"),
        (broken(lambda s: {**s, WEIGHT: s[WEIGHT].long()}), "fc1.weight of type int64"),
        (broken(lambda s: {**s, WEIGHT: s[WEIGHT] * 1j}), "fc1.weight of type complex64"),
        (broken(lambda s: {**s, WEIGHT: s[WEIGHT].to_sparse()}), "not a plain tensor"),
        (broken(lambda s: {**s, WEIGHT: s[WEIGHT].to("meta")}), "not a plain tensor"),
        (broken(lambda s: {**s, COUNT: s[COUNT].float()}), "tracked of type float32"),
        (broken(lambda s: {**s, WEIGHT: s[WEIGHT] * torch.nan}), "NaN or infinite: mod.blocks.0"),
        (broken(lambda s: {**s, WEIGHT: s[WEIGHT].double() + 1e300}), "NaN or infinite"),
        (broken(lambda s: {**s, VARIANCE: -s[VARIANCE]}), "negative variance: mod.embed"),
        (broken(lambda s: {**s, WEIGHT: s[WEIGHT][:5]}), "size mismatch for mod.blocks.0.fc1"),
        (broken(lambda s: {k: v for k, v in s.items() if k != WEIGHT}), "it lacks mod.blocks.0"),
        (lambda s, path: path.write_text("weights"), "cannot|can be read"),
        (lambda s, path: path.write_bytes(b"P"), "can be read"),
        (lambda s, path: path.write_bytes(b"PK"), "can be read"),
        (lambda s, path: path.write_bytes(b""), "can be read"),
        (lambda s, path: path.mkdir(), "a folder or a device"),
        (lambda s, path: None, "There is no checkpoint"),
    ],
)
def test_broken_weights(part, tmp_path, write, message):
    path = tmp_path / "net.pt"
    write(torch.load(part / "net.pt"), path)
    with pytest.raises(UserError, match=message) as caught:
        load_part(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_weights_alone_are_no_int8_network(part):
    with pytest.raises(UserError, match="net.pt is no int8 network: give a network"):
        jetzoo.load(part / "net.pt")


def test_weights_never_run_code(part, tmp_path):
    path, trace = tmp_path / "net.pt", tmp_path / "trace"
    torch.save({"fc.weight": Evil(trace)}, path)
    with pytest.raises(UserError, match="can be read"):
        load_part(path)
    path.write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(UserError, match="can be read"):
        load_part(path)
    assert not trace.exists()


def test_half_precision_and_float64_weights_are_fine(part, tmp_path):
    state = torch.load(part / "net.pt")
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        changed = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
        torch.save(changed, tmp_path / "net.pt")
        loaded = load_part(tmp_path / "net.pt").model.state_dict()[WEIGHT]
        torch.testing.assert_close(loaded, state[WEIGHT].to(dtype).float(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ParT", "PN"])
def test_pretrained_weights_are_no_fine_tuned_ones(tmp_path, name):
    small = TINY if name == "ParT" else {"conv_params": ((4, (8, 8)),)}
    pretrained = build(name, **small)
    torch.save(pretrained.state_dict(), tmp_path / "net.pt")
    tuned = f"{name}-FineTune"
    with pytest.raises(UserError, match="it lacks the last layer .*, which would be random"):
        jetzoo.load(tuned, tmp_path / "net.pt", KIN, "cpu", **small)
    model = build(tuned, **small)
    model.load_state_dict(pretrained.state_dict(), strict=False)  # the training still takes them
    torch.save(model.state_dict(), tmp_path / "tuned.pt")
    loaded = jetzoo.load(tuned, tmp_path / "tuned.pt", KIN, "cpu", **small).model.state_dict()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)


def test_check_numbers_accepts_a_network():
    checkpoint.check_numbers(build("PFN"), "PFN")


# int8 files


def edited(change):
    """A way to break an int8 file."""

    def apply(content):
        change(content)
        return content

    return apply


def set_option(key, value):
    return edited(lambda c: c["options"].update({key: value}))


def set_formula(formula):
    return edited(lambda c: c["data_config"]["new_variables"].update(part_pt=formula))


def set_label(formula):
    return edited(lambda c: c["data_config"]["labels"].update(value=["jet_isQ", formula]))


def set_number(key, value):
    """Change the first number of a tensor in the flat ones."""

    def change(content):
        kind, _ = content["layout"][key]
        before = itertools.takewhile(lambda entry: entry[0] != key, content["layout"].items())
        start = sum(math.prod(shape) for _, (other, shape) in before if other == kind)
        content["tensors"][kind][start] = value

    return edited(change)


def first(content, end):
    return next(name for name in content["layout"] if name.endswith(end))


def first_number(end, value):
    return lambda content: set_number(first(content, end), value)(content)


def set_shape(end, shape):
    return edited(lambda c: c["layout"].update({first(c, end): ("float32", shape)}))


def set_zero(value):
    return edited(lambda c: c["layers"].update({next(iter(c["layers"])): value}))


TRACE = "trace"  # a file that code in an int8 file would make, in the present folder


@pytest.mark.parametrize(
    "change, message",
    [
        *(
            (edited(lambda c, name=name: c.pop(name)), f"lacks the field '{name}'")
            for name in int8_file.FIELDS
        ),
        *(
            (edited(lambda c, name=name: c.update({name: 3})), f"field '{name}' of the")
            for name in int8_file.FIELDS
        ),
        (edited(lambda c: c.update(network="evil.py")), "no network of the zoo"),
        (edited(lambda c: c.update(network="../evil.py")), "no network of the zoo"),
        (edited(lambda c: c.update(network="./ParT.py/../evil.py")), "no network of the zoo"),
        (edited(lambda c: c.update(network="there/ParT.py")), "no network of the zoo"),
        (edited(lambda c: c.update(network="")), "no network of the zoo"),
        (edited(lambda c: c.update(method="int4")), "unknown method, 'int4'"),
        (set_option("num_layers", 10**9), "'num_layers' .* no plain value"),
        (set_option("num_layers", 2), "Missing key|not a whole"),
        (set_option("num_layers", "a"), "not a whole int8 network"),
        (set_option("embed_dims", torch.ones(2)), "'embed_dims' .* no plain value"),
        (set_option("nonsense", 3), "no option 'nonsense'"),
        (set_formula("__import__('pathlib').Path('trace').touch()"), "not arithmetic"),
        (set_formula("np.save('trace', part_px)"), "holds np.save, which is not"),
        (set_formula("np.load.__globals__['os'].system('touch trace')"), "not arithmetic"),
        (set_formula("part_px.__class__"), "not arithmetic"),
        (set_formula("[part_px for part_px in [1]]"), "not arithmetic"),
        (set_formula("(lambda: part_px)()"), "not arithmetic"),
        (set_formula("9**9**9**9"), "not arithmetic"),
        (set_formula("'a' * 10**9"), "not arithmetic"),
        (set_formula("open('trace', 'w')"), "holds open, which is not"),
        (set_formula("part_px +"), "none of weaver: SyntaxError"),
        (set_formula(3), "none of weaver: TypeError"),
        (set_label("open('trace', 'w')"), "holds open, which is not"),
        (edited(lambda c: c["data_config"].pop("labels")), "data config"),
        (edited(lambda c: c["data_config"].update(inputs={})), "no inputs"),
        (edited(lambda c: c["data_config"].update(nonsense=1)), "data config"),
        (set_zero(256), "zero point of"),
        (set_zero(-1), "zero point of"),
        (set_zero(1.5), "zero point of"),
        (edited(lambda c: c["layers"].update(nonsense=0)), "a layer nonsense"),
        (first_number("input_scale", float("nan")), "range of .* no positive number|NaN"),
        (first_number("input_scale", 0.0), "range of .* no positive number"),
        (first_number("input_scale", -1.0), "range of .* no positive number"),
        (first_number("w_resid", float("inf")), "NaN or infinite"),
        (set_shape("w_resid", (1,)), "more or fewer numbers"),
        (set_shape("w_resid", (2**40, 2**40)), "shape of .* damaged"),
        (set_shape("w_resid", (-32,)), "shape of .* damaged"),
        (set_shape("w_resid", (4, 8)), "instead of torch.float32 \\(32,\\)"),
        (set_shape("w_resid", "32"), "shape of .* damaged"),
        (edited(lambda c: c["layout"].update(cls=[[], None])), "shape of cls .* damaged"),
        (edited(lambda c: c["tensors"].update(float32=torch.ones(3))), "more or fewer numbers"),
        (
            edited(lambda c: c["data_config"]["new_variables"].update(a="b", b="a", part_pt="a")),
            "made of each other",
        ),
        (edited(lambda c: c["tensors"].update(int8=torch.ones(3))), "type 'int8' .* damaged"),
        (edited(lambda c: c["tensors"].update(float32=[1.0])), "type 'float32' .* damaged"),
        (
            edited(lambda c: c["tensors"].update(float32=torch.ones(1).expand(10**12))),
            "type 'float32' .* damaged",
        ),
    ],
)
def test_broken_int8_files(part, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text("from pathlib import Path\nPath('trace').touch()\n")
    content = torch.load(part / "int8.pt")
    torch.save(change(content), "int8.pt")
    with pytest.raises(UserError, match=message) as caught:
        jetzoo.load("int8.pt").predict(ak.from_parquet(part / "jets.parquet"))
    assert "\n" not in str(caught.value) and "int8.pt" in str(caught.value)
    assert not Path(TRACE).exists()


def test_a_whole_int8_file_is_taken(part, tmp_path):
    """Also one of before, whose field `network` may be the path that the user gave."""
    jets = ak.from_parquet(part / "jets.parquet")
    expected = jetzoo.load(part / "int8.pt").predict(jets)
    np.testing.assert_allclose(expected, load_part(part / "net.pt").predict(jets), atol=0.1)
    content = torch.load(part / "int8.pt")
    assert content["format"] == "jetzoo int8 1" and content["network"] == "ParT"
    torch.save(content | {"network": "/somewhere/jetzoo/networks/ParT.py"}, tmp_path / "int8.pt")
    found = jetzoo.load(tmp_path / "int8.pt").predict(jets)
    np.testing.assert_array_equal(found, expected)


def test_an_int8_file_of_a_network_of_the_user(network, jets_file, tmp_path):
    path, weights = network
    tagger = jetzoo.load(path, weights, KIN, "cpu")
    fast = jetzoo.accelerate(tagger.model, "int8", method="dynamic")
    int8_file.save(fast, tmp_path / "int8.pt", path, tagger.data_config)
    with pytest.raises(UserError, match="'Mean', which is no network of the zoo: give its network"):
        jetzoo.load(tmp_path / "int8.pt")
    jets = ak.from_parquet(jets_file)
    given = jetzoo.load(path, tmp_path / "int8.pt", KIN)
    np.testing.assert_allclose(given.predict(jets), tagger.predict(jets), atol=0.05)


@pytest.mark.parametrize(
    "options", [{"num_layers": 3}, {"nonsense": 3}, {"embed_dims": [32, 64]}, {"attention": "sdpa"}]
)
def test_options_that_contradict_an_int8_file(part, options):
    (name,) = options
    with pytest.raises(UserError, match=f"made with the options .*, not with {name}"):
        jetzoo.load("ParT", part / "int8.pt", KIN, **options)
    jetzoo.load("ParT", part / "int8.pt", KIN, embed_dims=[32, 64, 32], seed=3)


@pytest.mark.parametrize(
    "formula",
    [
        "np.log(part_pt / jet_pt)",
        "np.hypot(part_px, part_py)",
        "(np.abs(part_pid) == 211) + 0.5 * (np.abs(part_pid) == 321)",
        "(part_px**2 + part_py**2)**0.5",
        "~(part_pt > 1) & (part_pt < 3) | (jet_pt >= 2)",
        "np.argmax(np.stack([ak.to_numpy(jet_isQ), ak.to_numpy(jet_isG)], axis=1), axis=1)",
        'ak.values_astype(part_px, "float32")',
        "np.pi - part_dphi % (2 * np.pi)",
        "ak.fill_none(ak.firsts(part_px[:, 1:]), 0)",
        "np.clip(part_d0err, 0, 1)",
        "part_px**-1",
    ],
)
def test_formulas_that_compute(formula):
    formulas.check_formula(formula)


@pytest.mark.parametrize("name", repository.data_configs())
def test_the_projects_own_data_configs_compute(name):
    read = data_config.read(name)
    rebuilt = data_config.from_options(read.options)
    assert rebuilt.input_dicts == read.input_dicts
    assert rebuilt.var_funcs == read.var_funcs
    assert rebuilt.preprocess_params == read.preprocess_params


@pytest.mark.parametrize(
    "formula",
    [
        "np",
        "len(part_px)",
        "np.fromfile('x')",
        "np.frompyfunc(part_px, 1, 1)",
        "ak.to_parquet(part_px, 'x')",
        "np.log(part_px, out=part_py)",
        "np.log(*part_px)",
        "np.log(**part_px)",
        "np.linalg.norm(part_px)",
        "part_px.layout",
        "_pad(part_px, 3)",
        "part_px if 1 else 2",
        "(part_px := 3)",
        "part_px << 10",
        "part_px @ part_px",
        "part_px ** part_py",
        "((9**9)**9)**9",
        "f'{part_px}'",
        "{1: part_px}",
        "'text'",
        "1j",
        "part_px; part_py",
        "(" * 500 + "part_px" + ")" * 500,
        "part_px" + " + 1" * 5000,
        "",
        "a\0b",
    ],
)
def test_formulas_that_do_not(formula):
    with pytest.raises(UserError):
        formulas.check_formula(formula)
