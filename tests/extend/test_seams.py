"""The seams are real: what the proofs here define is named nowhere else in the project."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.superfednas.test_house import FROM
from tests.support.processes import ROOT

HERE = Path(__file__).parent
PROOFS = [
    *(HERE / f"{name}.py" for name in ("keep_the_better", "table_task")),
    *HERE.glob("test_[!es]*.py"),
]


def defined(tree: ast.AST) -> Iterator[str]:
    """Yield the classes of a module, those in its texts too, and what they are called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name
            for line in node.body:
                if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
                    target = line.targets[0] if isinstance(line, ast.Assign) else line.target
                    if ast.unparse(target) == "name" and isinstance(line.value, ast.Constant):
                        yield str(line.value.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if "class " in node.value:
                yield from defined(ast.parse(node.value))
            yield from re.findall(r"soil|landslide|log-loss", node.value)


def test_nothing_else_names_what_a_proof_defines() -> None:
    names = {name for path in PROOFS for name in defined(ast.parse(path.read_text("utf-8")))}
    proofs = {
        "KeepTheBetter",
        "BitSpace",
        "Energy",
        "energy",
        "Landslides",
        "landslide",
        "log-loss",
    }
    assert proofs <= names
    word = re.compile(rf"(?<![\w])({'|'.join(map(re.escape, sorted(names)))})(?![\w])")
    others = [path for room in FROM for path in (ROOT / room).rglob("*.py")]
    others += [path for path in (ROOT / "tests").rglob("*.py") if HERE not in path.parents]
    others += [*(ROOT / "benchmarks").glob("*.py"), ROOT / "pyproject.toml"]
    found = {path: set(word.findall(path.read_text("utf-8"))) for path in others}
    assert not {path: names for path, names in found.items() if names}
