"""Methods beside MaxNet with real processes: the same bits, and what is personal stays on nodes."""

import json
import sys
from pathlib import Path

import pytest

import superfednas
from superfednas.common.settings import Scalar
from superfednas.deploy.device.personal import find_personal
from superfednas.deploy.device.runtime.model import load
from superfednas.records.folder import RunFolder
from superfednas.server.errands.personalise import personal_files
from tests.support.processes import ROOT, environment, fleet, flwr_run, same_supernet

pytestmark = pytest.mark.processes
NODES = 2
VALUES: dict[str, Scalar] = {
    "rounds": 2,
    "clients-per-round": NODES,
    "local-steps": 2,
    "evaluate-every": 0,
    "device": "cpu",
    "seed": 5,
}


def test_methods_and_personalisation_on_nodes(tmp_path: Path) -> None:
    env = environment(tmp_path, PYTHONPATH=str(ROOT))
    state, runs, said = str(tmp_path / "state{node}"), {}, {}
    node = [sys.executable, "-m", "superfednas.cli", "node"]
    with fleet(tmp_path, env, NODES, node, node_config=f'state-dir="{state}"'):
        # Several subnets a step, and windows that roll: what other methods share with one of them.
        for method in ("fedsup", "fedrolex"):
            runs[method] = tmp_path / method
            values = {**VALUES, "method": method, "run-dir": str(runs[method])}
            said[method] = flwr_run(tmp_path, env, values, 150)
        weights = (runs["fedsup"] / "supernet.safetensors").read_bytes()
        ask = {"personalise-run": str(runs["fedsup"]), "personal-subnets": "widths"}
        said["personal"] = flwr_run(tmp_path, env, {**ask, "fine-tune-epochs": 1}, 150)
    for method, folder in runs.items():
        assert (folder / "supernet.safetensors").exists(), said[method]
        here = {key.replace("-", "_"): value for key, value in VALUES.items()}
        alone = superfednas.train(
            method=method, clients=NODES, run_dir=str(tmp_path / f"{method}-here"), **here
        )
        assert same_supernet(folder, alone.path)
    assert (runs["fedsup"] / "supernet.safetensors").read_bytes() == weights
    (report,) = personal_files(RunFolder.open(runs["fedsup"]))
    found = {row["name"]: row for row in json.loads(report.read_text())["subnets"]}
    assert sorted(found["largest"]["clients"]) == ["0", "1"], said["personal"]
    for number in range(NODES):
        kept = find_personal(state.format(node=number), "largest")
        both = [kept.note["initial"], kept.note["personalised"]]
        assert both == found["largest"]["clients"][str(number)]
    written = superfednas.export_personal(state.format(node=0), tmp_path / "mine.onnx")
    assert load(str(written.path)).card.source["part"] == "head"
