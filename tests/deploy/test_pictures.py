"""Picture files: read as training read its own, and what cannot be read named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from superfednas.data.images.decode import decode
from superfednas.data.images.folder import SUFFIXES
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.deploy.device.runtime.fields import Input
from superfednas.deploy.device.runtime.pictures import PICTURES, find_pictures, read_image

GREY, COLOUR = (Input((channels, 8, 8), "uint8") for channels in (1, 3))


def trained_on(path: Path, channels: int, size: int) -> np.ndarray:
    """Read a picture as ``data`` does."""
    with Image.open(path) as picture:
        return decode(picture, str(path), size).expand(channels, -1, -1).numpy()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_without_resizing_pictures_are_those_of_training(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    found = read_image(path, COLOUR)
    assert found.dtype == np.uint8 and np.array_equal(found, trained_on(path, 3, 8))
    if mode in ("1", "L", "LA"):
        assert np.array_equal(read_image(path, GREY), trained_on(path, 1, 8))


def test_a_colour_picture_for_a_grey_network(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(path)
    assert np.unique(read_image(path, GREY)) == [76]  # ITU-R 601: 0.299 · 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    found = read_image(path, COLOUR)
    assert np.array_equal(found, trained_on(path, 3, 8))
    assert np.array_equal(found, pixels.transpose(2, 0, 1)) == (orientation == 1)


@pytest.mark.parametrize("size", [8, 32, 224, 500])
def test_resized_pictures_are_those_of_training_to_one_level(size: int, tmp_path: Path) -> None:
    """At most one level of 255 apart, in at most one pixel of a thousand: ties round either way."""
    for number, photograph in enumerate(load_sample_images().images):
        path = tmp_path / "picture.png"
        turned = photograph.transpose(1, 0, 2) if number else photograph
        Image.fromarray(turned).save(path)
        found, expected = (
            read_image(path, Input((3, size, size), "uint8")),
            trained_on(path, 3, size),
        )
        apart = np.abs(found.astype(int) - expected)
        assert found.shape == expected.shape == (3, size, size)
        assert apart.max() <= 1 and (apart > 0).mean() <= 1e-3


def test_pictures_are_those_that_training_reads() -> None:
    assert PICTURES == SUFFIXES


@pytest.mark.parametrize("content", [b"", b"no picture", "truncated", "sixteen bits"])
def test_an_unreadable_picture_is_named(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    if content == "sixteen bits":
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(path)
    elif content == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:4000])
    else:
        path.write_bytes(content)
    with pytest.raises(DeployError, match=r"picture\.png: .*(cannot be read|8-bit)") as error:
        read_image(path, COLOUR)
    assert "\n" not in str(error.value)


def test_folders_are_searched_in_order(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/10.jpg", "a.png", "b/notes.txt", "c/d/e.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = find_pictures([tmp_path / "c", tmp_path, "elsewhere.xyz"])
    names = [str(path.relative_to(tmp_path)) for path in found[:-1]]
    assert names == ["c/d/e.bmp", "a.png", "b/10.jpg", "b/2.PNG", "c/d/e.bmp"]
    assert found[-1] == Path("elsewhere.xyz")
    with pytest.raises(DeployError, match=r"folder\.png: there are no pictures in it"):
        find_pictures([tmp_path / "folder.png"])
