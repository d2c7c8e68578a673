"""From pictures to tensors: decoding, resizing to squares, stacking."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from superfednas.data.dataset import DataError

if TYPE_CHECKING:
    from PIL import Image

CHUNK = 1024  # images resized at a time, so that the float copies stay small


def square(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize the shorter side to ``size`` (bilinear, antialiased) and crop the centre.

    Parameters
    ----------
    images
        uint8, (N, C, H, W).
    size
        Side in pixels; 0 leaves the images as they are.

    Returns
    -------
    torch.Tensor
        uint8, (N, C, size, size).
    """
    height, width = images.shape[2:]
    if size == 0 or height == width == size:
        return images
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    chunks = []
    for chunk in torch.split(images, CHUNK):
        resized = torch.nn.functional.interpolate(
            chunk.float(), shape, mode="bilinear", antialias=True
        )
        cropped = resized[:, :, top : top + size, left : left + size]
        chunks.append(cropped.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(chunks)


def decode(picture: "Image.Image", what: str, resize: int) -> torch.Tensor:
    """Turn a PIL picture into uint8 (C, H, W): one channel if it is grey, else RGB.

    Raises
    ------
    DataError
        For pixels of more than 8 bits, which PIL would silently clip.
    """
    from PIL import ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode[0] in "IF":
        raise DataError(f"{what}: pixels are of mode {picture.mode}; 8-bit images are allowed.")
    grey = picture.mode in ("1", "L", "LA")
    pixels = np.array(picture.convert("L" if grey else "RGB"))
    image = torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)
    return square(image[None], resize)[0]


def stack(splits: dict[str, list[torch.Tensor]], what: str) -> dict[str, torch.Tensor]:
    """Stack each split's images; they stay grey only if every image of every split is grey.

    Raises
    ------
    DataError
        If images differ in size or are not square.
    """
    everything = [image for images in splits.values() for image in images]
    sizes = sorted({tuple(image.shape[1:]) for image in everything})
    if len(sizes) > 1 or sizes[0][0] != sizes[0][1]:
        shown = ", ".join(f"{h} x {w}" for h, w in sizes[:3])
        raise DataError(
            f"{what}: images are {shown} pixels; set resize, or give squares of one size."
        )
    channels = max(len(image) for image in everything)
    # expand() repeats a grey image over RGB without a copy; stack makes the only copy
    return {
        name: torch.stack([image.expand(channels, -1, -1) for image in images])
        for name, images in splits.items()
    }
