"""The index of runs: which is the latest, and how a run ended."""

import json
from pathlib import Path
from typing import Any

import pytest

from superfednas.records.folder import RunFolder, RunFolderError
from superfednas.records.index import Failure, describe_end, failure_of, newest_first

RUNS = ".superfednas/runs"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / RUNS).mkdir(parents=True)
    return tmp_path / RUNS


def a_run(runs: Path, name: str, status: str, done: int, *events: Any) -> Path:
    """Make a run that was started when its name says."""
    folder = runs / name
    folder.mkdir()
    info = {"format": 1, "status": status, "round": done, "started": name}
    (folder / "run.json").write_text(json.dumps(info))
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    if events:
        (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def latest() -> str:
    return RunFolder.open("latest").path.name


@pytest.mark.parametrize(
    ("status", "done", "found"),
    [
        ("running", 0, "2"),
        ("running", 4, "2"),
        ("finished", 9, "2"),
        ("failed", 1, "2"),
        ("interrupted", 1, "2"),
        ("failed", 0, "1"),
        ("interrupted", 0, "1"),
    ],
)
def test_a_run_that_came_to_nothing_is_not_the_latest(
    runs: Path, status: str, done: int, found: str
) -> None:
    a_run(runs, "1", "finished", 9)
    a_run(runs, "2", status, done)
    assert latest() == found
    assert [run.name for run in newest_first()] == ["2", "1"]  # the doctor looks at it all the same


def test_where_no_run_came_to_anything_the_newest_is_named_with_its_end(runs: Path) -> None:
    a_run(runs, "1", "failed", 0, {"event": "failed", "text": "RosterError: too few"})
    assert_no_latest(runs / "1", "failed before a trained round was kept (RosterError: too few)")
    a_run(runs, "2", "interrupted", 0, {"event": "interrupted", "text": ""})
    assert_no_latest(runs / "2", "was interrupted before a trained round was kept")
    a_run(runs, "0", "interrupted", 3)
    assert latest() == "0"


def assert_no_latest(run: Path, ended: str) -> None:
    with pytest.raises(RunFolderError) as refusal:
        RunFolder.open("latest")
    assert str(refusal.value) == (
        f"no run in ~/{RUNS} has trained anything; the newest, {str(run)!r}, {ended}"
    )


def test_a_run_whose_file_is_damaged_is_passed_by(runs: Path) -> None:
    a_run(runs, "1", "finished", 9)
    for name, text in (("3", "{"), ("4", "[]"), ("5", "")):
        a_run(runs, name, "running", 1)
        (runs / name / "run.json").write_text(text)
    (runs / "6").mkdir()
    assert latest() == "1"


def test_the_reason_is_that_of_the_last_failure(runs: Path) -> None:
    failed = [{"event": "failed", "text": text} for text in ("DataError: a", "OSError: b")]
    torn = '{"event": "failed", "te'
    run = a_run(runs, "1", "failed", 3, failed[0], torn, "7", failed[1], {"event": "waiting"})
    assert failure_of(run).text == "OSError: b"
    assert describe_end(run) == "failed after round 3 (OSError: b)"
    silent = a_run(runs, "2", "failed", 3)
    assert failure_of(silent) == Failure()
    assert describe_end(silent) == "failed after round 3"
    # It went on and has ended well: the failure is no news any more.
    assert describe_end(a_run(runs, "3", "finished", 3, failed[0])) == "is finished after round 3"
