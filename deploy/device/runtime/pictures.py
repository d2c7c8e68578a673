"""Picture files, read the way training reads its images."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import DeployError, first_line
from .fields import Input

if TYPE_CHECKING:
    from PIL import Image

PICTURES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".bmp", ".dib", ".gif"),
    *(".webp", ".avif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".ico"),
    *(".qoi", ".sgi"),
}


def find_pictures(paths: Iterable[str | Path]) -> list[Path]:
    """List pictures: a file stands for itself, a folder for every picture below it, sorted.

    Raises
    ------
    DeployError
        For a folder without pictures.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        below = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
        if not below:
            endings = ", ".join(sorted(PICTURES))
            raise DeployError(f"{path}: there are no pictures in it; files ending {endings} count")
        found += below
    return found


def read_image(path: str | Path, wanted: Input) -> np.ndarray:
    """Read one picture the way training does: upright, grey or RGB, resized, centre cropped.

    Returns
    -------
    numpy.ndarray
        uint8, of the wanted shape: channels, side, side.

    Raises
    ------
    DeployError
        If the picture cannot be read, has more than 8 bits, or the model takes neither grey nor
        RGB.
    """
    from PIL import Image, ImageOps

    mode = mode_of(wanted)
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode[0] in "IF":
                raise DeployError(
                    f"{path}: pixels are of mode {picture.mode}; 8-bit images are allowed"
                )
            pixels = _square(picture.convert(mode), wanted.shape[-1])
    except FileNotFoundError:
        raise DeployError(f"{path}: there is no such file") from None
    except DeployError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DeployError(f"{path}: the picture cannot be read ({first_line(error)})") from error
    return pixels


def mode_of(wanted: Input) -> str:
    """Return Pillow's mode of pictures that are to become this input: ``L`` or ``RGB``.

    Raises
    ------
    DeployError
        If it is neither grey nor RGB.
    """
    channels = wanted.shape[0]
    if channels not in (1, 3):
        raise DeployError(f"the network reads images of {channels} channels; pictures have 1 or 3")
    return "L" if channels == 1 else "RGB"


def _square(picture: "Image.Image", size: int) -> np.ndarray:
    """Resize the shorter side (bilinear, antialiased), crop the centre: uint8 (C, size, size)."""
    from PIL import Image

    width, height = picture.size
    if width == height == size:
        return np.array(picture).reshape(size, size, -1).transpose(2, 0, 1)
    scale = size / min(width, height)
    shape = (max(size, round(width * scale)), max(size, round(height * scale)))
    left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
    # In floats like training's: PIL's own 8-bit resizing rounds between its two passes.
    bands = [
        np.asarray(band.convert("F").resize(shape, Image.Resampling.BILINEAR))
        for band in picture.split()
    ]
    cropped = np.stack(bands)[:, top : top + size, left : left + size]
    pixels: np.ndarray = cropped.round().clip(0, 255).astype(np.uint8)
    return pixels
