"""Partitions: laws for every scheme, the balanced rule, and a sentence for each impossible one."""

import dataclasses
import re
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.data import DataError, Dataset, DataSettings, Split, partition, partition_like
from tests.support.pictures import picture_set, pictured

COVERING = ("iid", "dirichlet", "balanced-dirichlet")
SCHEMES = (*COVERING, "shards", "pathological", "natural")


def labelled(labels: np.ndarray, ids: np.ndarray | None = None) -> Dataset:
    """Give a data set of one-pixel images with these training labels."""

    def split(values: np.ndarray) -> Split:
        images = torch.zeros(len(values), 1, 1, 1, dtype=torch.uint8)
        return pictured(images, torch.from_numpy(values.astype(np.int64)))

    names = tuple(str(k) for k in range(int(labels.max()) + 1))
    small = split(labels[:1])
    return picture_set("toy", split(labels), small, small, names, ids=ids)


def sorted_task(classes: int = 10, each: int = 100, people: int = 8) -> Dataset:
    """Give a task sorted by class, the order in which naive divisions go wrong."""
    rows = classes * each
    ids = np.array([f"p{k % people}" for k in range(rows)])
    return labelled(np.repeat(np.arange(classes), each), ids)


@settings(max_examples=25, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    clients=st.integers(1, 8),
    seed=st.integers(0, 2**31),
    alpha=st.floats(0.3, 100),
)
def test_disjoint_sorted_in_range_and_repeatable(
    scheme: str, clients: int, seed: int, alpha: float
) -> None:
    task = sorted_task()
    chosen = DataSettings(partition=scheme, dirichlet_alpha=alpha, min_partition_size=3)
    parts = partition(task, chosen, clients, seed)
    assert len(parts) == clients
    rows = np.concatenate(parts)
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0 and rows.max() < len(task.train)
    for part in parts:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all() and len(part) >= 3
    if scheme in COVERING:
        assert len(rows) == len(task.train)
    again = partition(task, chosen, clients, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "natural"])
def test_another_seed_is_another_partition(scheme: str) -> None:
    task, chosen = sorted_task(), DataSettings(partition=scheme)
    first, second = (partition(task, chosen, 4, seed) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    for scheme in SCHEMES:
        partition(sorted_task(), DataSettings(partition=scheme), 4, 0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]


def test_iid_clients_hold_every_class_although_rows_are_sorted() -> None:
    task = sorted_task()
    for part in partition(task, DataSettings(partition="iid"), 5, 0):
        assert len(part) == 200
        assert len(np.unique(task.train.targets["labels"].numpy()[part])) == 10


def test_alpha_orders_the_skew() -> None:
    task = sorted_task(each=400)

    def skew(scheme: str, alpha: float) -> float:
        chosen = DataSettings(partition=scheme, dirichlet_alpha=alpha)
        labels = task.train.targets["labels"].numpy()
        parts = partition(task, chosen, 8, 0)
        return float(np.mean([np.bincount(labels[p], minlength=10).max() / len(p) for p in parts]))

    for scheme in ("dirichlet", "balanced-dirichlet"):
        assert skew(scheme, 100) < 0.16 < 0.3 < skew(scheme, 0.1)


def balanced_oracle(
    labels: np.ndarray, clients: int, alpha: float, least: int, rng: np.random.Generator
) -> list[list[int]]:
    """Follow the rule of the paper with lists, one client after another."""
    while True:
        parts: list[list[int]] = [[] for _ in range(clients)]
        for k in np.unique(labels):
            rows = [int(row) for row in np.flatnonzero(labels == k)]
            shares = rng.dirichlet(np.full(clients, alpha))
            for client in range(clients):
                if len(parts[client]) >= len(labels) / clients:
                    shares[client] = 0
            shares = shares / shares.sum()
            last = max(client for client in range(clients) if shares[client])
            cuts = [int(cut) for cut in (np.cumsum(shares) * len(rows))[:-1]]
            cuts[last:] = [len(rows)] * (
                clients - 1 - last
            )  # what rounding lost is not a full one's
            for client, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True)):
                parts[client] += rows[start:end]
        if min(len(part) for part in parts) >= least:
            return parts


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_balanced_dirichlet_agrees_with_the_plain_rule(alpha: float) -> None:
    from superfednas.data.partitioners import BalancedDirichletPartitioner, Table

    labels = np.random.default_rng(7).integers(0, 10, 2000)
    expected = balanced_oracle(labels, 7, alpha, 20, np.random.default_rng(5))
    ours = BalancedDirichletPartitioner(7, "label", alpha, 20, np.random.default_rng(5))
    ours.dataset = Table.from_dict({"label": labels, "index": np.arange(2000)})
    assert ours.num_partitions == 7
    for client, rows in enumerate(expected):
        assert ours.load_partition(client)["index"].tolist() == sorted(rows)


def test_balanced_clients_stop_at_their_share_plus_one_class() -> None:
    chosen = DataSettings(partition="balanced-dirichlet", dirichlet_alpha=0.1)
    sizes = [len(p) for p in partition(sorted_task(), chosen, 10, 0)]
    assert max(sizes) < 1000 / 10 + 100


