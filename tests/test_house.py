"""The layout of the project: floors that import only what lies below them, names, sizes."""

import ast
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter

import pytest
from conftest import ROOT

PACKAGE = ROOT / "src" / "jetzoo"
CODE = ("src", "networks", "scripts", "benchmarks")

# From the top. A room, which is a file or a folder of src/jetzoo, imports from lower floors and
# from side rooms; within a room files import one another, without a circle.
FLOORS = (
    {"__main__"},
    {"cli"},
    {"networks"},
    {"plugin"},
    {"cpp", "export", "interpret", "profiling"},
    {"comparison", "prediction", "training"},
    {"tagger"},
    {"acceleration"},
    {"int8"},
    {"engine"},
    {"nn"},
    {"attention"},
    {"native"},
)
# Commands that lie beside what they call.
COMMANDS = {
    "jetzoo.arguments": "cli",
    "jetzoo.insight": "cli",
    "jetzoo.datasets.command": "cli",
    "jetzoo.datasets.__main__": "__main__",
}
# What all floors may import; these have an order of their own, which is not written here.
SIDE_ROOMS = {
    "__init__",
    "checkpoint",
    "choices",
    "cluster",
    "data_config",
    "datasets",
    "formulas",
    "groups",
    "hdf5",
    "jets",
    "labels",
    "metrics",
    "models",
    "modules",
    "page",
    "repository",
    "schema",
    "simulate",
    "sources",
    "state",
    "streams",
    "style",
    "tables",
}


@cache
def tree(path):
    return ast.parse(path.read_text())


def sources():
    """Each file of the package, and each network file, by the name of its module."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        names = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    networks = {f"jetzoo.networks.{p.stem}": p for p in (ROOT / "networks").glob("*.py")}
    return found | networks


SOURCES = sources()


def lazy_exports():
    """Where the names lie that ``jetzoo`` loads when they are first used."""
    for node in tree(PACKAGE / "__init__.py").body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "_EXPORTS":
            return ast.literal_eval(node.value)
    raise AssertionError("jetzoo/__init__.py has no _EXPORTS")


def imported(path, package=()):
    """(module, name) of all imports of a file, at module level and inside functions.

    ``name`` is None where a module is imported as a whole; ``package`` is what dots stand for.
    """
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield from ((module, alias.name) for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and isinstance(node.args[0], ast.Constant)
        ):
            module, _, name = node.args[0].value.rpartition(".")
            yield module or ".".join(package), name


def neighbours(module):
    """Modules of the project that a module imports."""
    path = SOURCES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for name, part in imported(path, tuple(package.split("."))):
        whole = f"{name}.{part}"
        if name == "jetzoo" and part in lazy_exports():
            found.add(lazy_exports()[part])
        elif whole in SOURCES:
            found.add(whole)
        elif name in SOURCES:
            found.add(name)
    return found - {module}


def room(module):
    """Room of a module: a file or a folder of src/jetzoo."""
    return COMMANDS.get(module) or (module.split(".") + ["__init__"])[1]


@pytest.fixture(scope="module")
def graph():
    """What each module of the project imports."""
    return {module: neighbours(module) for module in SOURCES}


def test_the_graph_is_that_of_the_code(graph):
    # Within functions, lazily.
    assert "jetzoo.prediction.files" in graph["jetzoo.cli"]
    assert "jetzoo.interpret" in graph["jetzoo.insight"]
    assert "jetzoo.data_config" in graph["jetzoo.tagger"]  # from .data_config import read
    assert "jetzoo.native.part" in graph["jetzoo.acceleration"]  # from .native import part
    assert "jetzoo.nn.transformer" in graph["jetzoo.networks.ParT"]


def test_every_room_has_its_place():
    rooms = {room(module) for module in SOURCES}
    assert rooms == set().union(SIDE_ROOMS, *FLOORS)
    assert sum(map(len, FLOORS)) + len(SIDE_ROOMS) == len(rooms)  # and no room has two


def test_imports_lead_downwards(graph):
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    wrong = [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if room(other) != room(module) and floor.get(room(other), 99) <= floor.get(room(module), 98)
    ]
    assert wrong == []


def test_no_circle_of_files_or_rooms(graph):
    rooms = {}
    for module, others in graph.items():
        rooms.setdefault(room(module), set()).update(room(x) for x in others)
    rooms = {name: others - {name} for name, others in rooms.items()}
    assert (circle(graph), circle(rooms)) == ([], [])


def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def circle(whole):
    """Modules that import one another in turn, or an empty list."""
    try:
        TopologicalSorter(whole).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_one_door_to_the_private_functions_of_weaver():
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in CODE
        for path in (ROOT / folder).rglob("*.py")
        for module, name in imported(path)
        if module.split(".")[0] == "weaver" and (name or module.split(".")[-1]).startswith("_")
    }
    assert found == {"src/jetzoo/data_config.py"}


def code_files():
    """Everything that is written by hand and runs, the kernels in C++ included."""
    suffixes = {".py", ".sh", ".cpp", ".h"}
    folders = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*"))]
    return [path for path in (*folders, *ROOT.glob("*.*")) if path.suffix in suffixes]


def test_one_can_see_across_every_file():
    sizes = {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in code_files()}
    assert {name: size for name, size in sizes.items() if size > 500} == {}


def defined_classes(path):
    return [node.name for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]


def test_a_class_name_means_one_thing():
    names = Counter(
        name for path in code_files() if path.suffix == ".py" for name in defined_classes(path)
    )
    assert {name: count for name, count in names.items() if count > 1} == {}


def classes_asked_for(node):
    """Expressions that a type is compared with, by ``isinstance`` or by ``type(x) is``."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
        return [node.args[1]]
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        if any("type(" in text or "__class__" in text for text in map(ast.unparse, sides)):
            return sides
    return []


def names_in(expressions):
    """Names and attributes in expressions, such as ``nn`` and ``Linear`` of ``nn.Linear``."""
    nodes = [node for expression in expressions for node in ast.walk(expression)]
    return {getattr(node, "id", None) or getattr(node, "attr", None) for node in nodes}


def test_no_code_asks_for_the_class_of_a_network():
    """weaver executes a network file anew each time, so that its classes are others each time."""
    files = [*(ROOT / "networks").glob("*.py"), *(PACKAGE / "nn").glob("*.py")]
    networks = {name for path in files for name in defined_classes(path)}
    networks.remove("PairBias")  # an argument of layers, which no network file defines
    wrong = []
    for path in (path for path in code_files() if path.suffix == ".py"):
        for node in ast.walk(tree(path)):
            by_name = isinstance(node, ast.Compare) and any(
                getattr(part, "attr", None) == "__name__" for part in ast.walk(node)
            )
            if by_name or names_in(classes_asked_for(node)) & networks:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert wrong == []
