"""Imports point down and files stay short: see "Where things are" in CONTRIBUTING.md."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "dynaconv"
# From the top down; rooms of a floor know nothing of each other. What stands in no room is known to all.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"tasks"},
    {"seq2seq"},
    {"training", "bench"},
    {"grafting", "conversion"},
    {"models", "data"},
    {"nn", "interop"},
    {"functional"},
    {"dispatch"},
    {"checks"},
    {"kernels"},
]
FLOOR = {room: len(FLOORS) - i for i, rooms in enumerate(FLOORS) for room in rooms}


def name_of(path: Path) -> tuple[str, ...]:
    """The dotted name of a module below dynaconv, in parts; () is dynaconv itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {name_of(path): path for path in SOURCE.rglob("*.py")}


def imports_of(module: tuple[str, ...], text: str, is_package: bool):
    """What a module imports, anywhere in it: names below dynaconv in parts, and names of other packages."""
    own, others = set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found = [(tuple(alias.name.split(".")), None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ("dynaconv", *module)[: len(module) + 1 + is_package - node.level] if node.level else ()
            base += tuple((node.module or "").split(".")) if node.module else ()
            found = [(base, alias.name) for alias in node.names]
        else:
            continue
        for name, attribute in found:
            if name[0] != "dynaconv":
                others.add(name[0])
            else:
                submodule = (*name[1:], attribute)
                own.add(submodule if submodule in MODULES else name[1:])
    return own, others


IMPORTS = {name: imports_of(name, path.read_text("utf-8"), path.stem == "__init__") for name, path in MODULES.items()}


def upward(module: tuple[str, ...], imported: tuple[str, ...]) -> bool:
    """Whether an import leaves its room in another direction than down, or one task for another."""
    if imported[:1] not in {(room,) for room in FLOOR}:
        return False
    if module[0] == imported[0]:
        return module[0] == "tasks" and len(imported) > 1 and module[1:2] != imported[1:2]
    return FLOOR.get(module[0], 0) <= FLOOR[imported[0]]


def test_every_module_has_its_room():
    assert {name[0] for name in MODULES if name} == set(FLOOR) | {"versions"}


def test_imports_point_down():
    # dynaconv itself only names what it loads on first use.
    assert [(a, b) for a, (own, _) in IMPORTS.items() if a for b in own if upward(a, b)] == []


def test_no_circles():
    tuple(graphlib.TopologicalSorter({name: own - {name} for name, (own, _) in IMPORTS.items() if name}).static_order())


def test_only_models_and_what_stands_above_know_transformers():
    knowing = {name[0] for name, (_, others) in IMPORTS.items() if "transformers" in others}
    assert knowing == {"models", "data", "grafting", "conversion", "training", "bench", "seq2seq", "tasks"}


@pytest.mark.parametrize(
    ("module", "text", "imported"),
    [
        (("nn", "a"), "def f():\n    from ..models import presets", ("models", "presets")),
        (("kernels", "cpu", "rows"), "from ...functional import backend", ("functional",)),
        (("data", "store"), "import dynaconv.training.run", ("training", "run")),
        (("tasks", "translation", "a"), "from ..recall.corpus import b", ("tasks", "recall", "corpus")),
    ],
)
def test_an_import_upwards_is_noticed(module, text, imported):
    own, _ = imports_of(module, text, False)
    assert own == {imported}
    assert upward(module, imported)


def test_files_can_be_read_in_one_sitting():
    files = [path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert {path.name: count for path in files if (count := len(path.read_text("utf-8").splitlines())) > 400} == {}
