"""Files that are written whole: a kill leaves the old one or the new one, never a part."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def write_whole(
    path: Path,
    content: bytes | str,
    *,
    overwrite: bool = True,
    mode: int = 0o666,
    lasting: bool = True,
) -> None:
    """Write a file under another name and put it in place when it is on the disk.

    Parameters
    ----------
    path
        The file; its folder must be there.
    content
        Text is written as UTF-8.
    overwrite
        Replace a file that is there. Where it is False and two processes write at once, one of them
        fails, if the file system knows hard links.
    mode
        Permissions of the file from its first byte on, less the umask.
    lasting
        Wait for the disk. What is written again in a moment need not: a power cut may then leave it
        empty.

    Raises
    ------
    FileExistsError
        Where there is a file and ``overwrite`` is False.
    """
    part = _part(path)
    with open(part, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(content.encode() if isinstance(content, str) else content)
        if lasting:
            file.flush()
            os.fsync(file.fileno())
    if overwrite:
        part.replace(path)
        return
    try:
        _claim(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a name to write a file under, and put it in place of ``path`` when the block has ended.

    Where the block raises, ``path`` stays as it was.
    """
    part = _part(path)
    yield part
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)


def _part(path: Path) -> Path:
    """Return the name under which a file is written; it is free."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # one that a kill has left keeps its own permissions
    return part


def _claim(part: Path, path: Path) -> None:
    """Give a file a name that must be free."""
    taken = f"{str(path)!r} exists already, and nothing is overwritten"
    try:
        os.link(part, path)  # fails where the name is taken, which a rename would not
    except FileExistsError:
        raise FileExistsError(taken) from None
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(taken) from None
        part.replace(path)
