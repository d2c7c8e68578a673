"""Runs across processes, with real ones: the three ways to run, kill and resume."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import superfednas
from superfednas.nas.score.measured import Measured, ScoreBook
from superfednas.records.trained import Trained
from tests.support.processes import (
    BIN,
    CLIENTS,
    ROOT,
    SETTINGS,
    environment,
    fleet,
    flwr_run,
    processes_of,
    same_supernet,
    simulate,
    train_command,
    wait_until,
)

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of an unbroken in-process run."""
    home = tmp_path_factory.mktemp("in-process")
    command = train_command(home / "run")
    subprocess.run(command, env=environment(home), cwd=ROOT, check=True, timeout=300)
    return home / "run"


def another_app(home: Path) -> Path:
    """Return a folder whose packages have the rooms' bare names and fail when imported."""
    elsewhere = home / "another-app"
    for room in ("client", "server", "data"):
        (elsewhere / room).mkdir(parents=True)
        (elsewhere / room / "__init__.py").write_text("raise RuntimeError('the other app')\n")
    return elsewhere


def test_ray_gives_the_same_bits_beside_an_app_with_the_rooms_bare_names(
    in_process: Path, tmp_path: Path
) -> None:
    # The folder from which the local SuperLink starts comes first on the actors' path.
    elsewhere = another_app(tmp_path)
    run_dir, said = simulate(tmp_path, SETTINGS, CLIENTS, elsewhere)
    assert same_supernet(in_process, run_dir)
    assert f"run folder: {run_dir}" in said.splitlines()


@pytest.mark.parametrize(
    "supernode",
    [[str(BIN / "flower-supernode")], [sys.executable, "-m", "superfednas.cli", "node"]],
    ids=["flower-supernode", "superfednas node"],
)
def test_superlink_and_supernodes_give_the_same_bits(
    supernode: list[str], in_process: Path, tmp_path: Path
) -> None:
    # Packages of another app with the rooms' bare names are on every process's path.
    decoys, run_dir = another_app(tmp_path), tmp_path / "run"
    env = environment(tmp_path, PYTHONPATH=f"{decoys}{os.pathsep}{ROOT}")
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
            assert found.examples == expected.examples
            assert found.sums["accuracy"] == expected.sums["accuracy"]
            assert found.examples == len(data.validation)
            assert found.sums["loss"] == pytest.approx(expected.sums["loss"], rel=1e-5)
