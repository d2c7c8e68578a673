"""The index of runs and how each ended, from JSON files alone: nothing heavy is imported.

``run.json`` says whether a run is still going, and ``log.jsonl`` why it is not.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superfednas.common.damage import DAMAGE, loads, read_object
from superfednas.records.refusals import Refusal, known

RUNS = "~/.superfednas/runs"
RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
STATUSES = (RUNNING, FINISHED, FAILED, INTERRUPTED)


def newest_first() -> list[Path]:
    """Return the run folders in :data:`RUNS`, without those whose ``run.json`` is damaged."""
    started = {}
    for path in Path(RUNS).expanduser().glob("*/run.json"):
        with contextlib.suppress(*DAMAGE):
            started[path.parent] = str(read_object(path).get("started", ""))
    return sorted(started, key=lambda folder: (started[folder], folder.name), reverse=True)


def status_of(run: Path) -> tuple[str, int]:
    """Return a run's status and its last round with a checkpoint; empty and 0 if it is damaged.

    Round 0 means that there are only the initial weights.
    """
    try:
        info = info_of(run)
        return str(info["status"]), int(info["round"])
    except DAMAGE:
        return "", 0


def info_of(run: Path) -> dict[str, Any]:
    """Return what a run's ``run.json`` holds; nothing if it is missing or damaged."""
    try:
        return read_object(run / "run.json")
    except DAMAGE:
        return {}


def came_to_nothing(run: Path) -> bool:
    """Return whether a run ended before it had trained anything."""
    status, done = status_of(run)
    return status in (FAILED, INTERRUPTED) and done == 0


@dataclass(frozen=True)
class Failure:
    """Why a run failed, as its log says.

    Parameters
    ----------
    text
        For people; empty where the log does not say.
    refusal, causes
        Its code and the codes of what led to it, where they have some.
    """

    text: str = ""
    refusal: Refusal | None = None
    causes: tuple[Refusal, ...] = ()


def failure_of(run: Path) -> Failure:
    """Return why a run failed; nothing where its log does not say."""
    events = [row for row in _events(run) if row.get("event") == FAILED]
    if not events:
        return Failure()
    last = events[-1]
    return Failure(str(last.get("text", "")), known(last.get("refusal")), codes_in(last))


def codes_in(event: Mapping[str, Any]) -> tuple[Refusal, ...]:
    """Return the codes of an event's causes that this version knows."""
    causes = event.get("causes")
    found = causes if isinstance(causes, list) else []
    return tuple(code for code in map(known, found) if code)


def describe_end(run: Path) -> str:
    """Return, in a few words, how a run ended, at which round and why."""
    status, done = status_of(run)
    where = f"after round {done}" if done else "before a trained round was kept"
    reason = failure_of(run).text if status == FAILED else ""
    how = {FAILED: "failed", INTERRUPTED: "was interrupted"}.get(status, f"is {status}")
    return f"{how} {where}" + (f" ({reason})" if reason else "")


def names_in(run: Path) -> set[str]:
    """Return the names of the nodes that have joined a run."""
    joined = (event.get("client") for event in _events(run) if event.get("event") == "joined")
    return {name for name in joined if isinstance(name, str)}


def _events(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a run's log, without a partial line."""
    with contextlib.suppress(OSError):
        for line in (run / "log.jsonl").read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                row = loads(line)
                if isinstance(row, dict):
                    yield row
