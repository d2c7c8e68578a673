"""A real SuperLink with a node whose SuperNode is patched: the run ends as if it had failed."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.attackers import Tried
from tests.support.bad_clients import bad_client, raising
from tests.support.hostile_federation import rounds_in
from tests.support.patched_node import SPOILS
from tests.support.processes import (
    ROOT,
    environment,
    fleet,
    flwr_run,
    free_ports,
    process,
    same_supernet,
)
from tests.support.training import full_run

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.attack("objects pushed to a real SuperLink"),
]

VALUES = {
    "rounds": len(SPOILS),
    "clients-per-round": 3,
    "min-nodes": 3,
    "max-failures": 0,
    "local-steps": 1,
    "batch-size": 8,
    "evaluate-every": 0,
    "seed": 3,
    "device": "cpu",
}
NODE = (sys.executable, "-P", "-m", "superfednas.cli", "node")


def test_a_patched_node_ends_no_run_and_touches_no_weight(tmp_path: Path, tried: Tried) -> None:
    env = environment(tmp_path)
    (port,) = free_ports(1)
    attacked, whole = tmp_path / "attacked", tmp_path / "whole"
    with fleet(tmp_path, env, 2, NODE, parts=3) as machines:
        hostile = [
            *(sys.executable, "-m", "tests.support.patched_node", "0.2", "--insecure"),
            f"--superlink={machines.address}",
            f"--clientappio-api-address=127.0.0.1:{port}",
            "--node-config=partition-id=2 num-partitions=3",
        ]
        log = tmp_path / "hostile.log"
        with process(hostile, env | {"PYTHONPATH": str(ROOT)}, tmp_path, log):
            said = flwr_run(tmp_path, env, VALUES | {"run-dir": str(attacked)}, 300)
    assert log.read_text().count("spoilt: ") >= len(SPOILS), log.read_text()[-2000:] + said[-2000:]
    every = range(1, len(SPOILS) + 1)
    full_run(whole, VALUES, bad_client(raising, every, "2"), clients=3)
    assert same_supernet(attacked, whole)
    codes = Counter(
        client["refusal"]
        for row in rounds_in(attacked)
        for client in row["clients"]
        if not client["accepted"]
    )
    assert sum(codes.values()) == len(SPOILS)
    assert {c["client"] for r in rounds_in(attacked) for c in r["clients"] if c["refusal"]} == {"2"}
    assert {"too-far", "not-finite", "unreadable"} <= codes.keys()
    tried("objects pushed to a real SuperLink", len(SPOILS), named=dict(codes))
