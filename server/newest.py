"""Which runs there are and how each ended, from their JSON files alone: nothing heavy is imported.

``run.json`` says whether a run goes on, and ``log.jsonl`` why it does not.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RUNS = "~/.superfednas/runs"
RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
STATUSES = (RUNNING, FINISHED, FAILED, INTERRUPTED)


def newest_first() -> list[Path]:
    """Return the run folders in :data:`RUNS`; one whose ``run.json`` is damaged is passed by."""
    started = {}
    for path in Path(RUNS).expanduser().glob("*/run.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            started[path.parent] = str(json.loads(path.read_text()).get("started", ""))
    return sorted(started, key=lambda folder: (started[folder], folder.name), reverse=True)


def status_of(run: Path) -> tuple[str, int]:
    """Return a run's status and its last round with a checkpoint; empty and 0 where it is damaged.

    A round of 0 means that there are only the weights that the run began with.
    """
    try:
        info = json.loads((run / "run.json").read_text())
        return str(info["status"]), int(info["round"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", 0


def came_to_nothing(run: Path) -> bool:
    """Say whether a run has ended before it had trained anything."""
    status, done = status_of(run)
    return status in (FAILED, INTERRUPTED) and done == 0


def reason_of(run: Path) -> str:
    """Return why a run failed, as its log says; empty where it does not."""
    said = [str(row.get("text", "")) for row in _events(run) if row.get("event") == FAILED]
    return said[-1] if said else ""


def describe_end(run: Path) -> str:
    """Say in a few words how a run has ended, at which round and why."""
    status, done = status_of(run)
    where = f"after round {done}" if done else "before a trained round was kept"
    reason = reason_of(run) if status == FAILED else ""
    how = {FAILED: "failed", INTERRUPTED: "was interrupted"}.get(status, f"is {status}")
    return f"{how} {where}" + (f" ({reason})" if reason else "")


def _events(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a run's log; a torn line is left out."""
    with contextlib.suppress(OSError):
        for line in (run / "log.jsonl").read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row
