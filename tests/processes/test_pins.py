"""A real node under settings of a curious server: scores stay, and no file is read by its path."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.processes import ROOT, environment, fleet, flwr_run

# Slow: it waits for a node on a busy machine.
pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.attack]
VALUES: dict[str, object] = {
    "rounds": 1,
    "clients-per-round": 2,
    "local-steps": 1,
    "evaluate-every": 1,
    "device": "cpu",
    "node-timeout": 60,
    "space": "mobilenetv1-tiny",
}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_node_tells_no_score_and_reads_no_path_that_a_server_names(tmp_path: Path) -> None:
    env = environment(tmp_path, PYTHONPATH=str(ROOT))
    node = [sys.executable, "-m", "superfednas.cli", "node"]
    images, labels = np.zeros((200, 8, 8), np.uint8), np.arange(200) % 10
    diary = tmp_path / "diary.npz"
    np.savez(diary, x_train=images, y_train=labels, x_test=images, y_test=labels)
    with fleet(tmp_path, env, 2, node, node_config="tell-scores=false"):
        said = flwr_run(tmp_path, env, {**VALUES, "run-dir": str(tmp_path / "a")}, 150)
        asked = {
            **VALUES,
            "run-dir": str(tmp_path / "b"),
            "dataset": str(diary),
            "node-timeout": 15,
        }
        refused = flwr_run(tmp_path, env, asked, 150)
    (row,) = [row for row in rows(tmp_path / "a" / "metrics.jsonl") if row["kind"] == "round"]
    assert [client["accepted"] for client in row["clients"]] == [True, True], said
    assert all(client["loss"] is None for client in row["clients"])
    left = [row for row in rows(tmp_path / "b" / "log.jsonl") if row["event"] == "left-out"]
    assert [each["refusal"] for each in left] == ["not-allowed"] * 2, refused