def test_shards_hold_few_classes_and_drop_less_than_one_row_a_shard() -> None:
    task = sorted_task(each=101)
    parts = partition(task, DataSettings(partition="shards"), 8, 0)
    assert {len(part) for part in parts} == {2 * (1010 // 16)}
    assert all(len(np.unique(task.train.targets["labels"].numpy()[part])) <= 4 for part in parts)


def test_pathological_clients_hold_exactly_so_many_classes() -> None:
    task = sorted_task()
    chosen = DataSettings(partition="pathological", classes_per_client=3)
    parts = partition(task, chosen, 12, 0)
    assert all(len(np.unique(task.train.targets["labels"].numpy()[part])) == 3 for part in parts)
    assert sum(map(len, parts)) == 1000


def test_natural_takes_the_first_ids_in_sorted_order() -> None:
    task = sorted_task(people=6)
    parts = partition(task, DataSettings(partition="natural"), 4, 0)
    assert task.ids is not None
    assert [set(task.ids[part]) for part in parts] == [{f"p{k}"} for k in range(4)]
    for k, part in enumerate(parts):
        assert len(part) == np.count_nonzero(task.ids == f"p{k}")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_silent_and_fast(scheme: str, capfd: pytest.CaptureFixture[str]) -> None:
    partition(sorted_task(), DataSettings(partition=scheme), 2, 0)  # imports
    task = sorted_task(each=5000, people=20)
    capfd.readouterr()
    start = time.perf_counter()
    partition(task, DataSettings(partition=scheme), 20, 0)
    elapsed = time.perf_counter() - start
    assert capfd.readouterr() == ("", "")
    assert elapsed < 1  # about 0.05 s on an idle core; loose, for busy machines


IMPOSSIBLE = [
    ({}, 0, "clients = 0: at least 1 client"),
    ({}, 2000, "min-partition-size = 10: 2000 clients would need 20000 .* at most 100 clients"),
    ({"min_partition_size": 300}, 4, "min-partition-size = 300: .* at most 250, or"),
    (
        {"dirichlet_alpha": 1e-3, "min_partition_size": 90},
        10,
        r"partition = dirichlet \(dirichlet-alpha 0.001, min-partition-size 90.*for 10 clients",
    ),
    (
        {"partition": "balanced-dirichlet", "min_partition_size": 100},
        10,
        "partition = balanced-dirichlet .* larger dirichlet-alpha.*none of 1000 draws",
    ),
    (
        {"partition": "balanced-dirichlet", "dirichlet_alpha": 1e-300},
        90,
        "partition = balanced-dirichlet",
    ),
    ({"dirichlet_alpha": 1e-300}, 90, r"partition = dirichlet \(dirichlet-alpha 1e-300"),
    (
        {"partition": "shards", "shards_per_client": 200},
        10,
        "shards-per-client = 200: 10 clients would need 2000 shards .* at most 100 is allowed",
    ),
    (
        {"partition": "shards", "shards_per_client": 1, "min_partition_size": 200},
        5,
        None,
    ),
    (
        {"partition": "pathological", "classes_per_client": 11},
        4,
        "classes-per-client = 11: .* have 10 classes; at most 10",
    ),
    (
        {"partition": "pathological", "classes_per_client": 9, "min_partition_size": 1},
        900,
        "partition = pathological .* smaller classes-per-client is needed",
    ),
    (
        {"partition": "pathological", "classes_per_client": 1, "min_partition_size": 60},
        11,
        "min-partition-size = 60: partition = pathological among 11 clients leaves one with 50",
    ),
    ({"partition": "natural"}, 9, "clients = 9: toy has 8 natural clients; at most 8"),
]


@pytest.mark.parametrize(("changes", "clients", "sentence"), IMPOSSIBLE)
def test_impossible_partitions_end_in_a_sentence(
    changes: dict[str, object], clients: int, sentence: str | None
) -> None:
    chosen = dataclasses.replace(DataSettings(), **changes)  # type: ignore[arg-type]
    if sentence is None:  # the boundary itself is possible
        assert len(partition(sorted_task(), chosen, clients, 0)) == clients
        return
    with pytest.raises(DataError, match=re.compile(sentence, re.S)):
        partition(sorted_task(), chosen, clients, 0)


def test_natural_without_ids() -> None:
    with pytest.raises(DataError, match="natural-id = 'client': toy has no such ids"):
        partition(labelled(np.arange(5)), DataSettings(partition="natural"), 1, 0)


def test_unknown_scheme() -> None:
    with pytest.raises(DataError, match="partition = 'zipf' is not known"):
        partition(sorted_task(), DataSettings(partition="zipf"), 2, 0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    classes=st.integers(1, 6),
    clients=st.integers(1, 9),
    rows=st.integers(1, 120),
)
def test_like_gives_each_client_its_training_share(
    seed: int, classes: int, clients: int, rows: int
) -> None:
    rng = np.random.default_rng(seed)
    train, others = rng.integers(0, classes, 200), rng.integers(0, classes, rows)
    owners = rng.integers(0, clients + 1, 200)  # one owner more: rows that were dropped
    parts = [np.flatnonzero(owners == client) for client in range(clients)]
    split = partition_like(torch.from_numpy(others), torch.from_numpy(train), parts, seed)
    given_out = np.concatenate(split)
    assert len(split) == clients and len(np.unique(given_out)) == len(given_out)
    for k in range(classes):
        held = [np.count_nonzero(train[part] == k) for part in parts]
        size = np.count_nonzero(others == k)
        got = [np.count_nonzero(others[part] == k) for part in split]
        assert sum(got) == (size if sum(held) else 0)
        for mine, whole in zip(held, got, strict=True):
            assert abs(whole - size * mine / max(1, sum(held))) <= 1
            assert mine or not whole
    again = partition_like(others, train, parts, seed)
    assert all(np.array_equal(a, b) for a, b in zip(split, again, strict=True))


def test_like_does_not_favour_the_first_clients() -> None:
    labels = np.repeat(np.arange(10), 100)
    parts = partition(labelled(labels), DataSettings(partition="iid"), 50, 0)
    sizes = [len(p) for p in partition_like(np.repeat(np.arange(10), 10), labels, parts, 0)]
    assert sum(sizes) == 100 and max(sizes) <= 7
