"""Sources: what each gives, that splits are fixed, stratified and disjoint, and every bad input."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from superfednas.common.settings import SettingsError, flatten, parse
from superfednas.data import DataError, Dataset, DataSettings, Split, load_dataset
from superfednas.data.images.decode import square
from superfednas.data.splits import stratified
from superfednas.tasks.images import Images
from tests.support.pictures import pictured

PARTS = ("train", "validation", "test")


def rows_of(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.fields["images"]}


def check_disjoint(data: Dataset, total: int) -> None:
    """Check that splits of ``total`` distinct images share none."""
    assert sum(len(rows_of(getattr(data, part))) for part in PARTS) == total
    assert len(set.union(*(rows_of(getattr(data, part)) for part in PARTS))) == total


def arrays(rows: int = 200, classes: int = 4, size: int = 6) -> dict[str, np.ndarray]:
    """Give distinct images sorted by class, the order in which a naive split loses classes."""
    rng = np.random.default_rng(0)
    test = rows // 4
    return {
        "x_train": rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8),
        "y_train": np.sort(np.arange(rows) % classes),
        "x_test": rng.integers(0, 256, (test, size, size, 3), dtype=np.uint8),
        "y_test": np.sort(np.arange(test) % classes),
    }


def save(folder: Path, content: dict[str, Any]) -> DataSettings:
    path = folder / "set.npz"
    np.savez(path, **content)
    return DataSettings(dataset=str(path))


# Settings


def test_settings_round_trip_and_bounds() -> None:
    assert parse(DataSettings, flatten(DataSettings())) == DataSettings()
    assert parse(DataSettings, {"train-images": 7}).train_images == 7
    for key, value in (
        ("partition", "zipf"),
        ("dirichlet-alpha", 0.0),
        ("validation-share", 0.6),
        ("min-partition-size", 0),
        ("resize", -1),
    ):
        with pytest.raises(SettingsError, match=f"{key} = "):
            parse(DataSettings, {key: value})


@pytest.mark.slow
def test_importing_data_loads_no_reader() -> None:
    readers = ("torchvision", "sklearn", "datasets", "flwr_datasets", "PIL", "flwr")
    code = f"import sys, data; print([m for m in {readers} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# The stratified draw


@hypothesis_settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=80), share=st.floats(0, 1))
def test_stratified_is_exact_and_near_each_share(labels: list[int], share: float) -> None:
    values = np.array(labels)
    count = int(share * len(values))
    drawn = stratified(values, count, "test")
    assert len(drawn) == len(set(drawn.tolist())) == count
    for k in np.unique(values):
        expected = np.count_nonzero(values == k) * count / len(values)
        assert abs(np.count_nonzero(values[drawn] == k) - expected) < 1
    assert np.array_equal(drawn, stratified(values, count, "test"))


# Digits


def test_digits() -> None:
    data = load_dataset(DataSettings())
    assert [len(getattr(data, part)) for part in PARTS] == [1257, 180, 360]
    assert (data.task.num_classes, data.task.in_channels, data.task.image_size) == (10, 1, 8)
    assert (
        data.train.fields["images"].dtype == torch.uint8
        and data.train.fields["images"].is_contiguous()
    )
    assert int(data.train.fields["images"].max()) == 255
    check_disjoint(data, 1797)
    for part in PARTS:
        counts = torch.bincount(getattr(data, part).targets["labels"], minlength=10)
        assert counts.max() - counts.min() <= counts.max() * 0.15
    pixels = data.train.fields["images"].double() / 255
    assert data.task.mean[0] == pytest.approx(float(pixels.mean()), abs=5e-5)
    assert data.task.std[0] == pytest.approx(float(pixels.std(correction=0)), abs=5e-5)


def test_a_process_loads_once() -> None:
    assert load_dataset(DataSettings()) is load_dataset(DataSettings())


def test_train_images_samples_train_only() -> None:
    full, some = load_dataset(DataSettings()), load_dataset(DataSettings(train_images=100))
    assert len(some.train) == 100 and rows_of(some.train) < rows_of(full.train)
    assert torch.bincount(some.train.targets["labels"]).min() >= 9
    assert torch.equal(some.validation.fields["images"], full.validation.fields["images"])
    with pytest.raises(DataError, match=r"train-images = 1258: digits has 1257 .* to 1257"):
        load_dataset(DataSettings(train_images=1258))


def test_resize_applies_to_every_source() -> None:
    data = load_dataset(DataSettings(resize=16))
    assert data.task.image_size == 16


def test_square_crops_the_centre_of_the_longer_side() -> None:
    wide = torch.zeros(1, 1, 4, 12, dtype=torch.uint8)
    wide[..., 4:8] = 200
    assert torch.equal(square(wide, 4), torch.full((1, 1, 4, 4), 200, dtype=torch.uint8))
    assert square(wide, 0) is wide
    assert square(wide, 7).shape == (1, 1, 7, 7)


# Pixel constants


def test_pixel_constants_are_given_known_or_default(tmp_path: Path) -> None:
    chosen = save(tmp_path, arrays())
    task = load_dataset(chosen).task
    assert task.mean == (0.5,) * 3 and task.std == (0.25,) * 3
    own = dataclasses.replace(chosen, pixel_mean=".1,.2,.3", pixel_std="0.4")
    task = load_dataset(own).task
    assert task.mean == (0.1, 0.2, 0.3) and task.std == (0.4,) * 3


@pytest.mark.parametrize(
    ("key", "text"),
    [("mean", "a"), ("mean", ".1,.2"), ("mean", "nan"), ("std", "0"), ("std", "inf"), ("std", ",")],
)
def test_bad_pixel_constants(key: str, text: str) -> None:
    chosen = DataSettings(**{f"pixel_{key}": text})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"pixel-{key} = '{text}': a comma list of 1 numbers"):
        load_dataset(chosen)


# npz


def test_npz_sorted_by_class_gives_a_stratified_disjoint_validation(tmp_path: Path) -> None:
    data = load_dataset(save(tmp_path, arrays()))
    assert [len(getattr(data, part)) for part in PARTS] == [180, 20, 50]
    assert torch.bincount(data.validation.targets["labels"]).tolist() == [5] * 4
    assert torch.bincount(data.train.targets["labels"]).tolist() == [45] * 4
    check_disjoint(data, 250)
    assert data.task.classes == ("0", "1", "2", "3")


def test_npz_keeps_its_own_validation_and_names_and_ids(tmp_path: Path) -> None:
    content = arrays()
    content |= {"x_val": content["x_test"], "y_val": content["y_test"]}
    content |= {"class_names": np.array(list("abcde")), "client_train": np.arange(200) // 50}
    data = load_dataset(save(tmp_path, content))
    assert [len(getattr(data, part)) for part in PARTS] == [200, 50, 50]
    assert data.task.classes == tuple("abcde")
    assert data.ids is not None and data.ids[-1] == "3"


def test_npz_class_names_of_bytes_are_those_of_texts(tmp_path: Path) -> None:
    names = ["chat", "chien", "hibou", "élan"]
    content = arrays() | {"class_names": np.array([name.encode() for name in names])}
    assert load_dataset(save(tmp_path, content)).task.classes == tuple(names)


@pytest.mark.parametrize(
    "names", [[b"a", b"b", b"c", b"\xff"], ["a", "b", "c", "a"]], ids=["no UTF-8", "twice"]
)
def test_npz_class_names_that_cannot_be_told_apart_or_read(names: list, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class_names"):
        load_dataset(save(tmp_path, arrays() | {"class_names": np.array(names)}))


def test_npz_ids_follow_their_rows(tmp_path: Path) -> None:
    content = arrays()
    content["hand_train"] = np.array([f"{image[0, 0]}" for image in content["x_train"]])
    chosen = dataclasses.replace(save(tmp_path, content), natural_id="hand", train_images=60)
    data = load_dataset(chosen)
    assert data.ids is not None and len(data.ids) == 60
    for image, who in zip(data.train.fields["images"], data.ids, strict=True):
        assert who == f"{image[:, 0, 0].numpy()}"


def test_npz_floats_and_grey(tmp_path: Path) -> None:
    content = arrays()
    grey = content | {"x_train": content["x_train"][..., 0], "x_test": content["x_test"][..., 0]}
    scaled = {k: v / np.float32(255) if k[0] == "x" else v for k, v in grey.items()}
    (tmp_path / "floats").mkdir()
    first, second = (
        load_dataset(save(folder, values))
        for folder, values in ((tmp_path, grey), (tmp_path / "floats", scaled))
    )
    assert first.task.in_channels == 1
    assert torch.equal(first.train.fields["images"], second.train.fields["images"])


def changed(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = arrays() | changes
    return {key: value for key, value in content.items() if value is not None}


BAD_ARRAYS = [
    (changed(y_test=None), "y_test is missing; needed are x_train, y_train, x_test, y_test"),
    (changed(x_val=arrays()["x_test"]), "y_val is missing"),
    (changed(x_train=arrays()["x_train"].astype(np.int32)), "x_train is int32; uint8, or floats"),
    (changed(x_train=arrays()["x_train"] * 1.0), r"x_train holds floats from 0 to 255; \[0, 1\]"),
    (changed(x_train=arrays()["x_train"] * np.nan), "x_train holds floats from nan"),
    (changed(x_train=np.zeros((200, 3), np.uint8)), r"x_train has shape \(200, 3\); \(N, H, W\)"),
    (changed(x_train=np.zeros((200, 3, 6, 6), np.uint8)), "at most 4 channels"),
    (changed(x_train=np.zeros((200, 6, 5), np.uint8)), "6 x 5 pixels; they must be square"),
    (changed(x_train=np.zeros((0, 6, 6), np.uint8)), "at least one image is needed"),
    (
        changed(x_val=np.zeros((0, 6, 6), np.uint8), y_val=np.zeros(0, np.int64)),
        "x_val has shape .*at least one image is needed",
    ),
    (changed(y_train=np.zeros(199, np.int64)), "x_train has 200 rows and y_train 199"),
    (changed(y_train=np.zeros((200, 1), np.int64)), r"y_train is int64 of shape \(200, 1\)"),
    (changed(y_train=np.zeros(200)), "y_train is float64"),
    (changed(y_train=arrays()["y_train"] + 1), "4 different labels from 1 to 4; 0 to 3 with none"),
    (changed(y_train=arrays()["y_train"] * 2), "4 different labels from 0 to 6; 0 to 3 with none"),
    (changed(y_test=arrays()["y_test"] + 1), "y_test runs from 1 to 4; with 4 classes 0 to 3"),
    (changed(y_test=arrays()["y_test"] - 1), "y_test runs from -1 to 2; with 4 classes 0 to 3"),
    (changed(class_names=np.array(["a", "b"])), "y_train runs from 0 to 3; with 2 classes 0 to 1"),
    (changed(client_train=np.arange(3)), None),
    (changed(y_train=np.array([None] * 200)), "not a readable .npz of plain arrays"),
    (changed(x_test=arrays()["x_test"][..., 0]), r"test images have shape \(1, 6, 6\)"),
]


@pytest.mark.parametrize(("content", "sentence"), BAD_ARRAYS)
def test_bad_npz(content: dict[str, Any], sentence: str | None, tmp_path: Path) -> None:
    sentence = sentence or r"client_train has shape \(3,\); one id a row, \(200,\)"
    with pytest.raises(DataError, match=sentence) as caught:
        load_dataset(save(tmp_path, content))
    assert "set.npz" in str(caught.value)


def test_npz_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    content = arrays(8)
    content |= {"x_train": content["x_train"][:1], "y_train": content["y_train"][:1]}
    content |= {"y_test": content["y_test"] * 0}
    with pytest.raises(DataError, match="train holds 1 images; more than 1 are needed to hold out"):
        load_dataset(save(tmp_path, content))


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    chosen = DataSettings(dataset=str(path))
    with pytest.raises(DataError, match=r"set.npz': there is no such file"):
        load_dataset(chosen)
    save(tmp_path, arrays())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    for damaged in (b"", b"hello", whole[: len(whole) // 2], whole[:-10], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"set\.npz: not a readable \.npz"):
            load_dataset(chosen)
    with path.open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(DataError, match=r"set\.npz: not a readable \.npz"):
        load_dataset(chosen)


# Folders of images


def draw_images(
    folder: Path, classes: str = "ab", each: int = 10, mode: str = "RGB", size: int = 5
) -> None:
    rng = np.random.default_rng(list(folder.name.encode()))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for k in range(each):
            shape = (size, size) if mode == "L" else (size, size, 3)
            picture = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
            picture.save(folder / name / f"{k}.png")


def test_folder_of_classes_is_split_80_10_10(tmp_path: Path) -> None:
    draw_images(tmp_path, each=50)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    data = load_dataset(DataSettings(dataset=str(tmp_path)))
    assert [len(getattr(data, part)) for part in PARTS] == [80, 10, 10]
    assert torch.bincount(data.test.targets["labels"]).tolist() == [5, 5]
    assert data.task.classes == ("a", "b") and data.task.in_channels == 3
    check_disjoint(data, 100)


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev", None])
def test_folder_with_splits(tmp_path: Path, validation: str | None) -> None:
    draw_images(tmp_path / "train", mode="L")
    draw_images(tmp_path / "test", each=3, mode="L")
    (tmp_path / "train" / "c").mkdir()  # a class this node has no image of
    if validation:
        draw_images(tmp_path / validation, each=2, mode="L")
    data = load_dataset(DataSettings(dataset=str(tmp_path)))
    sizes = [20, 4, 6] if validation else [18, 2, 6]
    assert [len(getattr(data, part)) for part in PARTS] == sizes
    assert data.task.in_channels == 1 and data.task.classes == ("a", "b", "c")


def test_images_lie_as_deep_as_they_like_and_what_is_not_read_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_images(tmp_path, each=8)
    draw_images(tmp_path / "b" / "monday", "xy", each=4)
    (tmp_path / "b" / "monday" / "y" / "loop").symlink_to(tmp_path / "b")
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "0.JFIF")
    (tmp_path / "a" / "1.heic").write_bytes(b"not read")
    (tmp_path / "a" / "read me\x1b[2J.txt").write_text("nor this")
    (tmp_path / ".DS_Store").write_text("hidden")
    (tmp_path / "c").mkdir()
    data = load_dataset(DataSettings(dataset=str(tmp_path), validation_share=0.125))
    assert sum(len(getattr(data, part)) for part in PARTS) == 24
    assert torch.bincount(data.train.targets["labels"], minlength=3)[2] == 0
    said = capsys.readouterr().err
    assert "3 files" in said and "1.heic" in said and "class c" in said
    assert "DS_Store" not in said and "\x1b" not in said


def test_a_folder_beside_the_splits_is_said_and_two_validations_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "test", "val", "holdout"):
        draw_images(tmp_path / name, each=3)
    load_dataset(DataSettings(dataset=str(tmp_path)))
    assert "holdout" in capsys.readouterr().err
    (tmp_path / "valid").mkdir()
    with pytest.raises(DataError, match="val and valid"):
        load_dataset(DataSettings(dataset=str(tmp_path), validation_share=0.2))


def test_one_colour_image_makes_all_rgb(tmp_path: Path) -> None:
    draw_images(tmp_path / "train", mode="L")
    draw_images(tmp_path / "test", each=3)
    data = load_dataset(DataSettings(dataset=str(tmp_path)))
    assert data.task.in_channels == 3
    assert torch.equal(data.train.fields["images"][:, 0], data.train.fields["images"][:, 2])


def test_folder_pixels_are_those_of_the_files(tmp_path: Path) -> None:
    draw_images(tmp_path / "train")
    draw_images(tmp_path / "test")
    data = load_dataset(DataSettings(dataset=str(tmp_path)))
    first = np.array(Image.open(tmp_path / "test" / "a" / "0.png"))
    assert np.array_equal(data.test.fields["images"][0].permute(1, 2, 0).numpy(), first)


def test_folder_of_other_sizes_needs_resize(tmp_path: Path) -> None:
    draw_images(tmp_path)
    Image.new("RGB", (9, 4)).save(tmp_path / "a" / "wide.png")
    chosen = DataSettings(dataset=str(tmp_path))
    with pytest.raises(DataError, match="images are 4 x 9, 5 x 5 pixels; set resize"):
        load_dataset(chosen)
    assert load_dataset(dataclasses.replace(chosen, resize=4)).task.image_size == 4


def test_bad_folders(tmp_path: Path) -> None:
    chosen = DataSettings(dataset=str(tmp_path))
    with pytest.raises(DataError, match="no folder in it; one folder of images a class"):
        load_dataset(chosen)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"no images in its class folders; files ending .*\.png"):
        load_dataset(chosen)
    (tmp_path / "a" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"0\.png: the image cannot be read"):
        load_dataset(chosen)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a" / "0.png")
    whole = (tmp_path / "a" / "0.png").read_bytes()
    (tmp_path / "a" / "0.png").write_bytes(whole[:60])
    with pytest.raises(DataError, match=r"0\.png: the image cannot be read"):
        load_dataset(chosen)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a" / "0.png")
    with pytest.raises(DataError, match=r"0\.png: pixels are of mode I;16; 8-bit images"):
        load_dataset(chosen)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="a folder train but no folder test"):
        load_dataset(chosen)
    draw_images(tmp_path / "test", "abz")
    (tmp_path / "train").rmdir()
    draw_images(tmp_path / "train", "ab")
    with pytest.raises(DataError, match="class 'z' is not one of train's: a, b"):
        load_dataset(chosen)


# Hugging Face


def hub_set(rows: int, **columns: list[Any]) -> Any:
    """Give an in-memory set of distinct grey images with an Image and a ClassLabel column."""
    import datasets

    rng = np.random.default_rng(rows)
    pictures = [Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)) for _ in range(rows)]
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "coarse": datasets.ClassLabel(names=["x", "y"]),
            "fine": datasets.ClassLabel(names=["p", "q", "r"]),
            **{key: datasets.Value("string") for key in columns},
        }
    )
    content = {"img": pictures, "coarse": [k % 2 for k in range(rows)], **columns}
    content["fine"] = content.pop("fine", sorted(k % 3 for k in range(rows)))
    return datasets.Dataset.from_dict(content, features=features)


def save_hub(splits: dict[str, Any], folder: Path) -> DataSettings:
    import datasets

    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return DataSettings(dataset=f"hf:{folder}", data_cache=str(folder / "cache"), natural_id="who")


def test_saved_hub_set_takes_the_finest_labels_and_ids(tmp_path: Path) -> None:
    who = [f"w{k // 10}" for k in range(30)]
    chosen = save_hub({"train": hub_set(30, who=who), "test": hub_set(12)}, tmp_path)
    data = load_dataset(chosen)
    assert [len(getattr(data, part)) for part in PARTS] == [27, 3, 12]
    assert data.task.classes == ("p", "q", "r") and data.task.in_channels == 1
    assert torch.bincount(data.validation.targets["labels"]).tolist() == [1, 1, 1]
    assert data.ids is not None and set(data.ids) == {"w0", "w1", "w2"}
    # ids w0, w1, w2 and sorted labels coincide in this set, so they must still do so in the splits
    assert [int(name[1]) for name in data.ids] == data.train.targets["labels"].tolist()
    check_disjoint(data, 42)


def test_hub_set_without_test_or_with_hidden_answers_holds_one_out(tmp_path: Path) -> None:
    hidden = hub_set(12).map(lambda row: row | {"fine": -1})
    for name, splits in (
        ("none", {"train": hub_set(30), "valid": hub_set(6)}),
        ("hidden", {"train": hub_set(30), "valid": hub_set(6), "test": hidden}),
    ):
        data = load_dataset(save_hub(splits, tmp_path / name))
        assert [len(getattr(data, part)) for part in PARTS] == [27, 6, 3]


def test_local_imagefolder_through_the_hub_library(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    draw_images(tmp_path / "set" / "train")
    draw_images(tmp_path / "set" / "test", each=2)
    chosen = DataSettings(dataset=f"hf:{tmp_path / 'set'}", data_cache=str(tmp_path / "cache"))
    data = load_dataset(chosen)
    assert [len(getattr(data, part)) for part in PARTS] == [18, 2, 4]
    assert data.task.classes == ("a", "b") and data.task.image_size == 5
    assert "generating" not in capfd.readouterr().err.lower()


def test_bad_hub_sets(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    chosen = DataSettings(dataset=f"hf:{tmp_path / 'empty'}", data_cache=str(tmp_path))
    with pytest.raises(DataError, match=r"hf:.*empty cannot be loaded \(.*name of an image set"):
        load_dataset(chosen)
    for name, splits, sentence in (
        ("only", {"test": hub_set(6)}, "splits are test; one named train is needed"),
        (
            "blind",
            {"train": hub_set(6).remove_columns("img")},
            "columns are coarse, fine; one of type Image",
        ),
        (
            "mute",
            {"train": hub_set(6).remove_columns(["fine", "coarse"])},
            "columns are img; one of type Image and one of type ClassLabel",
        ),
    ):
        with pytest.raises(DataError, match=sentence):
            load_dataset(save_hub(splits, tmp_path / name))


# CIFAR, without a download


class FakeCifar:
    """Stands in for ``torchvision.datasets.CIFAR10``; ``download`` makes the folder."""

    downloads = 0
    fault: Exception | None = None
    classes = tuple("abcdefghij")

    def __init__(self, root: str, train: bool, download: bool) -> None:
        folder = Path(root) / "cifar-10-batches-py"
        if download:
            type(self).downloads += 1
            if self.fault:
                raise self.fault
            folder.mkdir()
        assert folder.is_dir()
        rows = 100 if train else 20
        self.data = np.random.default_rng(rows).integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
        self.targets = [k * 10 // rows for k in range(rows)]


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> type[FakeCifar]:
    fake = type("Fake", (FakeCifar,), {"downloads": 0, "fault": None})
    monkeypatch.setitem(
        sys.modules, "torchvision", SimpleNamespace(datasets=SimpleNamespace(CIFAR10=fake))
    )
    monkeypatch.setitem(sys.modules, "torchvision.datasets", SimpleNamespace(CIFAR10=fake))
    return fake


def test_cifar_downloads_once_and_holds_out_validation(
    cifar: type[FakeCifar], tmp_path: Path
) -> None:
    chosen = DataSettings(dataset="cifar10", data_cache=str(tmp_path / "new"))
    data = load_dataset(chosen)
    assert [len(getattr(data, part)) for part in PARTS] == [90, 10, 20]
    assert torch.bincount(data.validation.targets["labels"]).tolist() == [1] * 10
    assert data.task.mean == (0.4914, 0.4822, 0.4465) and data.task.std == (0.2470, 0.2435, 0.2616)
    assert (data.task.in_channels, data.task.image_size) == (3, 32)
    load_dataset(dataclasses.replace(chosen, train_images=50))
    assert cifar.downloads == 1
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["cifar-10-batches-py"]


@pytest.mark.parametrize("fault", [OSError("no network"), RuntimeError("bad checksum")])
def test_cifar_without_network(cifar: type[FakeCifar], tmp_path: Path, fault: Exception) -> None:
    cifar.fault = fault
    with pytest.raises(DataError, match=rf"neither downloaded .*\({fault}\); give a local .npz"):
        load_dataset(DataSettings(dataset="cifar10", data_cache=str(tmp_path)))
    assert not list(tmp_path.iterdir())


# One's own function, and names that mean nothing


def own(settings: DataSettings) -> Any:
    """Stand for a user's function."""
    return "not a data set" if settings.train_images else load_dataset(DataSettings())


