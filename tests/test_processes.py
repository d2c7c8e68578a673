"""What crosses processes, with real ones: the three ways to run, kill and resume."""

import json
import subprocess
import sys
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
    fleet,
    flwr_run,
    free_ports,
    processes_of,
    run_config,
    same_supernet,
    train_command,
    wait_until,
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


@pytest.mark.parametrize(
    "supernode",
    [[str(BIN / "flower-supernode")], [sys.executable, "-m", "cli", "node"]],
    ids=["flower-supernode", "superfednas node"],
)
def test_superlink_and_supernodes_give_the_same_bits(
    supernode: list[str], in_process: Path, tmp_path: Path
) -> None:
    env, run_dir = environment(tmp_path, PYTHONPATH=str(ROOT)), tmp_path / "run"
    with fleet(tmp_path, env, CLIENTS, supernode):
        said = flwr_run(tmp_path, env, {**SETTINGS, "run-dir": str(run_dir)}, 500)
    assert (run_dir / "supernet.safetensors").exists(), said
    assert same_supernet(in_process, run_dir)
    wait_until(lambda: not processes_of(tmp_path), 20, "the end of all that the nodes started")


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
