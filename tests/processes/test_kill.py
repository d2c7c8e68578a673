"""Killed and resumed, with real processes, a run ends as an unbroken one does."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.processes import ROOT, environment, same_supernet, train_command, wait_until

pytestmark = pytest.mark.processes


def rounds_done(run_dir: Path) -> int:
    """Count the finished rounds in a run's metrics."""
    path = run_dir / "metrics.jsonl"
    return path.read_text().count('"kind": "round"') if path.exists() else 0


def test_killed_in_the_middle_of_rounds_and_resumed_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    settings = {"rounds": 5, "local-steps": 12, "evaluate-every": 3}
    env = environment(tmp_path)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(train_command(whole, **settings), env=env, cwd=ROOT, check=True, timeout=300)

    command = train_command(broken, **settings)
    for kill_in_round in (2, 4):
        running = subprocess.Popen(
            command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        wait_until(lambda: rounds_done(broken) >= kill_in_round - 1, 200, "the round")  # noqa: B023
        time.sleep(0.15)  # some of the next round's clients have trained
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert not (broken / "supernet.safetensors").exists(), "killed too late to show anything"
        command = [sys.executable, "-m", "superfednas.cli", "train", f"--resume={broken}"]
    # A torn line, as a kill in the middle of a write leaves it.
    with (broken / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"kind": "round", "rou')
    subprocess.run(command, env=env, cwd=ROOT, check=True, timeout=300)
    assert same_supernet(whole, broken)
    assert comparable(whole) == comparable(broken)


def comparable(run_dir: Path) -> list[dict]:
    """Return the metrics without what a clock says."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds", None)
        for client in row["clients"] if row["kind"] == "round" else ():
            client.pop("seconds", None)
    return rows
