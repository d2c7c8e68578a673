"""What crosses processes, with real ones: the three ways to run, kill and resume."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import superfednas
from deploy.trained import Trained
from nas.measuring import Measured, ScoreBook
from tests.processes import (
    BIN,
    CLIENTS,
    ROOT,
    SETTINGS,
    environment,
    free_ports,
    process,
    run_config,
    same_supernet,
    train_command,
)

pytestmark = pytest.mark.processes
# Ray gives its own server 30 s to start, which a busy machine with cold files can exceed.
RAY_ATTEMPTS, RAY_DID_NOT_START = 3, "Timed out waiting for file"


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


@contextlib.contextmanager
def fleet(home: Path, env: dict[str, str], nodes: int) -> Iterator[None]:
    """Run a SuperLink, which ``flwr`` knows as ``dep``, and supernodes that share a data set."""
    serverappio, fleet_port, control, *clientappio = free_ports(3 + nodes)
    (home / "flwr").mkdir()
    (home / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "dep"\n\n[superlink.dep]\naddress = "127.0.0.1:{control}"\n'
        "insecure = true\n"
    )
    superlink = [
        str(BIN / "flower-superlink"),
        "--insecure",
        f"--serverappio-api-address=127.0.0.1:{serverappio}",
        f"--fleet-api-address=127.0.0.1:{fleet_port}",
        f"--control-api-address=127.0.0.1:{control}",
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(process(superlink, env, home, home / "superlink.log"))
        for number, port in enumerate(clientappio):
            node = [
                str(BIN / "flower-supernode"),
                "--insecure",
                f"--superlink=127.0.0.1:{fleet_port}",
                f"--clientappio-api-address=127.0.0.1:{port}",
                f"--node-config=partition-id={number} num-partitions={nodes}",
            ]
            stack.enter_context(process(node, env, home, home / f"node{number}.log"))
        yield


def flwr_run(home: Path, env: dict[str, str], config: dict[str, object], seconds: float) -> str:
    """Run the app on a :func:`fleet` and return what it said."""
    command = [str(BIN / "flwr"), "run", str(ROOT), "dep", "--stream"]
    done = subprocess.run(
        [*command, "--run-config", run_config(config)],
        env=env,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    return done.stdout + done.stderr


def test_superlink_and_supernodes_give_the_same_bits(in_process: Path, tmp_path: Path) -> None:
    env, run_dir = environment(tmp_path), tmp_path / "run"
    with fleet(tmp_path, env, CLIENTS):
        said = flwr_run(tmp_path, env, {**SETTINGS, "run-dir": str(run_dir)}, 500)
    assert (run_dir / "supernet.safetensors").exists(), said
    assert same_supernet(in_process, run_dir)


def test_supernodes_score_what_one_would_count_on_the_pooled_images(tmp_path: Path) -> None:
    runs = [
        superfednas.train(
            rounds=1,
            clients=2,
            clients_per_round=2,
            assignment="random",
            local_steps=2,
            evaluate_every=0,
            device="cpu",
            norm=norm,
            run_dir=str(tmp_path / norm),
        )
        for norm in ("none", "group")
    ]
    env = environment(tmp_path)
    with fleet(tmp_path, env, 2):
        said = [
            flwr_run(tmp_path, env, {"score-run": str(run.path), "score-subnets": 8}, 150)
            for run in runs
        ]
    for run, text in zip(runs, said, strict=True):
        trained = Trained.open(run.path)
        path = trained.score_file("nodes")
        assert f"scores: {path}" in text.splitlines(), text
        data = trained.data
        central = Measured(trained.space, trained.state, data, data.validation)
        book = ScoreBook.open(path)
        assert len(book) == 8
        for arch, found in book.items():
            (expected,) = central.measure([arch])
            assert (found.correct, found.examples) == (expected.correct, expected.examples)
            assert found.examples == len(data.validation)
            assert found.loss == pytest.approx(expected.loss, rel=1e-5)
