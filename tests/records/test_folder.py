"""The run folder: what is written is read back, and whatever is damaged is named, never used."""

import datetime
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from superfednas.common.digest import digest
from superfednas.records import folder, start
from superfednas.records.checkpoint import Checkpoint
from superfednas.records.folder import FORMAT, RunFolder, RunFolderError
from superfednas.records.rows import ClientRow, EvaluationRow, RoundRow, Row, SummaryRow
from superfednas.records.tensors import read_tensors, write_tensors
from superfednas.supernet import State

STATE = {
    "b": torch.tensor([[1.5, -0.0], [float("nan"), 1e-42]]),
    "a": torch.tensor(3.25),
    "empty": torch.empty(0, 4),
    "half": torch.tensor([0.1], dtype=torch.bfloat16),
}
MEMORY = {"policy": {"largest": {"10": 2, "küche": 1}, "smallest": {}}}


def new_run(folder: Path) -> RunFolder:
    return RunFolder.create(str(folder / "run"), {"rounds": 3, "seed": 1}, "resnet-tiny")


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and raw(a[n]) == raw(b[n]) for n in a
    )


def file_part(path: Path, tmp: Path) -> str:
    """Give a file's path as a message shows it."""
    assert path.is_relative_to(tmp)
    return re.escape(str(path))


# Folder and metrics


def test_create_then_open_gives_the_same_settings(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    again = RunFolder.open(run.path)
    assert again.settings == {"rounds": 3, "seed": 1}
    assert again.info == run.info
    assert again.info["format"] == 1
    assert again.info["status"] == "running"
    assert {"python", "torch", "flwr"} <= again.info["versions"].keys()


@pytest.mark.parametrize("inside", ["run.json", "notes.txt"])
def test_nothing_is_ever_overwritten(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / inside).write_text("mine")
    with pytest.raises(RunFolderError, match=file_part(folder, tmp_path)):
        new_run(tmp_path)
    assert (folder / inside).read_text() == "mine"
    assert [path.name for path in folder.iterdir()] == [inside]


def test_a_file_in_the_folders_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunFolderError, match="not empty"):
        new_run(tmp_path)
    assert (tmp_path / "run").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert new_run(tmp_path).path == (tmp_path / "run").resolve()


def test_default_folders_never_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(start.time, "strftime", lambda *_: "now")
    found = [RunFolder.create("", {}, "my.module:Space").path for _ in range(3)]
    assert len(set(found)) == 3
    assert all(path.is_relative_to(tmp_path / ".superfednas" / "runs") for path in found)
    assert all(":" not in path.name and path.name.startswith("now-my.module.Sp") for path in found)


