"""Faults of real machines, really done to real processes: ``pytest -n 0 -m faults -s``.

Each test ends a run all the same and prints what was lost and how long it took to go on.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support.faulty import (
    NODE,
    NODES,
    PATIENCE,
    SETTINGS,
    answered,
    lost,
    rows,
    running,
    told,
    wait_for_end,
    wait_for_round,
)
from tests.support.processes import (
    ROOT,
    end,
    environment,
    fleet,
    process,
    same_supernet,
    train_command,
    wait_until,
)

FORGOTTEN = 3  # the message that tests/support/forgetful.py loses

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def env(home: Path) -> dict[str, str]:
    return environment(home, PYTHONPATH=str(ROOT))


def unbroken(home: Path, env: dict[str, str], **settings: object) -> Path:
    """Return the run folder of the same run in one process."""
    values = {**SETTINGS, **settings, "clients": NODES}
    command = train_command(home / "unbroken", **values)
    subprocess.run(command, env=env, cwd=ROOT, check=True, timeout=PATIENCE, capture_output=True)
    return home / "unbroken"


def serving(home: Path) -> list[psutil.Process]:
    """Return the server apps of this home."""
    found = []
    for each in psutil.process_iter(["cmdline", "environ"]):
        line = " ".join(each.info["cmdline"] or ())
        if "flwr-serverapp" in line and (each.info["environ"] or {}).get("HOME") == str(home):
            found.append(each)
    return found


def test_a_node_is_killed_in_the_middle_of_a_round(home: Path, env: dict[str, str]) -> None:
    with (
        fleet(home, env, NODES, NODE) as machines,
        running(home, env, machines, {"round-timeout": 20.0}) as started,
    ):
        wait_for_round(home, 2)
        os.kill(machines.nodes[1], signal.SIGKILL)
        since, before = time.monotonic(), len(rows(home))
        wait_for_round(home, before + 2)
        told("a node killed (-9) in the middle of a round", since, "its replies")
        done = wait_for_end(home, started)
    gone = lost(done[before:])
    assert len(done) == 12 and gone and {client for _, client in gone} == {"1"}


def test_a_node_is_frozen_past_the_deadline_and_comes_back(home: Path, env: dict[str, str]) -> None:
    values: dict[str, object] = {"round-timeout": 20.0, "rounds": 60, "local-steps": 1}
    with (
        fleet(home, env, NODES, NODE) as machines,
        running(home, env, machines, values) as started,
    ):
        wait_for_round(home, 2)
        parent = psutil.Process(machines.nodes[1])
        family = [parent, *parent.children(recursive=True)]
        for each in family:
            each.suspend()
        since, before = time.monotonic(), len(rows(home))
        wait_until(lambda: lost(rows(home)[before:]), 90, "the missing reply")
        wait_for_round(home, len(rows(home)) + 1)
        told("a node frozen (SIGSTOP) past the deadline", since, "its replies")
        for each in family:
            each.resume()
        back = time.monotonic()
        frozen = len(rows(home))

        wait_until(lambda: answered(rows(home)[frozen:], "1"), 120, "the node's return")
        told("… and back (SIGCONT)", back, "nothing")
        done = wait_for_end(home, started)
    assert {client for _, client in lost(done[before:])} == {"1"}


def test_a_node_is_killed_and_started_again(home: Path, env: dict[str, str]) -> None:
    """Without authentication it has another id, while Flower still calls the old one online."""
    values: dict[str, object] = {"round-timeout": 20.0, "rounds": 80, "local-steps": 1}
    with (
        fleet(home, env, NODES, NODE) as machines,
        running(home, env, machines, values) as started,
    ):
        wait_for_round(home, 2)
        end(machines.nodes[1])
        os.kill(machines.nodes[2], signal.SIGKILL)
        again = machines.node_commands[2]
        since, before = time.monotonic(), len(rows(home))
        with process(again, env | {"NODE": "2"}, home, home / "node2-again.log"):
            wait_until(lambda: answered(rows(home)[before + 1 :], "2"), 120, "the node's return")
            told("a node killed and started again", since, "its replies meanwhile")
            wait_for_end(home, started)


def test_a_node_is_there_and_has_lost_its_message(home: Path, env: dict[str, str]) -> None:
    """As one that was killed and has its key back before the SuperLink has missed it."""
    forgetful = [sys.executable, "-m", "tests.support.forgetful"]
    with (
        fleet(home, env, NODES, forgetful) as machines,
        running(home, env, machines, {}) as started,
    ):
        wait_for_round(home, FORGOTTEN - 1)
        since = time.monotonic()
        wait_for_round(home, FORGOTTEN)
        told("a node that is there and has lost its message", since, "nothing: it is sent again")
        done = wait_for_end(home, started)
    assert not lost(done)
    assert "client 1 is there and has lost its message" in (home / "run.log").read_text()
    assert same_supernet(unbroken(home, env), home / "run")


def test_the_superlink_is_killed_and_started_again_with_its_database(
    home: Path, env: dict[str, str]
) -> None:
    options = [f"--database={home / 'state.db'}"]
    with (
        fleet(home, env, NODES, NODE, options) as machines,
        running(home, env, machines, {}) as started,
    ):
        wait_for_round(home, 3)
        link = psutil.Process(machines.superlink)
        for each in [link, *link.children(recursive=True)]:
            each.kill()
        since, before = time.monotonic(), len(rows(home))
        with process(machines.superlink_command, env, home, home / "superlink-again.log"):
            wait_for_round(home, before + 1)
            told("the SuperLink killed and started again with its database", since, "nothing")
            wait_for_end(home, started)
    assert same_supernet(unbroken(home, env), home / "run")


def test_the_server_app_is_killed(home: Path, env: dict[str, str]) -> None:
    with (
        fleet(home, env, NODES, NODE) as machines,
        running(home, env, machines, {}) as started,
    ):
        for number in (2, 5):
            wait_for_round(home, number)
            wait_until(lambda: serving(home), 60, "a server app")
            for each in serving(home):
                each.kill()
            since, before = time.monotonic(), len(rows(home))
            wait_for_round(home, before + 1)
            told("the server app killed (-9)", since, "nothing")
        wait_for_end(home, started)
    assert same_supernet(unbroken(home, env), home / "run")


def test_superfednas_run_is_killed_and_started_again(home: Path, env: dict[str, str]) -> None:
    """The run itself goes on meanwhile, and the second command follows it to its end."""
    with fleet(home, env, NODES, NODE) as machines:
        with running(home, env, machines, {"rounds": 30}) as first:
            wait_for_round(home, 2)
            first.kill()
            first.wait()
        since, before = time.monotonic(), len(rows(home))
        with running(home, env, machines, {"rounds": 30, "lr": 0.7}) as second:
            wait_for_end(home, second)
        told("superfednas run killed and started again", since, "nothing")
    log = (home / "run.log").read_text()
    assert before < 30 and "is at work in this run folder already: it is followed" in log
    assert log.count("start ") == 1
    assert same_supernet(unbroken(home, env, rounds=30), home / "run")


def test_too_few_nodes_are_said_once(home: Path, env: dict[str, str]) -> None:
    with (
        fleet(home, env, 1, NODE) as machines,
        running(home, env, machines, {"node-timeout": 5.0}) as started,
    ):
        assert started.wait(timeout=PATIENCE) == 1
    log = (home / "run.log").read_text()
    assert log.splitlines()[-1].startswith(f"error: clients-per-round = {NODES}: {NODES} nodes")
    assert log.count("start ") == 1


def test_a_run_in_one_process_is_killed_at_20_random_moments(
    home: Path, env: dict[str, str]
) -> None:
    settings: dict[str, object] = {"rounds": 40, "local-steps": 8}
    values = {**SETTINGS, **settings, "clients": NODES, "keep-going": True}
    command = [*train_command(home / "run", **values)]
    command = [part for part in command if not part.startswith("--keep-going")] + ["--keep-going"]
    rng, kills, since = np.random.default_rng(0), 0, time.monotonic()
    while kills < 20:
        here = subprocess.Popen(
            command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        before = len(rows(home))
        with contextlib.suppress(AssertionError):
            wait_until(lambda: len(rows(home)) > before, 60, "a round")  # noqa: B023
        time.sleep(float(rng.uniform(0, 0.6)))
        if here.poll() is not None:
            break
        here.kill()
        here.wait()
        kills += 1
    subprocess.run(command, env=env, cwd=ROOT, check=True, timeout=PATIENCE, capture_output=True)
    told(f"a run in one process killed at {kills} random moments", since, "nothing")
    assert kills >= 15
    assert same_supernet(unbroken(home, env, **settings), home / "run")


KINDS = {
    "1": ("raises", "battery empty"),
    "2": ("nan", "not finite"),
    "3": ("shape", "shape"),
    "4": ("architecture", "architecture"),
    "5": ("round", "round 77"),
    "6": ("oversized", "bytes"),
    "7": ("examples", "num-examples"),
    "8": ("dies", "worker"),
    "9": ("garbles", "cannot be read"),
}
MISBEHAVE = """


