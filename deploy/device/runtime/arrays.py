"""Rows of arrays in .npz files, for a model of any task, and its outputs printed."""

import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from .errors import DeployError
from .model import Model
from .words import one_line, printable_json


def read_rows(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Read some arrays of a .npz file, as ``numpy.savez(path, name=array)`` writes it.

    Parameters
    ----------
    path
        The file; it may hold other arrays too, such as the targets.
    names
        Of the arrays to read.

    Returns
    -------
    dict
        The arrays by name; one without axes becomes one row.

    Raises
    ------
    DeployError
        If it is no such file, or lacks one of them.
    """
    if not path.exists():
        raise DeployError(f"{path}: there is no such file")
    if not path.is_file() or not zipfile.is_zipfile(path):
        example = ", ".join(f"{name}=…" for name in names)
        raise DeployError(
            f"{path}: it is no .npz file of arrays; numpy.savez(path, {example}) writes one"
        )
    try:
        with np.load(path, allow_pickle=False) as held:
            if not set(names) <= set(held.files):
                found = ", ".join(held.files) or "nothing"
                raise DeployError(
                    f"{path}: the network reads {', '.join(names)}; the file has {found}"
                )
            rows = {name: _read(held, name, path) for name in names}
    except DeployError:
        raise
    # A zip file may be encrypted or compressed in a way that Python does not know: RuntimeError.
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DeployError(f"{path}: the file is damaged") from error
    return rows


def _read(held: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    try:
        return np.atleast_1d(held[name])
    except ValueError as error:  # whose sentence recommends what is never safe: to unpickle
        raise DeployError(f"{path}: {name} are no numbers or texts, or are damaged") from error


def run_paths(
    model: Model, paths: Iterable[str | Path], batch: int = 32
) -> Iterator[tuple[Path, int, np.ndarray]]:
    """Run the rows of .npz files, ``batch`` at a time, in order.

    Yields
    ------
    tuple
        The file, the row's number in it, and the model's output.

    Raises
    ------
    DeployError
        If a file cannot be read, or its rows are not what the model reads.
    """
    for path in map(Path, paths):
        rows, start = read_rows(path, tuple(model.card.inputs)), 0
        while True:
            part = {name: array[start : start + batch] for name, array in rows.items()}
            try:
                answers = model.run(part)[model.card.output]
            except DeployError as error:
                raise DeployError(f"{path}: {error}") from error
            if not len(answers):
                break
            yield from ((path, start + row, answer) for row, answer in enumerate(answers))
            start += batch


def answer(
    model: Model, paths: Iterable[str | Path], *, top: int = 1, batch: int = 32, as_json: bool
) -> int:
    """Run the rows of .npz files and print each row's full output; return the exit status."""
    name = model.card.output
    for path, row, found in run_paths(model, paths, batch):
        if as_json:
            line = {"path": str(path), "row": row, name: found.tolist()}
            print(printable_json(line))
        else:
            print(
                one_line(str(path)), row, *(f"{number:.6g}" for number in found.ravel()), sep="\t"
            )
    return 0