def test_rows_are_what_was_appended(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert run.rows() == []
    rows = [RoundRow(k, clients=(ClientRow("β\u2028\n"),)) for k in range(3)]
    for row in rows:
        run.append(row)
    assert run.rows() == rows
    with pytest.raises(ValueError):
        run.append(RoundRow(4, lr=float("nan")))
    assert run.rows() == rows


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_a_torn_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    run = new_run(tmp_path)
    for k in range(3):
        run.append(RoundRow(k))
    metrics = run.path / "metrics.jsonl"
    text = metrics.read_text()
    metrics.write_text(text[: -1 - cut])
    assert [row.round for row in run.rows()] == [0, 1]


def test_a_damaged_middle_line_is_named(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    for k in range(3):
        run.append(RoundRow(k))
    metrics = run.path / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([lines[0], lines[1][:-4], lines[2]]) + "\n")
    with pytest.raises(RunFolderError, match=file_part(metrics, tmp_path) + r".*line 2"):
        run.rows()


def test_forget_after_drops_later_rounds_end_rows_and_a_torn_line(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    rows: list[Row] = []
    for k in range(1, 4):
        rows += [RoundRow(k), EvaluationRow("evaluation", k)]
    for row in [*rows, EvaluationRow("test", 1), SummaryRow(2)]:
        run.append(row)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "round", "rou')
    run.forget_after(2)
    assert run.rows() == rows[:4]
    run.append(RoundRow(3))
    assert run.rows() == [*rows[:4], RoundRow(3)]


def test_an_event_behind_a_torn_line_stands_on_a_line_of_its_own(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    log = run.path / "log.jsonl"
    run.log({"event": "refused", "text": "β\udc80\n"})  # strangers' texts hold anything
    log.write_bytes(log.read_bytes() + b'{"event": "to')
    run.log({"event": "resumed"})
    run.log({"event": "finished"})
    first, torn, *others = log.read_text().splitlines()
    found = [json.loads(line) for line in (first, *others)]
    assert torn == '{"event": "to'
    assert [row["event"] for row in found] == ["refused", "resumed", "finished"]
    assert found[0]["text"] == "β\udc80\n"
    times = [datetime.datetime.fromisoformat(row["time"]) for row in found]
    assert times == sorted(times) and all(time.utcoffset() is not None for time in times)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no run.json"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("[" * 10_000, "cannot be read"),
        ('{"format": 1, "settings": []}', "cannot be read"),
        ('{"format": 1, "round": 1e400}', "cannot be read"),
        ('{"format": 1, "ladder": {"a": 1}}', "cannot be read"),
        ('{"format": 2}', "format 2"),
        ('{"settings": {}}', "format None"),
    ],
)
def test_what_is_no_run_folder_is_refused_by_name(
    tmp_path: Path, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunFolderError, match=re.escape(str(tmp_path)) + ".*" + said):
        RunFolder.open(tmp_path)


# Checkpoints


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.checkpoint(Checkpoint(4, STATE, MEMORY), keep=2)
    point = RunFolder.open(run.path).latest()
    assert point.round == 4
    assert point.memory == MEMORY
    assert same(point.state, STATE)
    assert RunFolder.open(run.path).info["round"] == 4


def test_a_checkpoint_is_written_while_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, go, memory = new_run(tmp_path), threading.Event(), {"policy": {"largest": {"3": 1}}}

    def slow(path: Path, tensors: State, about: str) -> None:
        assert go.wait(60)
        write_tensors(path, tensors, about)

    monkeypatch.setattr(folder, "write_tensors", slow)
    run.begin_checkpoint(Checkpoint(1, STATE, memory), 2)
    memory["policy"]["largest"]["3"] = 2  # what is remembered is that of the beginning
    assert not list((run.path / "checkpoints").iterdir())
    go.set()
    run.settle()
    assert run.latest().memory == {"policy": {"largest": {"3": 1}}}
    assert RunFolder.open(run.path).info["round"] == 1


def test_what_stops_a_checkpoint_is_raised_by_whoever_waits_for_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path)

    def full(*given: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(folder, "write_tensors", full)
    run.begin_checkpoint(Checkpoint(1, STATE, MEMORY), 1)
    with pytest.raises(OSError, match="no space left"):
        run.settle()
    run.settle()
    monkeypatch.undo()
    run.checkpoint(Checkpoint(2, STATE, MEMORY), 1)
    assert run.latest().round == 2


def test_checkpoints_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They had a SHA-256 in place of the faster checksum."""
    path, about = tmp_path / "old.safetensors", json.dumps({"round": 3, "memory": MEMORY})
    for sha, whole in ((digest(STATE, about), True), (digest(STATE, about + " "), False)):
        note = {"about": about, "format": FORMAT, "sha256": sha}
        save_file(STATE, path, {"superfednas": json.dumps(note)})
        if whole:
            found, told = read_tensors(path)
            assert same(found, STATE) and told == {"round": 3, "memory": MEMORY}
        else:
            with pytest.raises(RunFolderError, match="checksum"):
                read_tensors(path)


def test_tensors_that_are_views_are_written_as_they_look(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    views = {"t": whole.t(), "cut": whole[:2, 1:3].clone()[:, :1]}
    write_tensors(tmp_path / "x.safetensors", views, {})
    found, _ = read_tensors(tmp_path / "x.safetensors")
    assert same(found, views)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_few_are_kept(tmp_path: Path, keep: int) -> None:
    run = new_run(tmp_path)
    for number in range(0, 12, 2):
        run.checkpoint(Checkpoint(number, {"w": torch.tensor([float(number)])}, {}), keep)
    names = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    expected = [f"round-{number:06d}.safetensors" for number in range(12 - 2 * keep, 12, 2)]
    assert names == expected
    assert run.latest().state["w"].item() == 10


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    with pytest.raises(RunFolderError, match=file_part(run.path, tmp_path)):
        run.latest()


def test_finish_then_weights(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.checkpoint(Checkpoint(2, {"w": torch.zeros(1)}, {}), 1)
    state, number = run.weights()
    assert (state["w"].item(), number) == (0, 2)
    run.write_supernet({"w": torch.ones(1)}, 3)
    run.finish(3)
    state, number = RunFolder.open(run.path).weights()
    assert (state["w"].item(), number) == (1, 3)
    assert RunFolder.open(run.path).info["status"] == "finished"


def no_metadata(path: Path) -> None:
    save_file({"w": torch.ones(2)}, path)


def other_metadata(path: Path) -> None:
    save_file({"w": torch.ones(2)}, path, {"format": "pt"})


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other_version(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'format\\":1', b'format\\":2'))


def pickled(path: Path) -> None:
    torch.save({"w": torch.ones(2)}, path)


@pytest.mark.parametrize(
    "spoil",
    [
        no_metadata,
        other_metadata,
        truncated,
        cut_in_the_header,
        emptied,
        flipped,
        other_version,
        pickled,
        Path.unlink,
    ],
)
def test_a_spoilt_checkpoint_is_named_in_one_sentence(
    tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    run = new_run(tmp_path)
    run.checkpoint(Checkpoint(1, STATE, MEMORY), 1)
    path = run.path / "checkpoints" / "round-000001.safetensors"
    before = path.read_bytes()
    spoil(path)
    assert not path.exists() or path.read_bytes() != before
    with pytest.raises(RunFolderError, match=file_part(path, tmp_path)) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "flip.safetensors"
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "v": torch.ones(3)}
    about = {"round": 12, "memory": {"policy": {"largest": {"3": 41}}}}
    write_tensors(path, tensors, about)
    right = path.read_bytes()
    unnoticed, unclear = [], []
    for where in range(len(right)):
        content = bytearray(right)
        content[where] ^= 1 << where % 8
        path.write_bytes(content)
        try:
            found, told = read_tensors(path)
        except RunFolderError as error:
            if str(path) not in str(error):
                unclear.append(where)
        except (ValueError, KeyError, TypeError):
            unclear.append(where)
        else:
            if not same(found, tensors) or told != about:
                unnoticed.append(where)
    assert (unnoticed, unclear) == ([], [])


def test_nothing_is_pickled(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.checkpoint(Checkpoint(1, STATE, MEMORY), 1)
    run.write_supernet(STATE, 1)
    run.finish(1)
    run.append(RoundRow(1))
    written = [path for path in run.path.rglob("*") if path.is_file()]
    assert {path.suffix for path in written} == {".json", ".jsonl", ".safetensors"}
    for path in written:
        start = path.read_bytes()[:9]
        # A pickle starts with its protocol, an archive of one with PK, a safetensors with a length.
        assert start[:1] not in (b"\x80", b"P")
        if path.suffix == ".safetensors":
            assert start[8:9] == b"{"
        else:
            json.loads(path.read_text())


# Writing whole


def failing(*_: Any, **__: Any) -> None:
    raise OSError("no space left")


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_failed_checkpoint_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    run = new_run(tmp_path)
    run.checkpoint(Checkpoint(1, STATE, MEMORY), 1)
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", failing) if stage == "fsync" else (Path, "replace", failing)))
        with pytest.raises(OSError, match="no space left"):
            run.checkpoint(Checkpoint(2, {"w": torch.ones(1)}, {}), 1)
    point = RunFolder.open(run.path).latest()
    assert point.round == 1
    assert same(point.state, STATE)
