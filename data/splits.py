"""Fixed stratified splits: the same rows in every run, whatever its seed and row order by class."""

from dataclasses import dataclass

import numpy as np
import torch

from data.dataset import DataError, Split
from supernet.streams import Purpose, stream

TEST_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Parts:
    """What a source was read into; missing splits are held out of ``train`` by :func:`complete`."""

    train: Split
    validation: Split | None
    test: Split | None
    classes: tuple[str, ...]
    natural_ids: np.ndarray | None = None


def stratified(labels: np.ndarray, count: int, name: str) -> np.ndarray:
    """Draw ``count`` rows so that each class keeps its share, to within one row.

    Quotas are rounded by largest remainder, so the total is exact and a class of one row is no
    error (scikit-learn's splitters refuse it, yet a node's own data may look so).

    Parameters
    ----------
    labels
        Integers, (N,).
    name
        What is drawn; names the random stream, which does not depend on the run's seed.

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
        Size of the split where it is missing: a number of rows, or a share (float) of the training
        rows that were given, rounded and at least one.

    Returns
    -------
    parts, validation, test
        The parts with what is left of train, and the two splits.

    Raises
    ------
    DataError
        Where nothing would be left to train on.
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
    rows = np.arange(given)
    for name, size in sizes.items():
        drawn = stratified(parts.train.labels.numpy()[rows], size, name)
        held[name] = parts.train.take(rows[drawn])
        rows = np.delete(rows, drawn)
    if sizes:
        parts = keep(parts, rows)
    assert held["validation"] is not None and held["test"] is not None
    return parts, held["validation"], held["test"]


def keep(parts: Parts, rows: np.ndarray) -> Parts:
    """Give the parts with only these training rows (and their natural ids)."""
    ids = None if parts.natural_ids is None else parts.natural_ids[rows]
    return Parts(parts.train.take(rows), parts.validation, parts.test, parts.classes, ids)


def sample_train(what: str, parts: Parts, count: int) -> Parts:
    """Keep a stratified sample of ``count`` training rows; 0 keeps all.

    Raises
    ------
    DataError
        Where ``count`` exceeds the training rows.
    """
    if count == 0:
        return parts
    if count > len(parts.train):
        raise DataError(
            f"train-images = {count}: {what} has {len(parts.train)} training images; 0 (all) to "
            f"{len(parts.train)} is allowed."
        )
    return keep(parts, stratified(parts.train.labels.numpy(), count, "train"))


def as_split(images: torch.Tensor, labels: np.ndarray) -> Split:
    """Pair images with labels of any integer type."""
    return Split(images.contiguous(), torch.from_numpy(labels.astype(np.int64)))
