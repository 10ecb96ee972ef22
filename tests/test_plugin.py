"""What weaver asks of a network file: networks are built, found again, copied and pickled."""

import copy
import pickle
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from jets import make_jets
from zoo import CONFIG, LINEAR, NETWORKS, SIZES, build, stir

from jetzoo import repository

MAIN = """
import copy, pickle, sys
import torch
from weaver.utils.data.config import DataConfig
from jetzoo import plugin

KEPT = object()


class Mine(torch.nn.Module):
    def __init__(self, input_dim, num_classes):
        super().__init__()
        self.fc = torch.nn.Linear(input_dim, num_classes)


main = sys.modules["__main__"]
model, _ = plugin.build(Mine, DataConfig.load(sys.argv[1]))
assert sys.modules["__main__"] is main and main.KEPT is KEPT and main.Mine is Mine
again = pickle.loads(pickle.dumps(model))
assert type(again) is Mine and type(copy.deepcopy(model)) is Mine
assert torch.equal(again.fc.weight, model.fc.weight)
print("done")
"""

UNPICKLE = """
import pickle, sys
import torch

for path in sys.argv[1:]:
    with open(path, "rb") as file:
        model, jets = pickle.load(file)
    with torch.no_grad():
        torch.save(model(*jets), f"{path}.out")
"""


def python(script, *arguments):
    """What a script prints that stands in no file of a package."""
    result = subprocess.run(
        [sys.executable, script, *map(str, arguments)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_class_of_main_leaves_main_alone(tmp_path):
    script = tmp_path / "analysis.py"
    script.write_text(MAIN)
    assert python(script, CONFIG) == "done\n"


def test_networks_pickle_into_another_process(tmp_path):
    jets, expected = make_jets((12, 0, 1, 30)), {}
    for name in NETWORKS:
        model = stir(build(name, **SIZES.get(name, {})))
        with torch.no_grad():
            expected[tmp_path / name] = model(*jets)
            torch.testing.assert_close(copy.deepcopy(model)(*jets), model(*jets), rtol=0, atol=0)
        (tmp_path / name).write_bytes(pickle.dumps((model, jets)))
    script = tmp_path / "unpickle.py"
    script.write_text(UNPICKLE)
    python(script, *expected)
    for path, logits in expected.items():
        found = torch.load(f"{path}.out")
        torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5, msg=path.name)


def as_weaver_loads(path):
    """weaver executes a network file under one name, and does not register it."""
    spec = spec_from_file_location("_network_module", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_networks_of_weaver_pickle_in_their_process(data_config, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "_network_module", raising=False)
    mine = tmp_path / "Mine.py"
    mine.write_text(LINEAR)
    jets = make_jets((12, 0, 1, 30))
    for path in (repository.network("ParT"), mine, repository.network("LinformerParT")):
        model, _ = as_weaver_loads(path).get_model(data_config)
        again = pickle.loads(pickle.dumps(model.eval()))
        with torch.no_grad():
            torch.testing.assert_close(again(*jets), model(*jets), rtol=0, atol=0)
    monkeypatch.delitem(sys.modules, "_network_module", raising=False)


def test_a_module_of_the_user_is_not_replaced(data_config, tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(LINEAR)
    monkeypatch.syspath_prepend(tmp_path)
    import my_networks

    my_networks.get_model(data_config)
    assert sys.modules["my_networks"] is my_networks
    monkeypatch.delitem(sys.modules, "my_networks")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_seed_gives_the_same_weights_again(data_config, seed):
    models = [repository.network_module("PFN").get_model(data_config, seed=seed)[0] for _ in "ab"]
    other = repository.network_module("PFN").get_model(data_config, seed=seed + 1)[0]
    first, second, third = (
        torch.cat([p.flatten() for p in m.parameters()]) for m in (*models, other)
    )
    assert torch.equal(first, second) and not torch.equal(first, third)
