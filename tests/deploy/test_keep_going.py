"""A run is started again until it has ended well, and never while another may still write."""

import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from superfednas.deploy.doctor.finding import FAULT, Finding
from superfednas.deploy.fleet import keep_going as keeping
from superfednas.deploy.fleet import superlink
from superfednas.deploy.fleet.keep_going import keep_going
from superfednas.deploy.fleet.superlink import Ending, SuperLink, SuperLinkError
from superfednas.records.announcements import Announcement, Event
from superfednas.records.folder import RunFolder, RunFolderError
from tests.support.processes import ROOT, environment, wait_until

pytestmark = pytest.mark.slow

GONE = SuperLinkError("flwr list on here: no answer")
WRITING = "'/runs/a' is being written by run 77: wait for its end, or end it"


class Link:
    """A SuperLink by script: how each start ends, and how often it does not answer between."""

    address = "lab:9093"
    refuses = False

    def __init__(self, ends: list[Any], away: int = 0, lease: int = 0) -> None:
        self.ends, self.away, self.lease = list(ends), away, lease
        self.calls: list[str] = []
        self.settings: list[tuple[dict[str, Any], str]] = []
        self.followed: list[str] = []
        self.wrong: Finding | None = None

    def fault(self) -> Finding | None:
        return self.wrong

    def submit(self, app: Path, settings: dict[str, Any], run_config: str) -> str:
        self.calls.append("submit")
        if self.refuses:
            raise SuperLinkError("flwr run on here: Key 'client-per-round' is not present")
        self.settings.append((settings, run_config))
        return str(len(self.settings))

    def follow(self, run: str) -> Ending:
        self.followed.append(run)
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end if isinstance(end, Ending) else Ending(str(end))

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
    assert go(link) == ["start 1: run 1"]
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
    assert said.count("waiting for the SuperLink at lab:9093, at most 10 s") == 1
    assert "start 2 has ended: finished:failed" in said


def test_what_ends_it_for_good(go: Callable[..., list[str]]) -> None:
    with pytest.raises(SuperLinkError, match="run 1 was stopped"):
        go(Link(["finished:stopped"]))
    with pytest.raises(SuperLinkError, match="2 starts in a row"):
        go(Link(["finished:failed"] * 2), attempts=2)
    with pytest.raises(SuperLinkError, match="has not answered for 10 s"):
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
    with pytest.raises(SuperLinkError, match="has not answered for 10 s"):
        go(away)
    assert away.calls.count("submit") == 1 and away.calls.count("online") > 5


def test_what_the_app_itself_calls_wrong_is_not_tried_again(
    go: Callable[..., list[str]],
) -> None:
    few = "clients-per-round = 5: 5 nodes are needed and 2 usable are there"
    link = Link([Ending("finished:failed", few)])
    with pytest.raises(SuperLinkError, match=few):
        go(link)
    assert link.calls == ["submit"]
    # After rounds it is: the nodes may come back.
    later = Link([Ending("finished:failed", few, 4, 4), "finished:completed"])
    assert f"start 1 has ended: finished:failed: {few}" in go(later)


def test_starts_that_finish_rounds_are_not_counted(go: Callable[..., list[str]]) -> None:
    going = [Ending("finished:failed", "", n, n + 2) for n in range(20)]
    link = Link([*going, "finished:failed", "finished:completed"])
    assert "start 22: run 22" in go(link, attempts=2)


def test_starts_whose_rounds_use_no_reply_are_in_vain(go: Callable[..., list[str]]) -> None:
    """Their rounds are not announced; a run that never uses one has something wrong with it."""
    stalled = "no usable reply in 3 rounds: secure aggregation needs 3"
    with pytest.raises(SuperLinkError, match=stalled):
        go(Link([Ending("finished:failed", stalled)]))
    later = [Ending("finished:failed", stalled, 4, 4)] * 3
    with pytest.raises(SuperLinkError, match="3 starts in a row"):
        go(Link([Ending("finished:failed", "", 0, 4), *later]))


