"""Regular expressions read what others write: each use is listed here, with whose text it reads.

This project's own sentences are for people; what programs ask of them is a code or a field beside
them. A new use fails until it is listed, and one that is listed and gone fails as well.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT

ROOMS = ("flower", "client", "records", "server", "deploy", "report", "superfednas", "cli")
# File and function (or name that the expression is bound to), and whose text it reads.
USES = {
    "client/allow.py: _WORD": "pins, as a node's operator writes them",
    "client/data.py: _MODULE": "the name of a data set, as a run's author gives it",
    "client/problems.py: _PATH": "any error's text, to take paths out of it",
    "deploy/doctor/faults.py: known_fault": "Flower, gRPC, Ray and the system",
    "deploy/fleet/credentials.py: _NAME": "a node's name, as a person gives it",
    "deploy/fleet/superlink.py: _COLOUR": "Flower's logger",
    "flower/options.py: _PAIR": "Flower's syntax of a node config",
    "flower/signatures.py: _SIGNATURE": "a submitter's signature in a run-config",
}


def uses(source: str) -> Iterator[str]:
    """Yield the function or name at which each use of ``re`` stands."""
    tree = ast.parse(source)
    modules, functions = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {a.asname or a.name for a in node.names if a.name in ("re", "regex")}
        elif isinstance(node, ast.ImportFrom) and node.module in ("re", "regex"):
            functions |= {alias.asname or alias.name for alias in node.names}

    def visit(node: ast.AST, where: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            at = where
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                at = child.name
            elif isinstance(child, ast.Assign) and where == "":
                at = ast.unparse(child.targets[0])
            if isinstance(child, ast.Call):
                called = child.func
                by_module = isinstance(called, ast.Attribute) and (
                    isinstance(called.value, ast.Name) and called.value.id in modules
                )
                if by_module or (isinstance(called, ast.Name) and called.id in functions):
                    yield at
            yield from visit(child, at)

    yield from visit(tree, "")


def found() -> Counter[str]:
    paths = [path for room in ROOMS for path in sorted((ROOT / room).glob("**/*.py"))]
    assert len(paths) > 100
    return Counter(
        f"{path.relative_to(ROOT)}: {use}" for path in paths for use in uses(path.read_text())
    )


def test_every_use_is_listed_with_whose_text_it_reads() -> None:
    assert found() == Counter(list(USES))


@pytest.mark.parametrize(
    ("source", "at"),
    [
        ("import re\nA = re.compile('x')", ["A"]),
        ("import re as r\ndef f():\n    return r.search('x', 'y')", ["f"]),
        ("from re import match as m\nclass C:\n    def g(self):\n        m('x', 'y')", ["g"]),
        ("import re\nA = B = 1\nre.sub('x', 'y', 'z')", [""]),
        ("import json\nre = 1\nA = json.loads('1')", []),
    ],
)
def test_a_use_is_found_however_it_is_written(source: str, at: list[str]) -> None:
    assert list(uses(source)) == at


@pytest.mark.parametrize("room", ROOMS)
def test_the_rooms_are_there(room: str) -> None:
    assert Path(ROOT, room).is_dir()
