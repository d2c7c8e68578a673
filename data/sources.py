"""Load a data set by name: one function, whatever the source."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from superfednas.common.imports import import_object
from superfednas.data.dataset import DataError, Dataset
from superfednas.data.images.arrays import load_npz
from superfednas.data.images.decode import square
from superfednas.data.images.folder import load_folder
from superfednas.data.images.hub import load_hub
from superfednas.data.images.medmnist import CLASSES, load_medmnist
from superfednas.data.settings import DataSettings
from superfednas.data.splits import Parts, as_split, complete, sample_train
from superfednas.tasks.images import Augment, Images

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
# pixel mean and s.d. for pixels in [0, 1]; digits, pneumoniamnist: over all training images
CONSTANTS = {
    "digits": ((0.3053,), (0.3757,)),
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "pneumoniamnist": ((0.5719,), (0.1684,)),
}
UNKNOWN = ((0.5,), (0.25,))
DIGITS_SIZES = {"validation": 180, "test": 360}
CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


@functools.lru_cache(maxsize=4)
def load_dataset(settings: DataSettings) -> Dataset:
    """Load the data set of these settings, once a process.

    Validation never overlaps train: it is the source's own split, or rows held out of train by a
    stratified draw that does not depend on the run's seed. The test split is the source's own, if
    it has one.

    Raises
    ------
    DataError
        If the source cannot be read or used; the sentence says what is allowed.
    """
    name = settings.dataset
    sizes: dict[str, Any] = {"validation": settings.validation_share}
    if name == "none":
        raise DataError(
            "dataset = 'none': there are no data to load; none is only for a server without data."
        )
    if name == "digits":
        parts, sizes = _digits(settings.resize), DIGITS_SIZES
    elif name in CIFAR_FOLDERS:
        parts = _cifar(settings)
    elif name in CLASSES:
        parts = load_medmnist(settings)
    elif name.startswith("hf:"):
        parts = load_hub(settings)
    elif name.endswith(".npz"):
        parts = load_npz(settings)
    elif name and Path(name).expanduser().is_dir():
        parts = load_folder(settings)
    elif ":" in name:
        return _own(settings)
    else:
        raise DataError(
            f"dataset = {name!r}: allowed are digits, cifar10, cifar100, pathmnist, "
            "pneumoniamnist, a path ending .npz, an existing folder of images, hf:NAME, "
            "module:function, and none."
        )
    parts, validation, test = complete(name, parts, **sizes)
    parts = sample_train(name, parts, settings.train_images)
    mean, std = CONSTANTS.get(name, UNKNOWN)
    images = parts.train.fields["images"]
    channels = images.shape[1]
    task = Images.of(
        images,
        parts.classes,
        _constants("pixel-mean", settings.pixel_mean, mean, channels),
        _constants("pixel-std", settings.pixel_std, std, channels),
    )
    found = Dataset(name, task, parts.train, validation, test, parts.ids, parts.held_ids)
    return _augmented(found, settings)


def _augmented(dataset: Dataset, settings: DataSettings) -> Dataset:
    """Let images be augmented as the settings say."""
    task = dataset.task
    if not isinstance(task, Images):
        return dataset
    augment = Augment.parse(settings.augment, task.in_channels, task.image_size, dataset.name)
    return replace(dataset, task=replace(task, augment=augment))


def _constants(key: str, text: str, known: tuple[float, ...], channels: int) -> tuple[float, ...]:
    try:
        values = tuple(float(number) for number in text.split(",")) if text.strip() else known
    except ValueError:
        values = ()
    finite = all(abs(value) < float("inf") for value in values)  # NaN compares false
    if not finite or len(values) not in (1, channels) or (key == "pixel-std" and min(values) <= 0):
        positive = " above 0" if key == "pixel-std" else ""
        raise DataError(
            f"{key} = {text!r}: a comma list of {channels} numbers{positive}, or one for all "
            "channels, is allowed."
        )
    return values * channels if len(values) == 1 else values


def _digits(resize: int) -> Parts:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # grey levels are 0 to 16
    images = torch.from_numpy(np.rint(digits.images * 255 / 16).astype(np.uint8))[:, None]
    names = tuple(str(name) for name in digits.target_names)
    return Parts(as_split(square(images, resize), digits.target), None, None, names)


def _cifar(settings: DataSettings) -> Parts:
    import torchvision.datasets

    kind: Any = getattr(torchvision.datasets, settings.dataset.upper())
    cache = Path(settings.data_cache).expanduser()
    try:
        if not (cache / CIFAR_FOLDERS[settings.dataset]).is_dir():
            _download(kind, cache, CIFAR_FOLDERS[settings.dataset])
        train, test = (kind(str(cache), train=part, download=False) for part in (True, False))
    # torchvision reports network, checksum and archive faults as RuntimeError, OSError, EOFError
    except (RuntimeError, OSError, EOFError) as error:
        raise DataError(
            f"dataset = '{settings.dataset}' can be neither downloaded nor read from data-cache = "
            f"'{settings.data_cache}' ({error}); give a local .npz file, or put the extracted "
            f"folder {CIFAR_FOLDERS[settings.dataset]} there."
        ) from error
    splits = [
        as_split(
            square(torch.from_numpy(part.data).permute(0, 3, 1, 2), settings.resize),
            np.array(part.targets),
        )
        for part in (train, test)
    ]
    return Parts(splits[0], None, splits[1], tuple(train.classes))


def _download(kind: Any, cache: Path, folder: str) -> None:
    # Several processes of a simulation may get here at the same time: each downloads into its own
    # folder, and the move into place is atomic, so none ever reads a partly written set.
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as private:
        kind(private, train=True, download=True)
        try:
            (Path(private) / folder).rename(cache / folder)
        except OSError:
            if not (cache / folder).is_dir():
                raise


def _own(settings: DataSettings) -> Dataset:
    try:
        build = import_object(settings.dataset, "dataset")
    except ValueError as error:
        raise DataError(f"{error}; module:function must name an importable function.") from error
    built = build(settings)
    if not isinstance(built, Dataset):
        raise DataError(
            f"dataset = {settings.dataset!r} returned a {type(built).__name__}; the function must "
            "return a superfednas.data.Dataset."
        )
    return _augmented(built, settings)
