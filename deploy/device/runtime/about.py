"""Model files described: what they read and answer, from the card, before anything is run."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from .answers import reads_pictures
from .card import Card
from .fields import Input
from .words import one_line, printable_json

_SHOWN = 100  # characters of a name
_PREPARED = ("scale", "offset")  # is done by the runtime, so nobody must know it


def described(card: Card) -> dict[str, Any]:
    """Return the task, the kind of files, and inputs and outputs by name, as JSON takes them.

    An input has ``dtype``, ``shape`` (of one row), ``low``, ``high`` (None: no such bound) and
    ``categories``; an output ``shape`` and ``names`` (of the entries of its first axis).
    """
    inputs = {name: dataclasses.asdict(each) for name, each in card.inputs.items()}
    return {
        "task": card.task,
        "files": "pictures" if reads_pictures(card) else ".npz",
        "inputs": {
            name: {key: value for key, value in each.items() if key not in _PREPARED}
            for name, each in inputs.items()
        },
        "outputs": {name: dataclasses.asdict(each) for name, each in card.outputs.items()},
    }


def print_about(card: Card, *, as_json: bool = False) -> int:
    """Print one line an input and an output (or one JSON object); return the exit status, 0."""
    if as_json:
        print(printable_json(described(card)))
        return 0
    files = "pictures, or folders of them" if reads_pictures(card) else ".npz, an array an input"
    lines = [f"task    {card.task}", f"files   {files}"]
    for name, each in card.inputs.items():
        lines.append(f"reads   {name}: {each.dtype} {_rows(each.shape)}, {_allowed(each)}")
    for name, output in card.outputs.items():
        names = f": {_listed(output.names)}" if output.names else ""
        lines.append(f"answers {name}: float32 {_rows(output.shape)}{names}")
    for line in lines:
        print(one_line(line))
    return 0


def _listed(names: Iterable[str]) -> str:
    return ", ".join(one_line(name, _SHOWN) for name in names)


def _rows(shape: tuple[int, ...]) -> str:
    return f"({', '.join(('N', *map(str, shape)))})"


def _allowed(each: Input) -> str:
    if each.categories:
        names = (f"{code} {name}" for code, name in enumerate(each.categories))
        return f"numbers or names: {_listed(names)}"
    low = "" if each.low is None else f" from {each.low:g}"
    high = "" if each.high is None else f" to {each.high:g}"
    return f"numbers{low}{high}" if low or high else "any numbers"
