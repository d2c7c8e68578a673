"""The house: which room imports from which, how full a room is, how long a file."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT

# A room imports from itself, from those named, and from all that these import.
FROM: dict[str, tuple[str, ...]] = {
    "common": (),
    "tasks": ("common",),
    "supernet": ("tasks",),
    "data": ("tasks",),
    "wire": ("supernet",),
    "flower": ("common",),
    "nas": ("supernet", "data"),
    "client": ("nas", "wire", "flower"),
    "records": ("nas", "wire", "flower"),
    "server": ("records",),
    "deploy": ("server", "client"),
    "report": ("server",),
    "bench": ("deploy", "superfednas"),
    "superfednas": ("deploy", "report"),
    "cli": ("superfednas", "bench"),
}
MOST_FILES = {"server": 8, "deploy": 5, "nas": 6}
MOST_LINES = 400
# What Flower loads must not import a room before its first call, so `superfednas/__init__` and the
# few lines of `app` may be imported by all.
FOR_ALL = ("superfednas",)


@functools.cache
def sources() -> dict[str, Path]:
    """Return every production module's dotted name (without ``superfednas.``) and its file."""
    found = {}
    for room in FROM:
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join(parts)] = path
    return found


@functools.cache
def imports(module: str) -> tuple[tuple[str, bool], ...]:
    """Return what a module imports of this project, and whether it does so when it is loaded."""
    path, found = sources()[module], []
    tree = ast.parse(path.read_text("utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node, at_load in _walk(tree, True):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # only the device's runtime imports relatively
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(["superfednas", *parts, *filter(None, [base])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "superfednas":
                found.append((_module(name), at_load))
    return tuple(found)


def _walk(tree: ast.AST, at_load: bool) -> Iterator[tuple[ast.AST, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for inner in node.body:
                yield inner, False
            continue
        yield node, at_load
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(node, at_load and not inside)


def _module(name: str) -> str:
    """Return the module of this project that an imported name is, or lies in."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in sources():
        parts.pop()
    return ".".join(parts) or "superfednas"


@functools.cache
def reach(room: str) -> frozenset[str]:
    """Return the rooms that a room may import from."""
    return frozenset({room}.union(*(reach(other) for other in FROM[room])))


def test_every_room_stands_in_the_plan() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert rooms == set(FROM)


@pytest.mark.parametrize("room", FROM)
def test_a_room_imports_only_from_the_rooms_below_it(room: str) -> None:
    wrong = {
        f"{module} imports {other}"
        for module in sources()
        if module.partition(".")[0] == room
        for other, _ in imports(module)
        if other.partition(".")[0] not in reach(room) and other not in FOR_ALL
    }
    assert not wrong


def test_server_and_client_do_not_know_each_other() -> None:
    assert "client" not in reach("server") and "server" not in reach("client")


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        module: {other for other, at_load in imports(module) if at_load and other != module}
        for module in sources()
    }
    # A package's own __init__ that names what its modules hold is no circle while they do not
    # import the package.
    left = dict(graph)
    while ends := [module for module, others in left.items() if not others & left.keys()]:
        for module in ends:
            del left[module]
    assert not left, {module: sorted(others & left.keys()) for module, others in left.items()}


@pytest.mark.parametrize(("room", "most"), MOST_FILES.items())
def test_a_room_can_be_seen_at_a_glance(room: str, most: int) -> None:
    assert len(list((ROOT / room).glob("*.py"))) <= most


def test_files_are_short() -> None:
    lines = {name: path.read_text("utf-8").count("\n") for name, path in sources().items()}
    design = (ROOT / "docs" / "design.md").read_text("utf-8")
    long = {name for name, count in lines.items() if count > MOST_LINES}
    unexplained = {name for name in long if f"`{name.replace('.', '/')}`" not in design}
    assert not unexplained


def _moved() -> Iterator[str]:
    """Yield the new names of the table of moved modules, short ones below the one before them."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    for cell in re.findall(r"^  \| .* \| (.*) \|$", text, re.M):
        package = ""
        for name in re.findall(r"`([^`]+)`", cell):
            if not re.fullmatch(r"[\w.]+", name):
                package = ""
            elif "." in name:
                package = name.rpartition(".")[0]
                yield name
            elif package:
                yield f"{package}.{name}"


def test_the_table_of_moved_modules_names_some_that_exist() -> None:
    rooms = set(FROM) - {"superfednas"}
    moved = {name for name in _moved() if name.partition(".")[0] in rooms}
    assert len(moved) > 90
    modules = {name for name, path in sources().items() if path.name != "__init__.py"}
    gone = {n for n in moved if n not in sources() and n.rpartition(".")[0] not in modules}
    assert not gone


def test_modules_begin_with_what_they_are() -> None:
    for name, path in sources().items():
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), name
