"""Pictures of a data set are its validation images, pixel for pixel, spread over the classes."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from superfednas.data import Dataset
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.deploy.device.samples import write_pictures
from tests.support.pictures import picture_set, pictured


def data(channels: int, labels: list[int], classes: tuple[str, ...] = ("a/b", "c")) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), channels, 6, 6))
    split = pictured(torch.tensor(pixels, dtype=torch.uint8), torch.tensor(labels))
    constants = (0.5,) * channels
    return picture_set("toy", split, split, split.first(0), classes, constants, constants)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_is_the_image_and_its_name_the_class(channels: int, tmp_path: Path) -> None:
    of = data(channels, [1, 0, 1, 1, 0])
    written = write_pictures(of, tmp_path / "out", 5)
    assert sorted(written) == sorted((tmp_path / "out").iterdir())
    for path in written:
        name, row = path.stem.rsplit("-", 1)
        label = int(of.validation.targets["labels"][int(row)])
        assert name == of.task.classes[label].replace("/", "-")
        pixels = np.asarray(Image.open(path)).reshape(6, 6, channels)
        assert np.array_equal(
            pixels.transpose(2, 0, 1), of.validation.fields["images"][int(row)].numpy()
        )


@pytest.mark.parametrize(("count", "each"), [(1, [1]), (2, [1, 1]), (4, [2, 2]), (5, [2, 3])])
def test_pictures_are_spread_over_the_classes(count: int, each: list[int], tmp_path: Path) -> None:
    written = write_pictures(data(1, [0, 0, 0, 0, 1, 1, 1, 1]), tmp_path, count)
    assert sorted(Counter(path.name[0] for path in written).values()) == each


@pytest.mark.attack
@pytest.mark.parametrize(
    "name",
    [
        "d" * 5_000,
        "字" * 5_000,
        "../../up",
        "..",
        "a\nrun folder: /etc",
        "\x1b[2J",
        "\u202ecross",
        "C:\\x",
        "",
    ],
)
def test_a_class_of_any_name_has_harmless_files(name: str, tmp_path: Path) -> None:
    written = write_pictures(data(1, [0, 1], (name, "c")), tmp_path / "out", 2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in written
    )
    for path in written:
        assert path.name.isprintable() and len(path.name.encode()) <= 255
        assert not set(path.name) & set('<>:"/\\|?*') and path.name[0] != "."
        assert Image.open(path).size == (6, 6)


def test_a_small_class_runs_out(tmp_path: Path) -> None:
    written = write_pictures(data(1, [0, 0, 0, 1]), tmp_path, 9)
    assert Counter(path.name[0] for path in written) == {"a": 3, "c": 1}


def test_nothing_is_overwritten_and_nothing_written_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.png").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(DeployError, match=f"{name} is not empty: name a new folder"):
            write_pictures(data(1, [0, 1]), tmp_path / name, 2)
    empty = dataclasses.replace(data(1, [0]), validation=data(1, [0]).test)
    with pytest.raises(DeployError, match="the validation split of 'toy' has no images"):
        write_pictures(empty, tmp_path / "new", 2)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "full" / "mine.png").read_text() == "mine"
