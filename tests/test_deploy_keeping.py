"""A run is started again until it has ended well, and never while another may still write."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy import keeping
from deploy.keeping import keep_going
from deploy.superlink import SuperLinkError
from server.run_folder import RunFolder, RunFolderError
from tests.processes import ROOT, environment, wait_until

GONE = SuperLinkError("flwr list on here: no answer")


class Link:
    """A SuperLink by script: how each start ends, and how often it does not answer between."""

    refuses = False

    def __init__(self, ends: list[Any], away: int = 0, lease: int = 0) -> None:
        self.ends, self.away, self.lease = list(ends), away, lease
        self.calls: list[str] = []
        self.settings: list[tuple[dict[str, Any], str]] = []

    def submit(self, app: Path, settings: dict[str, Any], run_config: str) -> str:
        self.calls.append("submit")
        if self.refuses:
            raise SuperLinkError("flwr run on here: Key 'client-per-round' is not present")
        self.settings.append((settings, run_config))
        return str(len(self.settings))

    def follow(self, run: str) -> str:
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return str(end)

    def online(self) -> int:
        self.calls.append("online")
        self.away -= 1
        if self.away >= 0:
            raise GONE
        return 3

    def ended(self, run: str) -> bool:
        self.calls.append("ended")
        self.lease -= 1
        return self.lease < 0


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return what keeps a scripted run going, on a clock that jumps, and gives what was said."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(keeping.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(keeping.time, "sleep", sleep)

    def run(link: Link, attempts: int = 3) -> list[str]:
        said: list[str] = []
        keep_going(
            link,  # type: ignore[arg-type]
            Path(),
            {"run-dir": "/runs/a"},
            "rounds=9",
            attempts=attempts,
            patience=10.0,
            note=said.append,
        )
        return said

    return run


def test_a_run_that_ends_well_is_started_once(go: Callable[..., list[str]]) -> None:
    link = Link(["finished:completed"])
    assert go(link) == ["start 1 of at most 3: run 1"]
    assert link.calls == ["submit"]
    assert link.settings == [({"run-dir": "/runs/a", "keep-going": True}, "rounds=9")]


def test_a_failed_run_is_started_again_once_flower_calls_it_ended(
    go: Callable[..., list[str]],
) -> None:
    link = Link([GONE, "finished:failed", "finished:completed"], away=2, lease=1)
    said = go(link)
    assert link.calls == [
        *("submit", "online", "online", "online", "ended", "ended"),
        *("submit", "online", "ended"),
        "submit",
    ]
    assert "start 1 has ended: flwr list on here: no answer" in said
    assert said.count("waiting for the SuperLink, at most 10 s") == 1
    assert "start 2 has ended: finished:failed" in said


def test_what_ends_it_for_good(go: Callable[..., list[str]]) -> None:
    with pytest.raises(SuperLinkError, match="run 1 was stopped"):
        go(Link(["finished:stopped"]))
    with pytest.raises(SuperLinkError, match="has not ended well in 2 starts"):
        go(Link(["finished:failed"] * 2), attempts=2)
    with pytest.raises(SuperLinkError, match="no answer"):
        go(Link(["finished:failed"], away=99))


def test_a_superlink_that_answers_and_refuses_is_not_asked_again(
    go: Callable[..., list[str]],
) -> None:
    link = Link([])
    link.refuses = True
    with pytest.raises(SuperLinkError, match="client-per-round"):
        go(link)
    assert link.calls == ["submit", "online"]
    away = Link([], away=99)
    away.refuses = True
    with pytest.raises(SuperLinkError, match="no answer"):
        go(away)
    assert away.calls.count("submit") == 1 and away.calls.count("online") > 5


def test_a_run_folder_is_written_by_one_process(tmp_path: Path) -> None:
    """And the lock of one that was killed is free."""
    run = RunFolder.create(str(tmp_path / "run"), {}, "toy")
    code = (
        "import sys, time; from server.run_folder import RunFolder\n"
        "with RunFolder.open(sys.argv[1]).written(): print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)],
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None and other.stdout.readline() == b"in\n"
    with pytest.raises(RunFolderError, match="is being written by another process"), run.written():
        pass
    other.kill()
    other.wait()
    wait_until(lambda: _free(run), 10, "the end of the lock")


def _free(run: RunFolder) -> bool:
    try:
        with run.written():
            return True
    except RunFolderError:
        return False
