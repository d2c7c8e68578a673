"""The container demo from end to end: build, up, the runner's exit status, the report, down.

Not part of the ordinary run: ``pytest -n 0 -m containers -s tests/deploy/test_containers.py``.
COMPOSE names the command where it is not ``docker compose`` or ``podman compose``.
"""

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from superfednas.nas.plan import Plan
from tests.support.compose import PLAIN, TLS
from tests.support.processes import ROOT

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3600)]
BUDGETS = {"sensor": 600_000, "phone": 1_200_000, "hub": 2_090_880}
KEY = "BEGIN [A-Z ]*PRIVATE KEY"


def compose_command() -> list[str]:
    """Return the compose command that works here, or skip."""
    if given := os.environ.get("COMPOSE"):
        return shlex.split(given)
    for engine in ("docker", "podman"):
        checks = ([engine, "info"], [engine, "compose", "version"])
        if shutil.which(engine) and not any(
            subprocess.run(check, capture_output=True).returncode for check in checks
        ):
            return [engine, "compose"]
    pytest.skip("no container engine with compose answers here (docker, podman; or set COMPOSE)")


class Compose:
    """A project of the demo, with a folder for its results."""

    def __init__(self, files: list[str], out: Path) -> None:
        self.command = compose_command()
        for file in files:
            self.command += ["-f", file]
        self.env = os.environ | {"DEMO": str(out), "COMPOSE_PROJECT_NAME": f"demo{len(files)}"}

    def __call__(self, *arguments: str, may_fail: bool = False) -> subprocess.CompletedProcess[str]:
        started = time.monotonic()
        done = subprocess.run(
            [*self.command, *arguments],
            cwd=ROOT,
            env=self.env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        seconds = time.monotonic() - started
        print(f"+ {' '.join(arguments)}: status {done.returncode}, {seconds:.0f} s", flush=True)
        assert may_fail or done.returncode == 0, done.stdout
        return done


@pytest.fixture(params=[PLAIN, TLS], ids=["plain", "tls"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Compose]:
    if "containers" not in request.config.getoption("markexpr"):
        pytest.skip("builds images: only by -m containers")
    (tmp_path / "demo").mkdir()
    compose = Compose(request.param, tmp_path / "demo")
    compose("config")
    compose("build")
    try:
        yield compose
    finally:
        compose("down", "-v", may_fail=True)


def test_the_demo_runs_to_its_report(project: Compose, tmp_path: Path) -> None:
    project("up", "-d")
    ended = project("wait", "runner", may_fail=True)
    logs = project("logs").stdout
    print(project("logs", "runner").stdout)
    assert ended.returncode == 0, logs
    events = [
        json.loads(line[line.index("{") :]) for line in logs.splitlines() if '"event"' in line
    ]
    assert [event["event"] for event in events if event["event"] != "verb"] == [
        *("nodes", "submitted", "trained", "done")
    ]
    (out,) = (tmp_path / "demo").iterdir()
    assert (out / "report" / "report.html").stat().st_size > 10_000
    assert (out / "subnet.onnx").stat().st_size > 10_000
    assert Plan.load(out / "plan-001.json").chosen.costs["macs"] <= 1e6
    assert json.loads((out / "run.json").read_text())["status"] == "finished"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    most = dict.fromkeys(BUDGETS, 0)
    for row in rows:
        for client in row.get("clients", ()):
            assert client["accepted"], client
            most[client["client"]] = max(most[client["client"]], client["macs"])
    assert most.keys() == BUDGETS.keys()
    assert all(0 < most[name] <= BUDGETS[name] for name in BUDGETS), most

    assert "PRIVATE KEY" not in logs
    # grep ends with 1 where it finds nothing
    searched = ("grep", "-rlE", KEY, "/app", "/home", "/runs")
    assert project("exec", "superlink", *searched, may_fail=True).returncode == 1
    assert project("exec", "hub", "id", "-u").stdout.split()[-1] == "1000"
    for port, reached in ((9091, False), (9092, True), (9093, False)):
        code = f"import socket; socket.create_connection(('superlink', {port}), 5)"
        tried = project("exec", "hub", "python", "-c", code, may_fail=True)
        assert (tried.returncode == 0) == reached, port
    if "docker-compose.tls.yml" in project.command:
        keys = project("exec", "superlink", "stat", "-c", "%a %n", "/credentials/server.key")
        assert keys.stdout.splitlines()[-1] == "600 /credentials/server.key"
        held = project("exec", "hub", "ls", "/credentials").stdout.split()
        assert held[-2:] == ["ca.crt", "node.key"]


@pytest.mark.parametrize("project", [PLAIN], indirect=True)
def test_the_runner_fails_with_the_run(project: Compose) -> None:
    project.env["ROUNDS"] = "0"  # which the app refuses, while flwr run exits with status 0
    project("up", "-d")
    assert project("wait", "runner", may_fail=True).returncode == 1
    assert "finished:failed" in project("logs", "runner").stdout
