"""A run on real processes that a test harms: keep it going, read its rounds, tell what was lost."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.processes import ROOT, Fleet, end, run_config, wait_until

NODE = (sys.executable, "-m", "superfednas.cli", "node")
NODES = 3
PATIENCE = 300.0
SETTINGS: dict[str, object] = {
    "rounds": 12,
    "clients-per-round": NODES,
    "min-nodes": NODES,
    "local-steps": 2,
    "seed": 5,
    "evaluate-every": 0,
    "device": "cpu",
}


@contextlib.contextmanager
def running(
    home: Path,
    env: dict[str, str],
    machines: Fleet,
    values: dict[str, object],
    app: Path = ROOT,
    options: Sequence[str] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Keep a run going on a fleet, its output in ``run.log``."""
    command = [
        sys.executable,
        "-m",
        "superfednas.cli",
        "run",
        "--superlink",
        machines.control,
        *options,
    ]
    command += ["--run-dir", str(home / "run"), "--app", str(app)]
    command += ["--run-config", run_config({**SETTINGS, **values})]
    with (home / "run.log").open("w") as log:
        started = subprocess.Popen(command, env=env, cwd=home, stdout=log, stderr=log)
    try:
        yield started
    finally:
        end(started.pid)
        started.wait(timeout=30)


def rows(home: Path) -> list[dict[str, Any]]:
    """Return the rounds that are written."""
    path = home / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [row for row in found if row["kind"] == "round"]


def wait_for_round(home: Path, number: int) -> None:
    wait_until(lambda: len(rows(home)) >= number, PATIENCE, f"round {number}")


def wait_for_end(home: Path, started: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    """Wait for the run's end, which must be a good one."""
    assert started.wait(timeout=PATIENCE) == 0, (home / "run.log").read_text()[-3000:]
    done = rows(home)
    assert [row["round"] for row in done] == list(range(1, len(done) + 1))
    return done


def answered(done: Sequence[dict[str, Any]], name: str) -> bool:
    """Say whether a client's reply was folded in one of these rounds."""
    return any(c["client"] == name and c["accepted"] for row in done for c in row["clients"])


def lost(done: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """Return (round, client) of every reply that was asked for and not folded."""
    return [
        (row["round"], client["client"])
        for row in done
        for client in row["clients"]
        if not client["accepted"]
    ]


def told(fault: str, since: float, gone: object) -> None:
    print(f"\n| {fault} | {time.monotonic() - since:.1f} | {gone} |", flush=True)
