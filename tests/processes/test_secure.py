"""Secure aggregation with real processes: a SuperLink, its nodes, one of them lost in a round."""

import json
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from superfednas.records.refusals import Refusal
from tests.support.bad_clients import bad_client, raising
from tests.support.processes import (
    BIN,
    ROOT,
    environment,
    fleet,
    run_config,
    simulate,
    wait_until,
)
from tests.support.secure import furthest
from tests.support.training import same, train

pytestmark = pytest.mark.processes
NODES, LOST = 4, "3"
BEFORE_TRAINING = 1 + 4 + 2  # answers: who it is; a round; keys and shares of the next
SETTINGS: dict[str, object] = {
    "rounds": 2,
    "clients-per-round": NODES,
    "min-nodes": NODES,
    "space": "mobilenetv1-tiny",
    "local-steps": 60,
    "batch-size": 8,
    "evaluate-every": 0,
    "seed": 3,
    "device": "cpu",
}
MORE = {"secure-aggregation": True, "secure-few": True, "round-timeout": 25.0}


def rows(run_dir: Path) -> list[dict]:
    """Return the rows of the rounds so far."""
    path = run_dir / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in found if row["kind"] == "round"]


def answers(home: Path, node: str) -> int:
    """Count what a node has answered, as its SuperLink says."""
    found = re.search(r"SuperNode ID: (\d+)", (home / f"node{node}.log").read_text())
    pushed = f"Push replies from node_id={found[1]}" if found else "?"
    return (home / "superlink.log").read_text().count(pushed)


def kill(pid: int) -> None:
    """Kill a node and all that it has started, in no order that it could notice."""
    node = psutil.Process(pid)
    for each in [node, *node.children(recursive=True)]:
        each.kill()


def test_a_node_killed_while_it_trains_is_missing_from_the_sum_and_from_nothing_else(
    tmp_path: Path,
) -> None:
    env, run_dir = environment(tmp_path), tmp_path / "run"
    supernode = [sys.executable, "-m", "superfednas.cli", "node"]
    command = [str(BIN / "flwr"), "run", str(ROOT), "dep", "--stream"]
    command += ["--run-config", run_config({**SETTINGS, **MORE, "run-dir": str(run_dir)})]
    with fleet(tmp_path, env, NODES, supernode) as there:
        running = subprocess.Popen(
            command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        wait_until(
            lambda: answers(tmp_path, LOST) >= BEFORE_TRAINING or running.poll() is not None,
            100,
            "the second round's training",
        )
        kill(there.nodes[int(LOST)])
        said, _ = running.communicate(timeout=100)
    first, second = rows(run_dir)
    assert all(client["accepted"] for client in first["clients"]), said.decode()
    missing = {c["client"]: c["refusal"] for c in second["clients"] if not c["accepted"]}
    assert missing.keys() == {LOST}, said.decode()
    assert missing[LOST] in (Refusal.NO_REPLY, Refusal.NODE_GONE)
    assert second["left_out"] == 0
    plain = train(SETTINGS, bad_client(raising, [2], [LOST]), clients=NODES)
    secure = load_file(run_dir / "supernet.safetensors")
    moved = furthest(plain.state, plain.space.init(3))
    assert furthest(plain.state, secure) < 1e-2 * moved


def test_ray_gives_the_bits_of_one_process(tmp_path: Path) -> None:
    values = {**SETTINGS, **MORE, "local-steps": 3}
    run_dir, _ = simulate(tmp_path, values, NODES, tmp_path)
    here = train(values, clients=NODES)
    assert same(here.state, load_file(run_dir / "supernet.safetensors"))
