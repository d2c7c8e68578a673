"""Fixed stratified splits: the same rows in every run, whatever its seed and row order by class."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from superfednas.common.streams import Purpose, stream
from superfednas.data.dataset import DataError, Split

TEST_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Parts:
    """The splits read from a source; :func:`complete` holds missing ones out of ``train``."""

    train: Split
    validation: Split | None
    test: Split | None
    classes: tuple[str, ...]
    ids: np.ndarray | None = None
    held_ids: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        """Labels of the training rows, by which others are held out."""
        found: np.ndarray = self.train.targets["labels"].numpy()
        return found


def stratified(labels: np.ndarray, count: int, name: str) -> np.ndarray:
    """Draw ``count`` rows so that each class keeps its share, to within one row.

    Quotas are rounded by largest remainder, so the total is exact and a class with a single row is
    no error (scikit-learn's splitters refuse one, but a node's own data may have one).

    Parameters
    ----------
    labels
        Integers, (N,).
    name
        What is drawn: the name of the random stream, which does not depend on the run's seed.

    Returns
    -------
    np.ndarray
        Sorted int64 indices, (count,).
    """
    rng = stream(0, Purpose.SPLIT, name=name)
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    exact = sizes * (count / len(labels))
    quotas = np.floor(exact).astype(np.int64)
    largest = np.argsort(quotas - exact, kind="stable")[: count - int(quotas.sum())]
    quotas[largest] += 1
    drawn = [
        rng.choice(np.flatnonzero(inverse == k), size=quota, replace=False)
        for k, quota in enumerate(quotas)
    ]
    return np.sort(np.concatenate(drawn))


def complete(
    what: str, parts: Parts, *, validation: int | float, test: int | float = TEST_SHARE
) -> tuple[Parts, Split, Split]:
    """Hold the missing validation and test splits out of train, stratified and never overlapping.

    Parameters
    ----------
    what
        The source, for error messages.
    validation, test
        Size of the split if it is missing: a number of rows, or a share (float) of the given
        training rows, rounded and at least one.

    Returns
    -------
    parts, validation, test
        The parts with the remaining training rows, and the two splits.

    Raises
    ------
    DataError
        If nothing would be left to train on.
    """
    given = len(parts.train)
    sizes = {
        name: size if isinstance(size, int) else max(1, round(size * given))
        for name, size, split in (
            ("test", test, parts.test),
            ("validation", validation, parts.validation),
        )
        if split is None
    }
    if sum(sizes.values()) >= given:
        raise DataError(
            f"{what}: train holds {given} images; more than {sum(sizes.values())} are needed to "
            f"hold out {' and '.join(sizes)}."
        )
    held = {"validation": parts.validation, "test": parts.test}
    rows, ids = np.arange(given), dict(parts.held_ids)
    for name, size in sizes.items():
        drawn = stratified(parts.labels[rows], size, name)
        held[name] = parts.train.take(rows[drawn])
        if parts.ids is not None:
            ids[name] = parts.ids[rows[drawn]]
        rows = np.delete(rows, drawn)
    if sizes:
        parts = replace(keep(parts, rows), held_ids=ids)
    assert held["validation"] is not None and held["test"] is not None
    return parts, held["validation"], held["test"]


def keep(parts: Parts, rows: np.ndarray) -> Parts:
    """Return the parts with only these training rows (and their natural ids)."""
    ids = None if parts.ids is None else parts.ids[rows]
    return replace(parts, train=parts.train.take(rows), ids=ids)


def sample_train(what: str, parts: Parts, count: int) -> Parts:
    """Keep a stratified sample of ``count`` training rows; 0 keeps all.

    Raises
    ------
    DataError
        If ``count`` exceeds the training rows.
    """
    if count == 0:
        return parts
    if count > len(parts.train):
        raise DataError(
            f"train-images = {count}: {what} has {len(parts.train)} training images; 0 (all) to "
            f"{len(parts.train)} is allowed."
        )
    return keep(parts, stratified(parts.labels, count, "train"))


def as_split(images: torch.Tensor, labels: np.ndarray) -> Split:
    """Pair images with labels of any integer type."""
    targets = {"labels": torch.from_numpy(labels.astype(np.int64))}
    return Split({"images": images.contiguous()}, targets)
