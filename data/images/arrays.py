"""Read a data set from one ``.npz`` file of plain arrays."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from superfednas.data.dataset import DataError, Split
from superfednas.data.images.decode import square
from superfednas.data.settings import DataSettings
from superfednas.data.splits import Parts, as_split

PARTS = ("train", "val", "test")
MAX_CHANNELS = 4


@dataclass(frozen=True, eq=False)
class _File:
    """An open file, and its names for the images and labels of a split."""

    path: Path
    arrays: dict[str, np.ndarray]

    @property
    def medmnist(self) -> bool:
        return "train_images" in self.arrays and "x_train" not in self.arrays

    def keys(self, part: str) -> tuple[str, str]:
        if self.medmnist:
            return f"{part}_images", f"{part}_labels"
        return f"x_{part}", f"y_{part}"

    def has(self, part: str) -> bool:
        return all(key in self.arrays for key in self.keys(part))

    def labels(self, part: str) -> np.ndarray:
        key = self.keys(part)[1]
        labels = self.arrays[key]
        if self.medmnist and labels.ndim == 2:
            if labels.shape[1] != 1:
                raise DataError(
                    f"{self.path}: {key} has shape {labels.shape}, several labels an image; one "
                    "class an image, (N, 1), is allowed."
                )
            return labels[:, 0]
        return labels


def load_npz(settings: DataSettings, class_names: tuple[str, ...] = ()) -> Parts:
    """Read ``x_train, y_train, x_test, y_test`` and, where present, the optional arrays.

    Images are uint8 or floats in [0, 1], (N, H, W) or (N, H, W, C); labels are integers, (N,).
    Optional: ``x_val, y_val``; ``<natural-id>_train`` (one id a training row), and the same of
    ``_val`` and ``_test``; ``class_names``.
    Without class names, the training labels must be 0 to C-1 without gaps; with them, a node's own
    data may lack some classes.

    MedMNIST's own files are read as they are: ``train_images, train_labels, val_images, ...`` with
    labels (N, 1).

    Parameters
    ----------
    class_names
        The classes, if the file itself names none; empty if they are not known.

    Raises
    ------
    DataError
        For a missing, damaged or unsuitable file; the sentence names the file and the array.
    """
    path = Path(settings.dataset).expanduser()
    arrays = _read(path)
    if class_names:
        arrays.setdefault("class_names", np.array(class_names))
    file = _File(path, arrays)
    _check_keys(file)
    train = _split(file, "train", settings.resize)
    classes = _classes(file)
    validation = _split(file, "val", settings.resize) if file.has("val") else None
    test = _split(file, "test", settings.resize)
    ids = {
        part: _ids(file, f"{settings.natural_id}_{key}", len(split))
        for part, key, split in (
            ("train", "train", train),
            ("validation", "val", validation),
            ("test", "test", test),
        )
        if split is not None and f"{settings.natural_id}_{key}" in arrays
    }
    own = ids.pop("train", None)
    return Parts(train, validation, test, classes, own, {} if own is None else ids)


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"dataset = '{path}': there is no such file.")
    try:
        # a single array (.npy) named .npz has no keys, so it fails here as well
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


def _check_keys(file: _File) -> None:
    needed, together = [*file.keys("train"), *file.keys("test")], file.keys("val")
    missing = [key for key in needed if key not in file.arrays]
    halves = [key for key in together if key not in file.arrays]
    if len(halves) == 1:
        missing += halves
    if missing:
        raise DataError(
            f"{file.path}: {', '.join(missing)} is missing; needed are {', '.join(needed)} "
            f"({' and '.join(together)} together or not at all); MedMNIST's names (train_images, "
            "train_labels, ...) are allowed too."
        )


def _split(file: _File, part: str, resize: int) -> Split:
    images_key, labels_key = file.keys(part)
    images, labels = file.arrays[images_key], file.labels(part)
    what = f"{file.path}: {images_key}"
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
            f"{file.path}: {labels_key} is {labels.dtype} of shape {labels.shape}; integers "
            "of shape (N,) are needed."
        )
    if len(images) != len(labels):
        raise DataError(
            f"{what} has {len(images)} rows and {labels_key} {len(labels)}; they must agree."
        )
    pixels = torch.from_numpy(_bytes(what, images)).reshape(*images.shape[:3], -1)
    return as_split(square(pixels.permute(0, 3, 1, 2), resize), labels)


def _bytes(what: str, images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{what} is {images.dtype}; uint8, or floats in [0, 1], is allowed.")
    # written this way so that NaN fails too
    if not (images.min() >= 0 and images.max() <= 1):
        raise DataError(
            f"{what} holds floats from {images.min():g} to {images.max():g}; [0, 1] is allowed "
            "(or uint8)."
        )
    scaled: np.ndarray = np.rint(images * 255).astype(np.uint8)
    return scaled


def _ids(file: _File, key: str, rows: int) -> np.ndarray:
    ids = file.arrays[key]
    if ids.shape != (rows,):
        raise DataError(
            f"{file.path}: {key} has shape {ids.shape}; one id a row, ({rows},), is needed."
        )
    return np.array(_texts(file.path, key, ids))


def _texts(path: Path, key: str, values: np.ndarray) -> tuple[str, ...]:
    """Return names or ids as texts, also those that were written as bytes."""
    if values.dtype.kind != "S":
        return tuple(str(value) for value in values.ravel())
    try:
        return tuple(value.decode() for value in values.ravel())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {key} holds bytes that are no UTF-8 ({error}).") from None


def _classes(file: _File) -> tuple[str, ...]:
    present = np.unique(file.labels("train"))
    if "class_names" in file.arrays:
        names = _texts(file.path, "class_names", file.arrays["class_names"])
        count = len(names)
        if len(set(names)) < count:
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{file.path}: class_names holds {twice!r} twice; classes differ.")
    else:
        count = len(present)
        names = tuple(str(k) for k in range(count))
        if present[0] != 0 or present[-1] != count - 1:
            raise DataError(
                f"{file.path}: {file.keys('train')[1]} holds {count} different labels from "
                f"{present[0]} to {present[-1]}; 0 to {count - 1} with none left out is allowed "
                "(or add class_names)."
            )
    for part in filter(file.has, PARTS):
        labels = file.labels(part)
        if len(labels) and (labels.min() < 0 or labels.max() >= count):
            raise DataError(
                f"{file.path}: {file.keys(part)[1]} runs from {labels.min()} to {labels.max()}; "
                f"with {count} classes 0 to {count - 1} is allowed."
            )
    return names
