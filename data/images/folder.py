"""Read a data set from a folder of images, one folder a class."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from superfednas.common.words import one_line
from superfednas.data.dataset import DataError
from superfednas.data.images.decode import decode, stack
from superfednas.data.settings import DataSettings
from superfednas.data.splits import Parts, as_split

SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".bmp", ".dib", ".gif"),
    *(".webp", ".avif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".ico"),
    *(".qoi", ".sgi"),
}
_SHOWN = 5  # names in a note
VALIDATION = ("val", "valid", "validation", "dev")


def load_folder(settings: DataSettings) -> Parts:
    """Read ``train/ [val|validation/] test/`` with one folder a class in each, or classes directly.

    If the class folders are directly in the folder, validation and test are held out later. The
    classes are the folders in ``train``, which may be empty: a node's own data may lack a class.
    Images may lie in folders of a class folder, however deep. What is not read is said once on
    standard error: how many files, with an example, and classes without images; hidden files are
    no files.

    Raises
    ------
    DataError
        For a missing folder, a class that train lacks, or an unreadable image (named).
    """
    root = Path(settings.dataset).expanduser()
    if not (root / "train").is_dir():
        classes = _classes(root)
        images, labels = _read(root, classes, settings.resize)
        pixels = stack({"train": images}, str(root))
        return Parts(as_split(pixels["train"], labels), None, None, classes)
    if not (root / "test").is_dir():
        raise DataError(f"{root}: there is a folder train but no folder test; both are needed.")
    folders = {"train": root / "train", "test": root / "test"}
    held = [root / name for name in VALIDATION if (root / name).is_dir()]
    if len(held) > 1:
        raise DataError(
            f"{root}: the folders {' and '.join(path.name for path in held)} are both there; one "
            "folder of validation images is allowed."
        )
    if held:
        folders["validation"] = held[0]
    classes = _classes(root / "train")
    read = {name: _read(folder, classes, settings.resize) for name, folder in folders.items()}
    others = [p.name for p in _entries(root) if p.is_dir() and p not in folders.values()]
    if others:
        _note(
            root, f"folders that are none of its splits are not read: {', '.join(others[:_SHOWN])}"
        )
    pixels = stack({name: images for name, (images, _) in read.items()}, str(root))
    splits = {name: as_split(pixels[name], labels) for name, (_, labels) in read.items()}
    return Parts(splits["train"], splits.get("validation"), splits["test"], classes)


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder and not hidden, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.name[0] != ".")


def _classes(folder: Path) -> tuple[str, ...]:
    names = [path.name for path in _entries(folder) if path.is_dir()]
    if not names:
        raise DataError(
            f"{folder}: there is no folder in it; one folder of images a class is needed."
        )
    return tuple(names)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of those in it, in order; links to folders are as files."""
    for path in _entries(folder):
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def _read(
    folder: Path, classes: tuple[str, ...], resize: int
) -> tuple[list[torch.Tensor], np.ndarray]:
    from PIL import Image

    images: list[torch.Tensor] = []
    labels: list[int] = []
    skipped: list[Path] = [path for path in _entries(folder) if not path.is_dir()]
    for name in _classes(folder):
        if name not in classes:
            raise DataError(
                f"{folder / name}: class '{name}' is not one of train's: {', '.join(classes)}."
            )
        for path in _files(folder / name):
            if path.suffix.lower() not in SUFFIXES:
                skipped.append(path)
                continue
            try:
                with Image.open(path) as picture:
                    images.append(decode(picture, str(path), resize))
            except DataError:
                raise
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise DataError(
                    f"{path}: the image cannot be read ({error}); repair or remove it."
                ) from error
            labels.append(classes.index(name))
    if not images:
        raise DataError(
            f"{folder}: there are no images in its class folders; files ending "
            f"{', '.join(sorted(SUFFIXES))} are read."
        )
    if skipped:
        files = "1 file is" if len(skipped) == 1 else f"{len(skipped):,} files are"
        _note(folder, f"{files} not read, for instance {skipped[0].relative_to(folder)}")
    there = set(labels)
    if empty := [name for k, name in enumerate(classes) if k not in there]:
        _note(folder, f"there is no image of the class {', '.join(empty[:_SHOWN])}")
    return images, np.array(labels)


def _note(folder: Path, text: str) -> None:
    print(one_line(f"note: {folder}: {text}"), file=sys.stderr, flush=True)