_fit = SubnetClient.fit
_KINDS = {kinds!r}


def _bad_fit(self, parameters, config):
    import os

    kind = _KINDS.get(self.name, ("", ""))[0]
    arrays, examples, metrics = _fit(self, parameters, config)
    if kind == "raises":
        raise RuntimeError("battery empty")
    if kind == "nan":
        arrays[0][3] = np.nan
    if kind == "shape":
        arrays[0] = arrays[0][:-1]
    if kind == "architecture":
        metrics["architecture"] = metrics["architecture"].replace("1", "2", 1)
    if kind == "round":
        metrics["round"] = 77
    if kind == "oversized":
        arrays[0] = np.tile(arrays[0], 10)
    if kind == "examples":
        examples = 10**9
    if kind == "dies":
        os._exit(3)
    return arrays, examples, metrics


SubnetClient.fit = _bad_fit
"""
# In the process that sends: the SuperLink takes it, since head and hash are right.
GARBLE = """


if os.environ.get("NODE") == "9":
    from flwr.app import MetricRecord

    MetricRecord.deflate = lambda self: b"MetricRecord  3" + bytes([0, 255, 255, 255])
"""


def test_clients_that_do_all_that_they_should_not(home: Path, env: dict[str, str]) -> None:
    app, count = home / "app", 1 + len(KINDS)
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.split():
        if not name.startswith((".editable/", "tests/", "benchmarks/", "docs/")):
            (app / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, app / name)
    client = app / "client" / "subnet_client.py"
    client.write_text(client.read_text() + MISBEHAVE.replace("{kinds!r}", repr(KINDS)))
    sending = app / "client" / "worker" / "handover.py"
    sending.write_text(sending.read_text() + GARBLE)
    values: dict[str, object] = {
        "clients-per-round": count,
        "min-nodes": count,
        "node-timeout": 240.0,
        "assignment": "random",
        "rounds": 3,
        "max-failures": 0,
    }
    since = time.monotonic()
    with (
        fleet(home, env, count, NODE) as machines,
        running(home, env, machines, values, app) as started,
    ):
        done = wait_for_end(home, started)
    told("clients that raise, answer nonsense or die", since, "their replies")
    assert len(done) == 3
    for row in done:
        reasons = {c["client"]: c["reason"] for c in row["clients"] if not c["accepted"]}
        assert "0" not in reasons
        for name, (kind, said) in KINDS.items():
            assert said in reasons[name], (kind, reasons[name])
