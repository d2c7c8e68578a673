"""Classification of pictures, a batch at a time, and printing of the answers."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DeployError
from .model import Model
from .pictures import find_pictures, mode_of, read_image
from .words import one_line, printable_json


@dataclass(frozen=True)
class Result:
    """The result for one picture: ``answers``, or the ``problem`` why it could not be read.

    Parameters
    ----------
    path
        The picture.
    answers
        Every class with its probability, the most probable first.
    problem
        One sentence, or empty.
    """

    path: Path
    answers: tuple[tuple[str, float], ...] = ()
    problem: str = ""


def probabilities(model: Model, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the probability of every class: float64, (N, classes), rows that sum to 1.

    Parameters
    ----------
    model
        A model that answers one logit a class.
    rows
        As for :meth:`.model.Model.run`.
    """
    logits = model.run(rows)[model.card.output].astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return found


def classify_paths(model: Model, paths: Iterable[str | Path], batch: int = 32) -> Iterator[Result]:
    """Classify pictures and folders of pictures, ``batch`` at a time, in order.

    Yields
    ------
    Result
        One per picture. An unreadable picture has a problem instead of answers.

    Raises
    ------
    DeployError
        For a folder without pictures, or a model that takes no pictures.
    """
    (name, wanted), names = *model.card.inputs.items(), model.card.outputs[model.card.output].names
    mode_of(wanted)
    pictures = find_pictures(paths)
    for start in range(0, len(pictures), batch):
        images: list[np.ndarray] = []
        problems: dict[Path, str] = {}
        for path in pictures[start : start + batch]:
            try:
                images.append(read_image(path, wanted))
            except DeployError as error:
                problems[path] = str(error)
        rows = iter(probabilities(model, {name: np.stack(images)}) if images else ())
        for path in pictures[start : start + batch]:
            if path in problems:
                yield Result(path, problem=problems[path])
            else:
                answers = zip(names, map(float, next(rows)), strict=True)
                yield Result(path, tuple(sorted(answers, key=lambda answer: -answer[1])))


def print_results(results: Iterable[Result], *, top: int = 1, as_json: bool = False) -> int:
    """Print one line a picture, and the problems on stderr.

    Parameters
    ----------
    results
        What :func:`classify_paths` yields.
    top
        Classes to print for a picture.
    as_json
        One JSON object per line instead of text.

    Returns
    -------
    int
        Exit status: 1 if a picture could not be read, else 0.
    """
    status = 0
    for result in results:
        answers = result.answers[:top]
        if result.problem:
            status = 1
            print(f"error: {one_line(result.problem)}", file=sys.stderr)
        if as_json:
            line: dict[str, Any] = {"path": str(result.path)}
            if result.problem:
                line["problem"] = result.problem
            else:
                line["answers"] = [{"class": name, "probability": p} for name, p in answers]
            print(printable_json(line))
        elif answers:
            shown = (f"{one_line(name)}\t{probability:.2%}" for name, probability in answers)
            print(one_line(str(result.path)), *shown, sep="\t")
    return status


def answer(
    model: Model, paths: Iterable[str | Path], *, top: int = 1, batch: int = 32, as_json: bool
) -> int:
    """Classify pictures and print the answers; return the exit status."""
    return print_results(classify_paths(model, paths, batch), top=top, as_json=as_json)
