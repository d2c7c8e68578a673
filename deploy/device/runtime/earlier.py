"""Earlier cards, which described a model of pictures by class names and pixel constants."""

from collections.abc import Mapping
from typing import Any

from .fields import Input, Output

IMAGES, LOGITS = "images", "logits"


def picture_fields(note: Mapping[str, Any]) -> dict[str, Any]:
    """Return the task, inputs and outputs of an earlier card.

    Such a model reads ``(pixel / 255 - mean) / std``, one constant a channel.

    Parameters
    ----------
    note
        ``space`` (with ``in_channels`` and ``image_size``), ``classes``, ``mean`` and ``std``.

    Raises
    ------
    ValueError, KeyError, TypeError
        If these do not fit together.
    """
    channels, size = int(note["space"]["in_channels"]), int(note["space"]["image_size"])
    classes, mean, std = (tuple(note[key]) for key in ("classes", "mean", "std"))
    if not len(mean) == len(std) == channels:
        raise ValueError(f"mean and std need {channels} numbers, one a channel")
    if size < 1:
        raise ValueError(f"image_size is {size}")
    scale = tuple(1 / (255 * number) for number in std)
    offset = tuple(-centre / number for centre, number in zip(mean, std, strict=True))
    images = Input((channels, size, size), "uint8", 0, 255, scale, offset)
    return {
        "task": IMAGES,
        "inputs": {IMAGES: images},
        "outputs": {LOGITS: Output((len(classes),), classes)},
    }
