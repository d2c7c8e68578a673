"""Read an image data set of the Hugging Face hub, or one that ``datasets`` saved on disk."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from superfednas.data.dataset import DataError
from superfednas.data.images.decode import decode, stack
from superfednas.data.settings import DataSettings
from superfednas.data.splits import Parts, as_split

VALIDATION = ("validation", "valid", "val")


def load_hub(settings: DataSettings) -> Parts:
    """Read ``hf:NAME``, where NAME is a hub name or a local folder.

    It uses ``datasets`` itself, not ``FederatedDataset``, which would only load the splits, as
    here, and report the name of the data set to a telemetry server. The image column is the only
    one of type Image; the labels are the ClassLabel column with the most classes (the finest).

    Raises
    ------
    DataError
        If the set cannot be loaded, or has no training split, image column or label column.
    """
    name = settings.dataset.removeprefix("hf:")
    what = f"hf:{name}"
    splits = _open(name, Path(settings.data_cache).expanduser() / "huggingface")
    if "train" not in splits:
        raise DataError(f"{what}: splits are {', '.join(splits)}; one named train is needed.")
    image, label = _columns(what, splits["train"].features, settings.natural_id)
    classes = tuple(str(c) for c in splits["train"].features[label].names)
    named = next((split for split in VALIDATION if split in splits), "validation")
    wanted = {"train": "train", "validation": named, "test": "test"}
    labels = {
        part: np.array(splits[split][label][:], dtype=np.int64)
        for part, split in wanted.items()
        if split in splits
    }
    # a public test split without labels has -1: hold one out of train instead
    labels = {part: y for part, y in labels.items() if part == "train" or (y >= 0).all()}
    images = {part: _decode(what, splits[wanted[part]], image, settings.resize) for part in labels}
    for part, rows in images.items():
        if not rows:
            raise DataError(f"{what}: split {wanted[part]} holds 0 images; at least 1 is needed.")
    pixels = stack(images, what)
    parts = {part: as_split(pixels[part], labels[part]) for part in labels}
    ids = {
        part: np.array([str(value) for value in splits[wanted[part]][settings.natural_id][:]])
        for part in parts
        if settings.natural_id in splits[wanted[part]].column_names
    }
    own = ids.pop("train", None)
    held = {} if own is None else ids
    return Parts(parts["train"], parts.get("validation"), parts.get("test"), classes, own, held)


def _open(name: str, cache: Path) -> Any:
    import datasets

    path = Path(name).expanduser()
    with _without_bars():
        try:
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                loaded: Any = datasets.load_from_disk(str(path))
            else:
                source = str(path) if path.is_dir() else name
                loaded = datasets.load_dataset(source, cache_dir=str(cache))
        # the hub's client raises errors from many libraries (network, parsing, missing files)
        except Exception as error:
            raise DataError(
                f"hf:{name} cannot be loaded ({type(error).__name__}: {error}); give the name of "
                "an image set on the hub, or a local folder that datasets can read."
            ) from error
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def _columns(what: str, features: Any, natural_id: str) -> tuple[str, str]:
    import datasets

    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = {
        key: kind.num_classes
        for key, kind in features.items()
        if isinstance(kind, datasets.ClassLabel) and key != natural_id
    }
    if len(images) != 1 or not labels:
        raise DataError(
            f"{what}: columns are {', '.join(features)}; one of type Image and one of type "
            "ClassLabel are needed."
        )
    return images[0], max(labels, key=lambda key: labels[key])


def _decode(what: str, split: Any, column: str, resize: int) -> list[torch.Tensor]:
    decoded = []
    for row in range(len(split)):
        try:
            picture = split[row][column]
            decoded.append(decode(picture, f"{what}, row {row}", resize))
        except (OSError, SyntaxError) as error:
            raise DataError(
                f"{what}, row {row}: the image cannot be read ({error}); repair or remove it."
            ) from error
    return decoded


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