def test_a_start_that_is_at_work_is_followed(go: Callable[..., list[str]]) -> None:
    link = Link([Ending("finished:failed", WRITING, at_work="77"), "finished:completed"])
    assert go(link)[-1] == "run 77 is at work in this run folder already: it is followed"
    assert link.followed == ["1", "77"]
    # Behind a crash it is the server app that has lost its SuperLink: it is waited for.
    orphan = Link([GONE, Ending("finished:failed", WRITING, at_work="77"), "finished:completed"])
    go(orphan)
    assert orphan.followed == ["1", "2", "3"]


def test_a_certificate_that_does_not_fit_is_said_at_once(go: Callable[..., list[str]]) -> None:
    link = Link([], away=99)
    link.refuses = True
    link.wrong = Finding("TLS", FAULT, "signed by another CA", "name the right one")
    with pytest.raises(SuperLinkError, match="lab:9093: signed by another CA: name the right one"):
        go(link)
    assert link.calls == ["submit", "online"]


def test_an_ending_is_read_from_the_log() -> None:
    ended = Announcement(Event.ERROR, text="no usable reply").line()
    said = ["round  9/40 · β 0.5", Announcement(Event.ROUND, 9).line(), "error: odd", ended]
    assert Ending.read(said) == Ending("", "no usable reply", 0, 9)
    resumed = Announcement(Event.RESUMED, 7).line()
    assert Ending.read([resumed]) == Ending("", "", 7, 7)
    assert Ending.read([resumed, *said]) == Ending("", "no usable reply", 7, 9)
    at_work = Announcement(Event.ERROR, text="busy", run="77").line()
    assert Ending.read([at_work]) == Ending("", "busy", at_work="77")
    assert Ending.read(["round 8/9 · β 0.5", "error: odd", "resuming after round 3,"]) == Ending("")


class Silent(SuperLink):
    """A SuperLink whose line was cut: ``flwr`` waits without an end."""

    state = "running"

    def __init__(self, said: str = "") -> None:
        super().__init__("lab:9093")
        self.code = f"import time; print({said!r}, flush=True); time.sleep(600)"

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", self.code]

    def status(self, run: str) -> str:
        before, self.state = self.state, "finished:failed"
        return before


def test_a_line_that_was_cut_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superlink, "_ASKING", 0.5)
    monkeypatch.setattr(superlink, "_LOOKING", 0.2)
    monkeypatch.setattr(superlink, "_LAST_LINES", 2.0)
    with pytest.raises(SuperLinkError, match="flwr supernode on lab:9093: no answer"):
        Silent().online()
    ending = Silent(Announcement(Event.ERROR, text="no room on the disk").line()).follow("1")
    assert ending == Ending("finished:failed", "no room on the disk")


def test_rounds_count_although_the_superlink_went_away() -> None:
    class Dying(Silent):
        def status(self, run: str) -> str:
            if self.state == "gone":
                raise GONE
            self.state = "gone"
            return "running"

    dying = Dying()
    dying.code = f"print({Announcement(Event.ROUND, 3).line()!r})"
    assert dying.follow("1") == Ending(str(GONE), "", 0, 3)
    with pytest.raises(SuperLinkError, match="no answer"):
        dying.follow("1")


def test_a_run_folder_is_written_by_one_process(tmp_path: Path) -> None:
    """And the lock of one that was killed is free."""
    run = RunFolder.create(str(tmp_path / "run"), {}, "toy")
    code = (
        "import sys, time; from superfednas.records.folder import RunFolder\n"
        "with RunFolder.open(sys.argv[1]).written(): print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)],
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None and other.stdout.readline() == b"in\n"
    writer = f"is being written by process {other.pid} on {platform.node()}: wait"
    with pytest.raises(RunFolderError, match=writer), run.written():
        pass
    other.kill()
    other.wait()
    wait_until(lambda: _free(run), 10, "the end of the lock")
    with run.written("12"):
        assert RunFolder.open(run.path).info["writer"] == "run 12"


def _free(run: RunFolder) -> bool:
    try:
        with run.written():
            return True
    except RunFolderError:
        return False
