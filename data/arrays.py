"""Read a data set from one ``.npz`` file of plain arrays."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from data.dataset import DataError, Split
from data.images import square
from data.settings import DataSettings
from data.splits import Parts, as_split

NEEDED = ("x_train", "y_train", "x_test", "y_test")
MAX_CHANNELS = 4


def load_npz(settings: DataSettings) -> Parts:
    """Read ``x_train, y_train, x_test, y_test`` and, where present, the optional arrays.

    Images are uint8 or floats in [0, 1], (N, H, W) or (N, H, W, C); labels are integers, (N,).
    Optional: ``x_val, y_val``; ``<natural-id>_train`` (one id a training row); ``class_names``.
    Without class names the training labels must be 0 to C-1 with none left out; with them a node's
    own data may lack some classes.

    Raises
    ------
    DataError
        For a missing, damaged or unfit file; the sentence names the file and the array.
    """
    path = Path(settings.dataset).expanduser()
    arrays = _read(path)
    missing = [key for key in NEEDED if key not in arrays]
    if ("x_val" in arrays) != ("y_val" in arrays):
        missing.append("y_val" if "x_val" in arrays else "x_val")
    if missing:
        raise DataError(
            f"{path}: {', '.join(missing)} is missing; needed are {', '.join(NEEDED)} (x_val and "
            "y_val together or not at all)."
        )
    train = _split(path, arrays, "train", settings.resize)
    classes = _classes(path, arrays)
    ids = arrays.get(f"{settings.natural_id}_train")
    if ids is not None and ids.shape != (len(train),):
        raise DataError(
            f"{path}: {settings.natural_id}_train has shape {ids.shape}; one id a training row, "
            f"({len(train)},), is needed."
        )
    return Parts(
        train,
        _split(path, arrays, "val", settings.resize) if "x_val" in arrays else None,
        _split(path, arrays, "test", settings.resize),
        classes,
        None if ids is None else ids.astype(str),
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"dataset = '{path}': there is no such file.")
    try:
        # a single array (.npy) under the name .npz has no keys, so it fails here as well
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
        raise DataError(_unreadable(path, error)) from error
    except (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError) as error:
        raise DataError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    return (
        f"{path}: not a readable .npz of plain arrays ({error}); write it with numpy.savez, "
        "without object arrays."
    )


def _split(path: Path, arrays: dict[str, np.ndarray], part: str, resize: int) -> Split:
    images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
    what = f"{path}: x_{part}"
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] > MAX_CHANNELS):
        raise DataError(
            f"{what} has shape {images.shape}; (N, H, W) or (N, H, W, C) with at most "
            f"{MAX_CHANNELS} channels is allowed."
        )
    if images.size == 0:
        raise DataError(f"{what} has shape {images.shape}; at least one image is needed.")
    if resize == 0 and images.shape[1] != images.shape[2]:
        raise DataError(
            f"{what} has images of {images.shape[1]} x {images.shape[2]} pixels; they must be "
            "square (set resize to make them so)."
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{path}: y_{part} is {labels.dtype} of shape {labels.shape}; integers of shape (N,) "
            "are needed."
        )
    if len(images) != len(labels):
        raise DataError(
            f"{path}: x_{part} has {len(images)} rows and y_{part} {len(labels)}; they must agree."
        )
    pixels = torch.from_numpy(_bytes(what, images)).reshape(*images.shape[:3], -1)
    return as_split(square(pixels.permute(0, 3, 1, 2), resize), labels)


def _bytes(what: str, images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{what} is {images.dtype}; uint8, or floats in [0, 1], is allowed.")
    # written so that NaN fails too
    if not (images.min() >= 0 and images.max() <= 1):
        raise DataError(
            f"{what} holds floats from {images.min():g} to {images.max():g}; [0, 1] is allowed "
            "(or uint8)."
        )
    scaled: np.ndarray = np.rint(images * 255).astype(np.uint8)
    return scaled


def _classes(path: Path, arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
    parts = [part for part in ("train", "val", "test") if f"y_{part}" in arrays]
    present = np.unique(arrays["y_train"])
    if "class_names" in arrays:
        count = len(names := tuple(str(name) for name in arrays["class_names"].ravel()))
    else:
        count = len(present)
        names = tuple(str(k) for k in range(count))
        if present[0] != 0 or present[-1] != count - 1:
            raise DataError(
                f"{path}: y_train holds {count} different labels from {present[0]} to "
                f"{present[-1]}; 0 to {count - 1} with none left out is allowed (or add "
                "class_names)."
            )
    for part in parts:
        labels = arrays[f"y_{part}"]
        if len(labels) and (labels.min() < 0 or labels.max() >= count):
            raise DataError(
                f"{path}: y_{part} runs from {labels.min()} to {labels.max()}; with {count} "
                f"classes 0 to {count - 1} is allowed."
            )
    return names
