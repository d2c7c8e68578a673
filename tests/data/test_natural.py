"""Natural clients are trained, validated and tested on rows of their own."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.client.data import node_data
from superfednas.data import DataError, DataSettings, load_dataset, partition
from superfednas.data.natural import own_rows
from superfednas.data.splits import Parts, complete
from tests.support.pictures import picture_set, pictured

PARTS = ("train", "validation", "test")


def written(people: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    """Images that say who made them, what they show and which row they are."""
    rows = np.arange(len(people))
    pixels = np.stack([people, labels, rows // 256, rows % 256], axis=1).astype(np.uint8)
    return torch.from_numpy(pixels.reshape(-1, 1, 2, 2))


def makers(images: torch.Tensor) -> set[int]:
    return set(images[:, 0, 0, 0].tolist())


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    given_parts=st.sets(st.sampled_from(("validation", "test"))),
    told=st.booleans(),
    share=st.sampled_from((0.05, 0.1, 0.4)),
    seed=st.integers(0, 99),
)
def test_every_row_of_a_client_is_its_own_and_none_is_in_two_splits(
    sizes: list[int], given_parts: set[str], told: bool, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    people = np.repeat(np.arange(len(sizes)), sizes)
    labels = rng.integers(0, 3, len(people))
    images, names = written(people, labels), people.astype(str)
    held = {part: rng.permutation(len(people))[: rng.integers(1, 9)] for part in given_parts}
    whole = pictured(images, torch.from_numpy(labels))
    parts = Parts(
        whole,
        whole.take(held["validation"]) if "validation" in held else None,
        whole.take(held["test"]) if "test" in held else None,
        ("a", "b", "c"),
        names,
        {part: names[rows] for part, rows in held.items()} if told else {},
    )
    try:
        parts, validation, test = complete("toy", parts, validation=share)
    except DataError:
        return  # too few rows to hold any out
    data = picture_set("toy", parts.train, validation, test, parts.classes, ids=parts.ids)
    data = dataclasses.replace(data, held_ids=parts.held_ids)
    assert data.ids is not None
    for part in {"validation", "test"} - given_parts:  # held out of train: whose rows is known
        made_by = getattr(data, part).fields["images"][:, 0, 0, 0].tolist()
        assert data.held_ids[part].astype(int).tolist() == made_by
    there = np.unique(data.ids)
    chosen = DataSettings(partition="natural", validation_share=share)
    rows = partition(data, chosen, len(there), 0)
    for person, own in zip(there, own_rows(data, rows, share), strict=True):
        left, mine, tested = own
        for images in (data.train.take(left), mine, tested):
            assert makers(images.fields["images"]) <= {int(person)}
        assert len(left) >= 1
        before = int((data.ids == person).sum())
        if set(data.held_ids) == {"validation", "test"}:
            assert len(left) == before
        elif before >= 3 and not data.held_ids:
            assert len(left) + len(mine) + len(tested) == before and len(mine) and len(tested)
    for part in data.held_ids:
        place = PARTS.index(part)
        found = sum(len(own[place]) for own in own_rows(data, rows, share))
        assert found == np.isin(data.held_ids[part], there).sum()


def saved(folder: Path, **more: np.ndarray) -> DataSettings:
    people = np.repeat(np.arange(4), 20)
    labels = np.arange(80) % 2
    content = {"x_train": written(people, labels)[:, 0].numpy(), "y_train": labels}
    content |= {"x_test": content["x_train"][::5], "y_test": labels[::5], "client_train": people}
    np.savez(folder / "w.npz", **content | more)
    return DataSettings(dataset=str(folder / "w.npz"), partition="natural")


@pytest.mark.parametrize("told", [True, False])
def test_a_node_has_one_person_s_rows_alone(tmp_path: Path, told: bool) -> None:
    more = {"client_test": np.repeat(np.arange(4), 20)[::5]} if told else {}
    chosen = saved(tmp_path, **more)
    for k in range(4):
        data = node_data({"partition-id": k, "num-partitions": 4}, chosen, 3)
        assert makers(data.train.fields["images"]) == makers(data.test.fields["images"]) == {k}
        assert makers(data.validation.fields["images"]) <= {k}
        assert len(data.test) == (4 if told else 2)
        assert data.ids is None and not data.held_ids


def test_ids_of_bytes_are_those_of_texts(tmp_path: Path) -> None:
    names = np.array(["añ", "b", "c", "d"])
    people = np.repeat(np.arange(4), 20)
    as_bytes = np.char.encode(names, "utf-8")[people]
    for ids in (names[people], as_bytes):
        found = load_dataset(saved(tmp_path, client_train=ids))
        load_dataset.cache_clear()
        assert found.ids is not None and set(found.ids) == set(names)


@pytest.mark.parametrize("key", ["client_train", "client_test"])
def test_ids_that_are_not_one_a_row_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match=key):
        load_dataset(saved(tmp_path, **{key: np.arange(3)}))
