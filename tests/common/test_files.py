"""Files are written whole, and where that is asked only once."""

import errno
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from superfednas.common.files import remove_parts, write_whole, written_whole
from superfednas.records.tensors import write_tensors


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


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_permissions_are_those_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    """safetensors gives its files 0600, so that nobody else could read a checkpoint."""
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "state.safetensors", {"w": torch.zeros(2)}, {})
        write_whole(tmp_path / "text", "text")
        with written_whole(tmp_path / "other") as part:
            part.unlink()
            os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path


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


@pytest.mark.parametrize("by_name", [True, False])
def test_writers_at_the_same_time_leave_what_one_of_them_wrote(
    tmp_path: Path, by_name: bool
) -> None:
    path, failed = tmp_path / "file", []
    contents = [bytes([65 + number]) * 300_000 for number in range(4)]

    def write(content: bytes) -> None:
        try:
            for _ in range(12):
                if by_name:
                    write_whole(path, content, lasting=False)
                else:
                    with written_whole(path) as part:
                        part.write_bytes(content)
                assert path.read_bytes() in contents
        except Exception as error:  # noqa: BLE001
            failed.append(error)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed
    assert path.read_bytes() in contents and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_where_asked(tmp_path: Path) -> None:
    (tmp_path / "file.1-aa.part").touch()
    (tmp_path / "file").touch()
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
