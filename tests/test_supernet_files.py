"""Files are written whole, and where that is asked only once."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from supernet.files import write_whole


def failing(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "no space left")


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    with monkeypatch.context() as patch:
        if stage == "fsync":
            patch.setattr(os, "fsync", failing)
        else:
            patch.setattr(Path, "replace", failing)
            patch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="no space left"):
            write_whole(path, b"new and longer")
    assert path.read_bytes() == b"old"
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def refused(*_: Any) -> None:
    raise OSError(errno.EPERM, "no hard links here")


@pytest.mark.parametrize("links", [True, False])
def test_a_name_is_taken_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", refused)
    path = tmp_path / "new.txt"
    write_whole(path, "größer", overwrite=False)
    with pytest.raises(FileExistsError) as caught:
        write_whole(path, "second", overwrite=False)
    assert str(caught.value) == f"{str(path)!r} exists already, and nothing is overwritten"
    assert path.read_bytes() == "größer".encode() and list(tmp_path.iterdir()) == [path]
    write_whole(path, "third")
    assert path.read_text() == "third" and list(tmp_path.iterdir()) == [path]
