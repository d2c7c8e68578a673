"""Divide training rows among clients, and other splits in the same proportions.

The schemes are those of ``flwr_datasets.partitioner``. Rows are shuffled first, because its IID
scheme cuts contiguous blocks and the others cut each class in the given order.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from superfednas.common.streams import Purpose, stream
from superfednas.data.dataset import DataError, Dataset
from superfednas.data.settings import DataSettings

DIRICHLET_SEEDS = 10  # the library makes 11 attempts per seed


def partition(
    dataset: Dataset, settings: DataSettings, clients: int, seed: int
) -> list[np.ndarray]:
    """Divide ``dataset.train`` among clients.

    ``iid``, ``dirichlet`` and ``balanced-dirichlet`` assign every row. ``shards`` drops the rows
    that do not fill a shard (fewer than clients times shards-per-client). ``pathological`` drops
    the classes that no client drew (none if there are at least as many clients as classes: the
    first class of client k is k modulo C). ``natural`` allows at most as many clients as there are
    natural ids, takes the first ids in sorted order and drops the rows of the others.

    Parameters
    ----------
    clients
        Number of clients, at least 1.
    seed
        The run's seed; the same seed gives the same partition on every machine.

    Returns
    -------
    list[np.ndarray]
        Per client sorted int64 indices into ``dataset.train``, disjoint.

    Raises
    ------
    DataError
        If the rows cannot be divided in this way; it names the value and what is allowed.
    """
    _check(dataset, settings, clients)
    rng = stream(seed, Purpose.PARTITION)
    order = rng.permutation(len(dataset.train))
    columns = {"index": order, "label": dataset.strata(dataset.train)[order]}
    if settings.partition == "natural":
        assert dataset.ids is not None
        columns["natural"] = dataset.ids[order]
    tries = DIRICHLET_SEEDS if settings.partition == "dirichlet" else 1
    for left in reversed(range(tries)):
        try:
            parts = _divide(columns, settings, clients, rng)
            break
        except ValueError as error:
            if not left:
                raise DataError(_impossible(settings, clients, error)) from error
    smallest = min(len(part) for part in parts)
    if settings.partition != "natural" and smallest < settings.min_partition_size:
        raise DataError(
            f"min-partition-size = {settings.min_partition_size}: partition = "
            f"{settings.partition} among {clients} clients leaves one with {smallest} training "
            f"images; at most {smallest}, or fewer clients, is allowed."
        )
    return parts


def partition_like(
    labels_to_split: torch.Tensor | np.ndarray,
    train_labels: torch.Tensor | np.ndarray,
    parts: list[np.ndarray],
    seed: int,
) -> list[np.ndarray]:
    """Divide another split so that each client's share of a class is its share of it in training.

    Shares are exact to within one row per class: their cumulative sums over shuffled rows are
    rounded, with the clients in a random order for each class so that rounding favours none. A
    client may get no row of a class that has fewer rows than clients. Rows of a class that no
    client trains on are not assigned.

    Parameters
    ----------
    labels_to_split
        Labels of the rows to divide, (M,).
    train_labels
        Labels of all training rows, (N,).
    parts
        Per client, indices into the training rows.

    Returns
    -------
    list[np.ndarray]
        Per client sorted int64 indices into the M rows, disjoint.
    """
    rng = stream(seed, Purpose.PARTITION, name="like")
    labels, train = np.asarray(labels_to_split), np.asarray(train_labels)
    owners = np.full(len(labels), -1)
    for k in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == k))
        turns = rng.permutation(len(parts))
        held = np.cumsum([np.count_nonzero(train[parts[client]] == k) for client in turns])
        if held[-1]:
            ends = np.rint(held * (len(rows) / held[-1]))
            owners[rows] = turns[np.searchsorted(ends, np.arange(len(rows)), side="right")]
    return [np.flatnonzero(owners == client) for client in range(len(parts))]


def _check(dataset: Dataset, settings: DataSettings, clients: int) -> None:
    rows, scheme = len(dataset.train), settings.partition
    least = 1 if scheme == "natural" else settings.min_partition_size
    if clients < 1:
        raise DataError(f"clients = {clients}: at least 1 client is needed.")
    if clients * least > rows:
        raise DataError(
            f"min-partition-size = {least}: {clients} clients would need {clients * least} "
            f"training images and {dataset.name} has {rows}; at most {rows // clients}, or at most "
            f"{rows // least} clients, is allowed."
        )
    if scheme == "shards" and clients * settings.shards_per_client > rows:
        raise DataError(
            f"shards-per-client = {settings.shards_per_client}: {clients} clients would need "
            f"{clients * settings.shards_per_client} shards of {rows} training images; at most "
            f"{rows // clients} is allowed."
        )
    present = len(np.unique(dataset.strata(dataset.train)))
    if scheme == "pathological" and settings.classes_per_client > present:
        raise DataError(
            f"classes-per-client = {settings.classes_per_client}: the training images of "
            f"{dataset.name} have {present} classes; at most {present} is allowed."
        )
    if scheme == "natural":
        if dataset.ids is None:
            raise DataError(
                f"natural-id = {settings.natural_id!r}: {dataset.name} has no such ids; an npz "
                "array '<natural-id>_train' or a column of an hf: data set is needed."
            )
        known = len(np.unique(dataset.ids))
        if clients > known:
            raise DataError(
                f"clients = {clients}: {dataset.name} has {known} natural clients; at most "
                f"{known} is allowed."
            )


def _impossible(settings: DataSettings, clients: int, error: Exception) -> str:
    hint = {
        "dirichlet": "a larger dirichlet-alpha, a smaller min-partition-size or fewer clients",
        "balanced-dirichlet": "a larger dirichlet-alpha, a smaller min-partition-size or fewer "
        "clients",
        "pathological": "fewer clients or a smaller classes-per-client",
    }.get(settings.partition, "fewer clients")
    return (
        f"partition = {settings.partition} (dirichlet-alpha {settings.dirichlet_alpha:g}, "
        f"min-partition-size {settings.min_partition_size}, classes-per-client "
        f"{settings.classes_per_client}) cannot be made for {clients} clients: {hint} is needed "
        f"({error})."
    )


def _divide(
    columns: dict[str, np.ndarray],
    settings: DataSettings,
    clients: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    from superfednas.data.partitioners import Table

    partitioner = _partitioner(settings, clients, rng)
    with _quiet():
        partitioner.dataset = Table.from_dict(columns)
        return [np.sort(partitioner.load_partition(k)["index"]) for k in range(clients)]


def _partitioner(settings: DataSettings, clients: int, rng: np.random.Generator) -> Any:
    from flwr_datasets import partitioner as schemes

    from superfednas.data.partitioners import BalancedDirichletPartitioner

    seed = int(rng.integers(2**31))
    smallest = settings.min_partition_size
    match settings.partition:
        case "iid":
            return schemes.IidPartitioner(clients)
        case "dirichlet":
            return schemes.DirichletPartitioner(
                clients,
                "label",
                settings.dirichlet_alpha,
                min_partition_size=smallest,
                self_balancing=False,  # that variant is balanced-dirichlet
                shuffle=False,
                seed=seed,
            )
        case "balanced-dirichlet":
            return BalancedDirichletPartitioner(
                clients, "label", settings.dirichlet_alpha, smallest, rng
            )
        case "shards":
            return schemes.ShardPartitioner(
                clients, "label", settings.shards_per_client, shuffle=False, seed=seed
            )
        case "pathological":
            return schemes.PathologicalPartitioner(
                clients,
                "label",
                settings.classes_per_client,
                "first-deterministic",
                shuffle=False,
                seed=seed,
            )
        case "natural":
            return schemes.NaturalIdPartitioner("natural")
    raise DataError(f"partition = {settings.partition!r} is not known.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The library warns at each redraw and draws a progress bar for natural ids; whatever matters
    # reaches the user as a DataError.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
