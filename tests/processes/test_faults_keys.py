"""A node with a key of its own, killed and started again: ``pytest -n 0 -m faults -s``."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.support.deployment import Deployment, answers, trust
from tests.support.faulty import (
    NODE,
    answered,
    lost,
    rows,
    running,
    told,
    wait_for_end,
    wait_for_round,
)
from tests.support.processes import ROOT, Fleet, environment, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
NAMES = ["kitchen", "garage", "attic"]
KILLED = "garage"


def test_a_node_is_killed_and_started_again_with_its_key(tmp_path: Path) -> None:
    """The SuperLink refuses it until its old lease has ended, and then knows it as who it was."""
    env = environment(tmp_path, PYTHONPATH=str(ROOT))
    deployment = Deployment(tmp_path, env, NAMES)
    link, credentials = deployment.superlink, deployment.credentials
    values: dict[str, object] = {"round-timeout": 20.0, "rounds": 60, "local-steps": 20}
    values |= {"assignment": "fixed", "architecture": "smallest"}
    trusted = ["--root-certificates", str(credentials.authority_certificate)]

    def node(name: str, log: str) -> contextlib.AbstractContextManager[int]:
        part = NAMES.index(name), len(NAMES)
        return deployment.node(name, *trust(credentials, name), program=NODE, part=part, log=log)

    def identity(log: str) -> str:
        found = re.search(r"SuperNode ID: (\d+)", deployment.log(log).read_text())
        return found[1] if found else ""

    with contextlib.ExitStack() as stack:
        stack.enter_context(link)
        pid = stack.enter_context(deployment.started())
        wait_until(lambda: answers(link), 120, "an answer of the SuperLink")
        for key in credentials.public_keys().values():
            assert link.register(key)
        nodes = {name: stack.enter_context(node(name, name)) for name in NAMES}
        machines = Fleet(link.address, f"127.0.0.1:{deployment.fleet}", pid, [])
        started = stack.enter_context(running(tmp_path, env, machines, values, options=trusted))
        wait_for_round(tmp_path, 2)
        os.kill(nodes[KILLED], signal.SIGKILL)
        since, before = time.monotonic(), len(rows(tmp_path))
        stack.enter_context(node(KILLED, "again"))
        wait_until(lambda: answered(rows(tmp_path)[before + 1 :], KILLED), 200, "the node's return")
        told("a node killed (-9) and started again with its key", since, "its replies meanwhile")
        done = wait_for_end(tmp_path, started)
    assert identity("again") == identity(KILLED) != ""
    assert {name for _, name in lost(done[before:])} == {KILLED}
