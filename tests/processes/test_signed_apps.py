"""A node that runs only signed apps, on a real SuperLink: who may submit, and who may not."""

import subprocess
import sys
from pathlib import Path

import pytest

from superfednas.deploy.fleet.credentials import make_credentials
from superfednas.records.folder import RunFolder
from superfednas.records.index import failure_of
from superfednas.records.refusals import Refusal
from tests.support.processes import ROOT, environment, fleet, run_config, wait_until
from tests.support.rows import lines

# Slow: it waits out every refused run.
pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.attack]
SETTINGS: dict[str, object] = {
    "rounds": 1,
    "clients-per-round": 1,
    "assignment": "random",
    "local-steps": 1,
    "evaluate-every": 0,
}
REFUSED, PATIENT = {"node-timeout": 10.0}, {"node-timeout": 90.0}


def test_a_node_runs_an_app_that_its_operator_has_signed_and_no_other(tmp_path: Path) -> None:
    env = environment(tmp_path, PYTHONPATH=str(ROOT))
    keys = make_credentials(tmp_path / "keys", ["127.0.0.1"], [], ["ada", "bob"]).folder
    trusted = tmp_path / "trusted.yaml"
    lines_of_all = (keys / "public" / "trusted.yaml").read_text().splitlines(keepends=True)
    trusted.write_text("".join(line for line in lines_of_all if line.endswith(" ada\n")))
    node = [sys.executable, "-m", "superfednas.deploy.fleet.node", "0.5"]
    with fleet(tmp_path, env, 1, [*node, f"--trusted-entities={trusted}"]) as found:
        log = tmp_path / "node0.log"
        wait_until(lambda: "SuperNode ID" in log.read_text(), 60, "the node's coming in")

        def run(name: str, more: dict[str, object], *options: str) -> int:
            command = [sys.executable, "-m", "superfednas.cli", "run", "--attempts=1"]
            command += ["--superlink", found.control, "--app", str(ROOT), *options]
            command += [
                "--run-dir",
                str(tmp_path / name),
                "--run-config",
                run_config(SETTINGS | more),
            ]
            with (tmp_path / f"{name}.log").open("w") as out:
                done = subprocess.run(
                    command, env=env, cwd=tmp_path, stdout=out, stderr=out, timeout=200
                )
            return done.returncode

        def signed(name: str) -> str:
            return f"--signing-key={keys / f'operator-{name}' / 'signing.key'}"

        assert run("unsigned", REFUSED) == 1
        assert run("bobs", REFUSED, signed("bob")) == 1
        assert "[RUN" in log.read_text() and "Sent successfully" in log.read_text()
        assert run("adas", PATIENT, signed("ada")) == 0, (tmp_path / "adas.log").read_text()[-3000:]
    for name in ("unsigned", "bobs"):
        assert "could not be verified" in (tmp_path / f"{name}.log").read_text()
        folder = RunFolder.open(tmp_path / name)
        assert failure_of(folder.path).refusal is Refusal.TOO_FEW_NODES
        left_out = (folder.path / "log.jsonl").read_text()
        assert f'"refusal": "{Refusal.INVALID_FAB}"' in left_out
    (row,) = [r for r in lines(RunFolder.open(tmp_path / "adas").rows()) if r["kind"] == "round"]
    assert [client["accepted"] for client in row["clients"]] == [True]
