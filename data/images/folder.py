"""Read a data set from a folder of images, one folder a class."""

from pathlib import Path

import numpy as np
import torch

from superfednas.data.dataset import DataError
from superfednas.data.images.decode import decode, stack
from superfednas.data.settings import DataSettings
from superfednas.data.splits import Parts, as_split

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
VALIDATION = ("val", "validation")


def load_folder(settings: DataSettings) -> Parts:
    """Read ``train/ [val|validation/] test/`` with one folder a class in each, or classes directly.

    If the class folders are directly in the folder, validation and test are held out later. The
    classes are the folders in ``train``, which may be empty: a node's own data may lack a class.

    Raises
    ------
    DataError
        For a missing folder, a class that train lacks, or an unreadable image (named).
    """
    root = Path(settings.dataset).expanduser()
    if not (root / "train").is_dir():
        classes = _classes(root)
        images, labels = _read(root, root, classes, settings.resize)
        pixels = stack({"train": images}, str(root))
        return Parts(as_split(pixels["train"], labels), None, None, classes)
    if not (root / "test").is_dir():
        raise DataError(f"{root}: there is a folder train but no folder test; both are needed.")
    folders = {"train": root / "train", "test": root / "test"}
    for name in VALIDATION:
        if (root / name).is_dir():
            folders["validation"] = root / name
    classes = _classes(root / "train")
    read = {name: _read(root, folder, classes, settings.resize) for name, folder in folders.items()}
    pixels = stack({name: images for name, (images, _) in read.items()}, str(root))
    splits = {name: as_split(pixels[name], labels) for name, (_, labels) in read.items()}
    return Parts(splits["train"], splits.get("validation"), splits["test"], classes)


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if not names:
        raise DataError(
            f"{folder}: there is no folder in it; one folder of images a class is needed."
        )
    return tuple(names)


def _read(
    root: Path, folder: Path, classes: tuple[str, ...], resize: int
) -> tuple[list[torch.Tensor], np.ndarray]:
    from PIL import Image

    images: list[torch.Tensor] = []
    labels: list[int] = []
    for name in _classes(folder):
        if name not in classes:
            raise DataError(
                f"{folder / name}: class '{name}' is not one of train's: {', '.join(classes)}."
            )
        for path in sorted((folder / name).iterdir()):
            if path.suffix.lower() not in SUFFIXES:
                continue
            try:
                with Image.open(path) as picture:
                    images.append(decode(picture, str(path), resize))
            except (OSError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataError(
                    f"{path}: the image cannot be read ({error}); repair or remove it."
                ) from error
            labels.append(classes.index(name))
    if not images:
        raise DataError(
            f"{folder}: there are no images in its class folders; files ending "
            f"{', '.join(sorted(SUFFIXES))} are read."
        )
    return images, np.array(labels)
