"""Measured scores: each subnet is run on the same examples once, and the tally kept on disk."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from superfednas.common.damage import damage_of, loads
from superfednas.data import Dataset, Split
from superfednas.nas.score.tallies import score, subnet_module
from superfednas.supernet import Architecture, SearchSpace
from superfednas.tasks import Metric, Tally
from superfednas.tasks.images import ACCURACY, LOSS

FORMAT = 2
_READ = (1, FORMAT)


class ScoreBookError(ValueError):
    """Unusable scores; the message names the file and says why."""


class ScoreBook:
    """Tallies of the subnets of one supernet on one set of examples.

    Rows are appended as they are measured, so an interrupted measurement continues where it
    stopped.

    Parameters
    ----------
    path
        A ``.jsonl`` file, created with the first score; None keeps the scores in memory.
    weights
        Digest of the supernet's tensors.
    data
        Digest of the examples, or what stands for it where nodes measured.
    metrics
        What must be readable from the tallies of a file.

    Raises
    ------
    ScoreBookError
        If the file holds scores of other weights or other data, or is damaged.
    """

    def __init__(
        self, path: Path | None, *, weights: str, data: str, metrics: Sequence[Metric] = ()
    ) -> None:
        self.path = path
        self._metrics = metrics
        self.weights = weights
        self.data = data
        self._rows: dict[Architecture, Tally] = {}
        if path is not None and not _empty(path):
            self._read(path)

    @classmethod
    def open(cls, path: Path, metrics: Sequence[Metric] = ()) -> "ScoreBook":
        """Open an existing file, whatever it was measured on."""
        header = _header(path)
        return cls(path, weights=header["weights"], data=header["data"], metrics=metrics)

    def __len__(self) -> int:
        """Return the number of scores."""
        return len(self._rows)

    def __contains__(self, arch: Architecture) -> bool:
        """Return whether an architecture has been measured."""
        return arch in self._rows

    def __getitem__(self, arch: Architecture) -> Tally:
        """Return an architecture's tally."""
        return self._rows[arch]

    def items(self) -> Iterable[tuple[Architecture, Tally]]:
        """Return all architectures with their tallies, in the order of measurement."""
        return self._rows.items()

    def put(self, arch: Architecture, found: Tally) -> None:
        """Keep a tally."""
        self._rows[arch] = found
        if self.path is None:
            return
        row = {
            "architecture": json.loads(arch.to_json()),
            "examples": found.examples,
            "sums": dict(found.sums),
        }
        lines = [row]
        if _empty(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines.insert(0, {"format": FORMAT, "weights": self.weights, "data": self.data})
        with self.path.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def _read(self, path: Path) -> None:
        header = _header(path)
        for key, mine, what in (
            ("weights", self.weights, "another supernet"),
            ("data", self.data, "other images"),
        ):
            if header[key] != mine:
                raise ScoreBookError(
                    f"{str(path)!r} holds scores of {what} ({key} {header[key]:.12}, "
                    f"needed: {mine:.12})"
                )
        try:
            text = path.read_text()
        except ValueError as error:
            raise ScoreBookError(f"{str(path)!r} is damaged: {error}") from None
        if not text.endswith("\n"):  # a partial last line is dropped and overwritten
            text = text[: text.rfind("\n") + 1]
            path.write_text(text)
        for number, line in enumerate(text.splitlines()[1:], start=2):
            with damage_of(path, ScoreBookError, f"is damaged in line {number}"):
                row = loads(line)
                if row == header:  # of another process, which began the file at the same time
                    continue
                arch: Architecture = Architecture.from_json(row["architecture"])
                self._rows[arch] = _tally(row, self._metrics)


def _tally(row: Mapping[str, Any], metrics: Iterable[Metric]) -> Tally:
    """Read a row of either format: the first knew images alone."""
    examples = int(row["examples"])
    if examples < 1:
        raise ValueError(f"{examples} examples")
    sums = row.get("sums") or {
        ACCURACY.name: row["correct"],
        LOSS.name: row["loss"] * examples,
    }
    tally = Tally(examples, {str(name): float(found) for name, found in sums.items()})
    for metric in metrics:
        value = tally.value(metric)
        if math.isfinite(value) and not metric.allows(value):
            raise ValueError(f"{metric.name} = {value:g}")
    return tally


def _empty(path: Path) -> bool:
    return not path.exists() or not path.stat().st_size


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open() as file:
            header = loads(file.readline())
        digests = header.get("weights"), header.get("data")
        known = header.get("format") in _READ and all(isinstance(d, str) for d in digests)
    except (OSError, ValueError, AttributeError) as error:
        raise ScoreBookError(f"{str(path)!r} holds no scores of this project: {error}") from None
    if not known:
        raise ScoreBookError(
            f"{str(path)!r} holds no scores of format {FORMAT}: its first line is {header!s:.200}"
        )
    return dict(header)


class Measured:
    """The task's first metric of subnets on one split: the score that all others stand for.

    Parameters
    ----------
    space, state
        The supernet; its tensors are only read.
    data
        What is learned, and training rows for the calibration that static batch norm needs.
    split
        Rows to measure on: validation rows, or a part of them; never test rows.
    book
        Where scores are kept.
    device
        Where subnets run.

    Raises
    ------
    ValueError
        If the split is empty.
    """

    name = "measured"

    def __init__(
        self,
        space: SearchSpace,
        state: Mapping[str, torch.Tensor],
        data: Dataset,
        split: Split,
        *,
        book: ScoreBook | None = None,
        device: torch.device | None = None,
    ) -> None:
        if not len(split):
            raise ValueError(
                f"the validation split of {data.name!r} has no examples: set validation-share, or "
                "give a data set with one"
            )
        self.space = space
        self.book = ScoreBook(None, weights="", data="") if book is None else book
        self.metric = data.task.metrics[0]
        self._state, self._data, self._split = state, data, split
        self._device = device or torch.device("cpu")

    def measure(
        self,
        archs: Sequence[Architecture],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Tally]:
        """Return the tally of each architecture; those in the book are not run again.

        ``progress`` is called with (done, to do) after each run.
        """
        missing = [arch for arch in dict.fromkeys(archs) if arch not in self.book]
        for number, arch in enumerate(missing, start=1):
            module = subnet_module(self.space, self._state, arch).to(self._device)
            self.book.put(arch, score(module, self._data, self._split))
            if progress is not None:
                progress(number, len(missing))
        return [self.book[arch] for arch in archs]

    def __call__(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return the metric of each architecture, with its sign turned where less is better."""
        sign, value = self.metric.sign, self.metric.of
        return np.array([sign * value(found) for found in self.measure(archs)])
