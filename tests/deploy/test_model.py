"""A model of any task: rows by name, prepared as the card says, and what does not fit refused."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superfednas.deploy.device.runtime.answers import answer
from superfednas.deploy.device.runtime.arrays import run_paths
from superfednas.deploy.device.runtime.card import Card
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.deploy.device.runtime.fields import Input, Output
from superfednas.deploy.device.runtime.model import Model

CARD = Card(
    space={"space": "mine:Space"},
    architecture="{}",
    task="mine:Prices",
    inputs={
        "sizes": Input((2,), "float32", low=0, scale=(2.0, 4.0), offset=(1.0, 0.0)),
        "district": Input((1,), "int64", 0, 1, categories=("north", "south")),
    },
    outputs={"price": Output((3,))},
    macs=1,
    params=1,
)


def network(read: Sequence[np.ndarray]) -> np.ndarray:
    """Answer with what was read."""
    sizes, district = read
    assert sizes.dtype == np.float32 and district.dtype == np.int64 and len(sizes)
    return np.concatenate([sizes, district.astype(np.float32)], axis=1)


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "district": rng.integers(2, size=(count, 1)),
        "sizes": rng.random((count, 2)).astype(np.float32),
    }


@given(count=st.integers(0, 5), seed=st.integers(0, 99))
def test_rows_are_prepared_and_answered_by_name(count: int, seed: int) -> None:
    given_rows = rows(count, seed)
    found = Model(CARD, network).run(given_rows)
    assert found.keys() == {"price"} and found["price"].shape == (count, 3)
    sizes = given_rows["sizes"] * np.array([2, 4], np.float32) + np.array([1, 0], np.float32)
    assert np.array_equal(found["price"][:, :2], sizes)
    assert np.array_equal(found["price"][:, 2:], given_rows["district"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sizes": None}, "the network reads sizes, district, not district"),
        ({"colour": np.zeros((2, 1))}, "reads sizes, district, not district, sizes, colour"),
        ({"sizes": np.zeros((2, 2), bool)}, "sizes are bool of shape (2, 2); float32 of shape (N"),
        ({"sizes": np.full((2, 2), np.inf)}, "sizes are float64, of which some are not finite"),
        ({"district": np.array([["north"], ["east"]])}, "district are 'east' somewhere; north, s"),
        ({"sizes": np.full((2, 2), -1, np.float32)}, "from -1 to -1; 0 to inf is allowed"),
        ({"district": np.array([[0], [2]])}, "district are from 0 to 2; 0 to 1 is allowed"),
        ({"district": np.zeros((3, 1), np.int64)}, "rows: 3 of district, 2 of sizes"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    change: dict[str, np.ndarray | None], sentence: str
) -> None:
    wrong = {name: array for name, array in (rows(2) | change).items() if array is not None}
    with pytest.raises(DeployError) as refused:
        Model(CARD, network).run(wrong)
    assert sentence in str(refused.value)


@pytest.mark.parametrize("batch", [1, 2, 3, 10])
def test_files_of_arrays_are_answered_row_by_row(batch: int, tmp_path: Path) -> None:
    model, sizes = Model(CARD, network), (3, 0, 2)
    paths = [tmp_path / f"{number}.npz" for number in range(3)]
    for path, count in zip(paths, sizes, strict=True):
        np.savez(path, **rows(count, count))
    found = list(run_paths(model, paths, batch))
    expected = [model.run(rows(count, count))["price"] for count in sizes]
    assert [(path, row) for path, row, _ in found] == [
        (path, row) for path, count in zip(paths, sizes, strict=True) for row in range(count)
    ]
    assert np.array_equal([answered for *_, answered in found], np.concatenate(expected))


def test_the_cards_task_chooses_how_files_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = tmp_path / "rows.npz", Model(CARD, network)
    np.savez(path, sizes=np.array([[0.5, 0.25]], np.float32), district=np.array([[1]]))
    assert answer(model, [path]) == 0
    assert capsys.readouterr().out == f"{path}\t0\t2\t1\t1\n"
    assert answer(model, [path], as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"path": str(path), "row": 0, "price": [2.0, 1.0, 1.0]}


def test_files_of_numpys_own_types_names_and_targets_are_answered_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = tmp_path / "rows.npz", Model(CARD, network)
    wanted = model.run(rows(3))["price"].tolist()
    names = np.array(["north", "south"])
    for change in (
        {"sizes": rows(3)["sizes"].astype(np.float64)},
        {"district": names[rows(3)["district"]]},
        {"district": rows(3)["district"].astype(np.uint8)},
        {"price": np.zeros(3)},
        {"remarks": np.array([{}, None, 3], object)},  # what nobody reads is never unpickled
    ):
        np.savez(path, **(rows(3) | change))
        assert answer(model, [path], as_json=True) == 0
        said = [json.loads(line)["price"] for line in capsys.readouterr().out.splitlines()]
        assert said == wanted


def test_files_that_are_no_arrays_are_named(tmp_path: Path) -> None:
    path, model = tmp_path / "rows.npz", Model(CARD, network)
    with pytest.raises(DeployError, match=r"rows\.npz: there is no such file"):
        answer(model, [path])
    for content in (b"", b"no arrays", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(DeployError, match=r"rows\.npz: it is no \.npz file of arrays"):
            answer(model, [path])
    np.savez(path, sizes=np.float32(1), district=np.array([[1]]))
    with pytest.raises(DeployError, match=r"rows\.npz: sizes are float32 of shape \(1,\)"):
        answer(model, [path])
    np.savez(path, sizes=np.zeros((1, 2)))
    with pytest.raises(DeployError, match=r"reads sizes, district; the file has sizes$"):
        answer(model, [path])


def test_what_is_no_npz_file_is_one_sentence_without_numpys_advice(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one.npy", "rows.csv", "pickle.npz", "folder")]
    np.save(files[0], np.zeros((2, 2)))
    files[1].write_text("sizes,district\n1,2\n")
    np.savez(files[2], sizes=np.array([{}], object), district=np.array([[1]]))
    files[3].mkdir()
    for path in files:
        with pytest.raises(DeployError) as refused:
            answer(Model(CARD, network), [path])
        said = str(refused.value)
        assert (
            said.startswith(f"{path}: ")
            and "\n" not in said
            and "pickle" not in said[len(str(path)) :]
        )


def test_a_damaged_npz_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez_compressed(
        path, sizes=np.random.default_rng(0).random((50, 2)), district=np.ones((50, 1))
    )
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with contextlib.suppress(DeployError):  # any other error is a traceback on a device
            list(run_paths(Model(CARD, network), [path]))
