"""Files written atomically: a kill leaves the old file or the new one, never a part.

Any number of writers may write one file at a time: the last one to end prevails.
"""

import contextlib
import os
import secrets
import stat
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
    """Write a file under another name, then move it into place once it is on the disk.

    Parameters
    ----------
    path
        The file; its folder must exist.
    content
        Text is written as UTF-8.
    overwrite
        Replace an existing file. If False and two processes write at the same time, one of them
        fails (if the file system supports hard links).
    mode
        Permissions of the file from its first byte on, reduced by the umask.
    lasting
        Wait for the disk. A file that is soon written again can go without; a power cut may then
        leave it empty.

    Raises
    ------
    FileExistsError
        If the file exists and ``overwrite`` is False.
    """
    with _part(path) as part:
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        if overwrite:
            part.replace(path)
        else:
            _claim(part, path)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a name to write a file under, and move it to ``path`` at the end of the block.

    Its permissions are those of any new file, whatever the block gives it. If the block raises,
    ``path`` stays as it was.
    """
    with _part(path) as part:
        part.touch(exist_ok=False)
        mode = stat.S_IMODE(part.stat().st_mode)
        yield part
        part.chmod(mode)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)


@contextlib.contextmanager
def _part(path: Path) -> Iterator[Path]:
    """Yield a name under which this writer alone writes; what is left there is removed."""
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what killed writers have left in a folder in which nobody is writing."""
    for part in folder.glob("*.part"):
        part.unlink(missing_ok=True)


def _claim(part: Path, path: Path) -> None:
    """Give a file a name that must not be taken."""
    taken = f"{str(path)!r} exists already, and nothing is overwritten"
    try:
        os.link(part, path)  # fails if the name is taken; a rename would not
    except FileExistsError:
        raise FileExistsError(taken) from None
    except OSError:  # the file system has no hard links
        if path.exists():
            raise FileExistsError(taken) from None
        part.replace(path)
