"""Measured scores: each subnet is run on the same images once, and the result is kept on disk."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data import Dataset, Split
from nas.accuracy import Score, score, subnet_module
from supernet import Architecture, SearchSpace

FORMAT = 1


class ScoreBookError(ValueError):
    """Scores that cannot be used; the message names the file and says why."""


class ScoreBook:
    """Scores of the subnets of one supernet on one set of images.

    Rows are appended as they are measured, so an interrupted measurement goes on where it was.

    Parameters
    ----------
    path
        A ``.jsonl`` file, made when the first score is put; None keeps the scores in memory.
    weights
        Digest of the supernet's tensors.
    data
        Digest of the images and labels, or of what stands for them where nodes measured.

    Raises
    ------
    ScoreBookError
        Where the file holds scores of other weights or other data, or is damaged.
    """

    def __init__(self, path: Path | None, *, weights: str, data: str) -> None:
        self.path = path
        self.weights = weights
        self.data = data
        self._rows: dict[Architecture, Score] = {}
        if path is not None and not _empty(path):
            self._read(path)

    @classmethod
    def open(cls, path: Path) -> "ScoreBook":
        """Open an existing file, whatever it was measured on."""
        header = _header(path)
        return cls(path, weights=header["weights"], data=header["data"])

    def __len__(self) -> int:
        """Count the scores."""
        return len(self._rows)

    def __contains__(self, arch: Architecture) -> bool:
        """Say whether an architecture has been measured."""
        return arch in self._rows

    def __getitem__(self, arch: Architecture) -> Score:
        """Return an architecture's score."""
        return self._rows[arch]

    def items(self) -> Iterable[tuple[Architecture, Score]]:
        """Return all architectures with their scores, in the order of measurement."""
        return self._rows.items()

    def put(self, arch: Architecture, found: Score) -> None:
        """Keep a score."""
        self._rows[arch] = found
        if self.path is None:
            return
        row = {
            "architecture": json.loads(arch.to_json()),
            "correct": found.correct,
            "loss": found.loss,
            "examples": found.examples,
        }
        lines = [row]
        if _empty(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines.insert(0, {"format": FORMAT, "weights": self.weights, "data": self.data})
        with self.path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

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
        if not text.endswith("\n"):  # a torn last line is dropped, and written over
            text = text[: text.rfind("\n") + 1]
            path.write_text(text)
        for number, line in enumerate(text.splitlines()[1:], start=2):
            try:
                row = json.loads(line)
                arch: Architecture = Architecture.from_json(row["architecture"])
                self._rows[arch] = Score.of(row["correct"], row["loss"], row["examples"])
            except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
                raise ScoreBookError(f"{str(path)!r}: line {number} is damaged ({error})") from None


def _empty(path: Path) -> bool:
    return not path.exists() or not path.stat().st_size


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open() as file:
            header = json.loads(file.readline())
        digests = header.get("weights"), header.get("data")
        known = header.get("format") == FORMAT and all(isinstance(d, str) for d in digests)
    except (OSError, ValueError, AttributeError) as error:
        raise ScoreBookError(f"{str(path)!r} holds no scores of this project: {error}") from None
    if not known:
        raise ScoreBookError(
            f"{str(path)!r} holds no scores of format {FORMAT}: its first line is {header}"
        )
    return dict(header)


class Measured:
    """Accuracy of subnets on one split: the score that all others stand for.

    Parameters
    ----------
    space, state
        The supernet; its tensors are only read.
    data
        Pixel constants, and training images for the calibration that static batch norm needs.
    split
        Images to measure on: validation images, or a part of them; never test images.
    book
        Where scores are kept.
    device
        Where subnets run.

    Raises
    ------
    ValueError
        Where the split is empty.
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
                f"the validation split of {data.name!r} has no images: set validation-share, or "
                "give a data set with one"
            )
        self.space = space
        self.book = ScoreBook(None, weights="", data="") if book is None else book
        self._state, self._data, self._split = state, data, split
        self._device = device or torch.device("cpu")

    def measure(
        self,
        archs: Sequence[Architecture],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Score]:
        """Return the score of each architecture; those in the book are not run again.

        ``progress`` is called with (done, to do) after each that is run.
        """
        missing = [arch for arch in dict.fromkeys(archs) if arch not in self.book]
        for number, arch in enumerate(missing, start=1):
            module = subnet_module(self.space, self._state, arch).to(self._device)
            data = self._data
            self.book.put(
                arch, score(module, self._split, data.mean, data.std, calibration=data.train)
            )
            if progress is not None:
                progress(number, len(missing))
        return [self.book[arch] for arch in archs]

    def __call__(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return the accuracy of each architecture."""
        return np.array([found.accuracy for found in self.measure(archs)])