def test_own_function() -> None:
    name = f"{__name__}:own"
    assert load_dataset(DataSettings(dataset=name)).task.num_classes == 10
    with pytest.raises(
        DataError, match=r"returned a str; the function must return a superfednas\.data\.Dataset"
    ):
        load_dataset(DataSettings(dataset=name, train_images=1))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none", "there are no data to load; none is only for a server without data"),
        ("", "dataset = '': allowed are digits"),
        (
            "mnist",
            "dataset = 'mnist': allowed are digits, cifar10, cifar100, pathmnist, pneumoniamnist, "
            "a path ending .npz",
        ),
        ("no_such_module:f", "'no_such_module:f' cannot be imported"),
        ("data:no_such_function", "'data:no_such_function' cannot be imported"),
        (":f", "':f': must be module:Name"),
    ],
)
def test_names_that_mean_nothing(name: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_dataset(DataSettings(dataset=name))


# The Dataset checks its parts


def pair(shape: tuple[int, ...] = (4, 1, 3, 3), labels: Any = (0, 1, 0, 1)) -> Split:
    images = torch.zeros(shape, dtype=torch.uint8)
    return pictured(images, torch.tensor(labels, dtype=torch.int64))


GOOD: dict[str, Any] = {
    "name": "toy",
    "train": pair(),
    "validation": pair(),
    "test": pair(),
    "task": Images(2, 1, 3),
}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train": pair((0, 1, 3, 3), ())}, "toy: train holds 0 examples"),
        (
            {"train": pictured(torch.zeros(4, 1, 3, 3), pair().targets["labels"])},
            "toy: train images are torch.fl",
        ),
        ({"train": pair((4, 1, 3, 2))}, "toy: train images are 3 x 2 pixels; they must be square"),
        ({"test": pair((4, 1, 5, 5))}, r"toy: test images have shape \(1, 5, 5\)"),
        ({"task": Images(1, 1, 3)}, "labels run from 0 to 1; with 1 classes 0 to 0 is allowed"),
        ({"ids": np.array(["a"])}, r"natural ids have shape \(1,\)"),
    ],
)
def test_dataset_checks(changes: dict[str, Any], sentence: str) -> None:
    Dataset(**GOOD)
    with pytest.raises(DataError, match=re.compile(sentence)):
        Dataset(**(GOOD | changes))


def test_a_split_has_as_many_targets_as_fields() -> None:
    with pytest.raises(DataError, match="images 3, labels 4"):
        pair((3, 1, 3, 3))


def test_take_copies_rows() -> None:
    split = pair()
    taken = split.take(np.array([3, 0]))
    assert taken.targets["labels"].tolist() == [1, 0] and len(taken) == 2
    taken.fields["images"].add_(1)
    assert split.fields["images"].max() == 0
