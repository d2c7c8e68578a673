"""What crosses processes, with real ones: the three ways to run, kill and resume."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import (
    BIN,
    ROOT,
    end,
    environment,
    free_ports,
    process,
    run_config,
    wait_until,
)

pytestmark = pytest.mark.processes
CLIENTS = 4
# Ray gives its own server 30 s to start, which a busy machine with cold files can exceed.
RAY_ATTEMPTS, RAY_DID_NOT_START = 3, "Timed out waiting for file"
SETTINGS: dict[str, object] = {
    "rounds": 3,
    "clients-per-round": 3,
    "min-nodes": CLIENTS,
    "local-steps": 3,
    "seed": 7,
    "evaluate-every": 2,
    "device": "cpu",
}


def same_supernet(a: Path, b: Path) -> bool:
    """Say whether two runs ended with the same bits."""
    left, right = (load_file(path / "supernet.safetensors") for path in (a, b))
    return left.keys() == right.keys() and all(
        torch.equal(left[name].view(torch.int32), right[name].view(torch.int32)) for name in left
    )


def train_command(run_dir: Path, **settings: object) -> list[str]:
    """Return ``superfednas train`` with these settings."""
    values = {**SETTINGS, "clients": CLIENTS, "run-dir": str(run_dir), **settings}
    options = [f"--{key}={value}" for key, value in values.items()]
    return [sys.executable, "-m", "cli", "train", *options]


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of an unbroken in-process run."""
    home = tmp_path_factory.mktemp("in-process")
    command = train_command(home / "run")
    subprocess.run(command, env=environment(home), cwd=ROOT, check=True, timeout=300)
    return home / "run"


def test_ray_gives_the_same_bits_even_where_another_app_shadows_the_rooms(
    in_process: Path, tmp_path: Path
) -> None:
    # The folder from which the local SuperLink starts comes first on the actors' path.
    elsewhere = tmp_path / "another-app"
    for room in ("client", "server", "data"):
        (elsewhere / room).mkdir(parents=True)
        (elsewhere / room / "__init__.py").write_text("raise RuntimeError('the other app')\n")
    (port,) = free_ports(1)
    env = environment(tmp_path, FLWR_LOCAL_CONTROL_API_PORT=str(port))
    federation = f"num-supernodes={CLIENTS} client-resources-num-cpus=1"
    command = [str(BIN / "flwr"), "run", str(ROOT), "--stream"]
    command += ["--federation-config", federation, "--run-config"]
    try:
        for attempt in range(RAY_ATTEMPTS):
            run_dir = tmp_path / f"run{attempt}"
            done = subprocess.run(
                [*command, run_config({**SETTINGS, "run-dir": str(run_dir)})],
                env=env,
                cwd=elsewhere,
                capture_output=True,
                text=True,
                timeout=180,
            )
            if RAY_DID_NOT_START not in done.stdout + done.stderr:
                break
        assert (run_dir / "supernet.safetensors").exists(), done.stdout + done.stderr
        assert same_supernet(in_process, run_dir)
        assert f"run folder: {run_dir}" in done.stdout.splitlines()
    finally:
        stopped = subprocess.run(
            [sys.executable, "-m", "cli", "stop", "--force", "--json"],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert len(json.loads(stopped.stdout)["stopped"]) == 1


def test_superlink_and_supernodes_give_the_same_bits(in_process: Path, tmp_path: Path) -> None:
    serverappio, fleet, control, *clientappio = free_ports(3 + CLIENTS)
    env = environment(tmp_path)
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "dep"\n\n[superlink.dep]\naddress = "127.0.0.1:{control}"\n'
        "insecure = true\n"
    )
    superlink = [
        str(BIN / "flower-superlink"),
        "--insecure",
        f"--serverappio-api-address=127.0.0.1:{serverappio}",
        f"--fleet-api-address=127.0.0.1:{fleet}",
        f"--control-api-address=127.0.0.1:{control}",
    ]
    run_dir = tmp_path / "run"
    config = run_config({**SETTINGS, "run-dir": str(run_dir)})
    pids: list[int] = []
    with process(superlink, env, tmp_path, tmp_path / "superlink.log"):
        try:
            for number, port in enumerate(clientappio):
                node = [
                    str(BIN / "flower-supernode"),
                    "--insecure",
                    f"--superlink=127.0.0.1:{fleet}",
                    f"--clientappio-api-address=127.0.0.1:{port}",
                    f"--node-config=partition-id={number} num-partitions={CLIENTS}",
                ]
                with (tmp_path / f"node{number}.log").open("w") as log:
                    started = subprocess.Popen(node, env=env, cwd=tmp_path, stdout=log, stderr=log)
                pids.append(started.pid)
            done = subprocess.run(
                [str(BIN / "flwr"), "run", str(ROOT), "dep", "--stream", "--run-config", config],
                env=env,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=500,
            )
        finally:
            for pid in pids:
                end(pid)
    assert (run_dir / "supernet.safetensors").exists(), done.stdout + done.stderr
    assert same_supernet(in_process, run_dir)


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
        command = [sys.executable, "-m", "cli", "train", f"--resume={broken}"]
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
        for client in row.get("clients", ()):
            client.pop("seconds", None)
    return rows
