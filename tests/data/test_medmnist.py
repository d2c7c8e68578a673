"""MedMNIST: its files' layout, the sets taken by name, and downloads that fail or are damaged."""

import dataclasses
import hashlib
import http.client
import io
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from superfednas.data import DataError, DataSettings, load_dataset
from superfednas.data.images import medmnist

PARTS = ("train", "validation", "test")


def content(classes: int = 2, channels: int = 1, size: int = 28) -> dict[str, np.ndarray]:
    """Give distinct images in MedMNIST's layout: grey without a channel axis, labels (N, 1)."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, rows in (("train", 40), ("val", 10), ("test", 20)):
        shape = (rows, size, size) if channels == 1 else (rows, size, size, channels)
        arrays[f"{part}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(rows, dtype=np.uint8) % classes)[:, None]
    return arrays


def packed(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def save(path: Path, arrays: dict[str, Any]) -> DataSettings:
    path.write_bytes(packed(**arrays))
    return DataSettings(dataset=str(path))


# The layout


@pytest.mark.parametrize("channels", [1, 3])
def test_each_split_is_used_as_given(tmp_path: Path, channels: int) -> None:
    arrays = content(4, channels)
    data = load_dataset(save(tmp_path / "set.npz", arrays))
    assert (data.task.in_channels, data.task.image_size, data.task.classes) == (
        channels,
        28,
        tuple("0123"),
    )
    for part, key in zip(PARTS, ("train", "val", "test"), strict=True):
        split = getattr(data, part)
        images = torch.from_numpy(arrays[f"{key}_images"]).reshape(-1, 28, 28, channels)
        assert torch.equal(split.fields["images"], images.permute(0, 3, 1, 2))
        assert split.targets["labels"].dtype == torch.int64
        assert split.targets["labels"].tolist() == arrays[f"{key}_labels"][:, 0].tolist()


def test_without_validation_one_is_held_out(tmp_path: Path) -> None:
    arrays = {key: value for key, value in content().items() if not key.startswith("val")}
    data = load_dataset(save(tmp_path / "set.npz", arrays))
    assert [len(getattr(data, part)) for part in PARTS] == [36, 4, 20]


def test_plain_labels_names_and_ids(tmp_path: Path) -> None:
    arrays = content() | {"client_train": np.arange(40) // 10, "class_names": np.array(["a", "b"])}
    arrays["train_labels"] = arrays["train_labels"][:, 0]
    data = load_dataset(save(tmp_path / "set.npz", arrays))
    assert data.task.classes == ("a", "b") and data.train.targets["labels"].tolist() == [0, 1] * 20
    assert data.ids is not None and data.ids[-1] == "3"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"train_labels": np.zeros((40, 14), np.uint8)},
            r"train_labels has shape \(40, 14\), several labels an image; one class an image, "
            r"\(N, 1\), is allowed\.$",
        ),
        ({"val_labels": np.zeros((10, 0), np.uint8)}, r"val_labels has shape \(10, 0\)"),
        ({"test_images": None}, "test_images is missing; needed are train_images, train_labels, "),
        ({"val_labels": None}, "val_labels is missing"),
        ({"train_labels": np.zeros((40, 1))}, "train_labels is float64"),
        ({"train_labels": np.zeros((39, 1), np.uint8)}, "has 40 rows and train_labels 39"),
        ({"train_labels": np.ones((40, 1), np.uint8)}, "train_labels holds 1 different labels"),
        ({"test_labels": np.full((20, 1), 2, np.uint8)}, "test_labels runs from 2 to 2; with 2"),
        # a set of volumes
        ({"train_images": np.zeros((40, 28, 28, 28), np.uint8)}, "at most 4 channels is allowed"),
    ],
)
def test_bad_files(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    arrays = {key: value for key, value in (content() | changes).items() if value is not None}
    with pytest.raises(DataError, match=rf"set\.npz: .*{sentence}"):
        load_dataset(save(tmp_path / "set.npz", arrays))


# By name


@pytest.fixture(autouse=True)
def unplugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test reach the network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a test asked for the network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def serve(monkeypatch: pytest.MonkeyPatch, answer: bytes | Exception) -> list[str]:
    """Answer every download so; give the list of the addresses that are asked for."""
    asked = []

    def urlopen(request: urllib.request.Request, timeout: float) -> io.BytesIO:
        assert timeout > 0 and request.get_header("User-agent") == "superfednas"
        asked.append(request.full_url)
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def publish(monkeypatch: pytest.MonkeyPatch, name: str, published: bytes) -> None:
    """Take this for the file whose checksum was published."""
    monkeypatch.setitem(medmnist.MD5, name, hashlib.md5(published).hexdigest())


def named(name: str, cache: Path) -> DataSettings:
    return DataSettings(dataset=name, data_cache=str(cache))


@pytest.mark.parametrize(
    ("name", "classes", "channels", "last"),
    [
        ("pathmnist", 9, 3, "colorectal adenocarcinoma epithelium"),
        ("pneumoniamnist", 2, 1, "pneumonia"),
    ],
)
def test_the_cache_is_read_without_network(
    tmp_path: Path, name: str, classes: int, channels: int, last: str
) -> None:
    save(tmp_path / f"{name}.npz", content(classes, channels))
    data = load_dataset(named(name, tmp_path))
    assert [len(getattr(data, part)) for part in PARTS] == [40, 10, 20]
    assert (data.name, data.task.in_channels) == (name, channels)
    assert data.task.num_classes == classes and data.task.classes[-1] == last
    known = {"pathmnist": (0.5,) * 3, "pneumoniamnist": (0.5719,)}
    assert data.task.mean == known[name]


def test_a_nodes_own_share_may_lack_a_class_and_have_this_projects_layout(tmp_path: Path) -> None:
    theirs, arrays = content(), {}
    for part in ("train", "val", "test"):
        images = theirs[f"{part}_images"]
        arrays |= {f"x_{part}": images, f"y_{part}": np.ones(len(images), np.int64)}
    save(tmp_path / "pneumoniamnist.npz", arrays)
    data = load_dataset(named("pneumoniamnist", tmp_path))
    assert data.task.classes == ("normal", "pneumonia") and set(
        data.train.targets["labels"].tolist()
    ) == {1}


def test_a_damaged_file_in_the_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "pathmnist.npz").write_bytes(packed(**content(9, 3))[:-10])
    with pytest.raises(DataError, match=r"pathmnist\.npz: not a readable \.npz"):
        load_dataset(named("pathmnist", tmp_path))


def test_a_set_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = packed(**content())
    asked = serve(monkeypatch, file)
    publish(monkeypatch, "pneumoniamnist", file)
    chosen = named("pneumoniamnist", tmp_path / "new" / "cache")
    assert len(load_dataset(chosen).validation) == 10
    load_dataset(dataclasses.replace(chosen, train_images=20))
    assert asked == ["https://zenodo.org/records/10519652/files/pneumoniamnist.npz?download=1"]
    assert [path.name for path in (tmp_path / "new" / "cache").iterdir()] == ["pneumoniamnist.npz"]


@pytest.mark.parametrize(
    "fault",
    [
        urllib.error.URLError("no network"),
        urllib.error.HTTPError("", 403, "Forbidden", http.client.HTTPMessage(), None),
        TimeoutError("timed out"),
        http.client.IncompleteRead(b"half"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_failing_download_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    serve(monkeypatch, fault)
    with pytest.raises(DataError, match="'pathmnist' can be neither downloaded") as caught:
        load_dataset(named("pathmnist", tmp_path))
    assert f"({fault}); download https://zenodo.org/records/10519652/" in str(caught.value)
    assert str(caught.value).endswith("put it into that folder as pathmnist.npz.")
    assert not list(tmp_path.iterdir())


class Broken(io.BytesIO):
    """A connection that is lost after the first half."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise ConnectionResetError("connection lost")
        return super().read(100)


def test_a_connection_lost_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Broken(packed(**content())))
    with pytest.raises(DataError, match=r"neither downloaded .*\(connection lost\)"):
        load_dataset(named("pathmnist", tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_download_of_other_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = packed(**content())
    publish(monkeypatch, "pneumoniamnist", file)
    damaged = bytearray(file)
    damaged[len(file) // 2] ^= 1
    for answer in (bytes(damaged), file[:-1], b""):
        serve(monkeypatch, answer)
        found = hashlib.md5(answer).hexdigest()
        with pytest.raises(DataError, match=rf"what was downloaded has MD5 {found}, not \w+\)"):
            load_dataset(named("pneumoniamnist", tmp_path))
        assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"neither downloaded nor read from data-cache = '.*file'"):
        load_dataset(named("pathmnist", tmp_path / "file"))


def test_a_second_process_that_finishes_later_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = packed(**content())
    publish(monkeypatch, "pneumoniamnist", file)
    path = tmp_path / "pneumoniamnist.npz"

    def urlopen(*_: Any, **__: Any) -> io.BytesIO:
        path.write_bytes(file)  # the other process, which was faster
        return io.BytesIO(file)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert len(load_dataset(named("pneumoniamnist", tmp_path)).train) == 40
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == file
