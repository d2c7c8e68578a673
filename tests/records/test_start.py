"""Starts that a kill has ended at once: the next one begins anew, or says what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from superfednas.records.folder import BeingWrittenError, RunFolder, RunFolderError
from superfednas.records.start import barely_begun
from superfednas.server.app import prepare
from tests.support.training import BASE, full_run

INFO = {"format": 1, "settings": {}, "status": "running", "round": 0, "started": ""}


def no_info(run: Path) -> None:
    """Do nothing: there are folders alone."""


def torn_info(run: Path) -> None:
    (run / "run.json.1-aa.part").write_text('{"form')


def info(run: Path) -> None:
    (run / "run.json").write_text(json.dumps(INFO))
    (run / ".lock").touch()
    (run / "log.jsonl").write_text("{}\n")


def torn_checkpoint(run: Path) -> None:
    info(run)
    (run / "checkpoints" / "round-000000.safetensors.1-aa.part").write_bytes(b"torn")


LEFT = [no_info, torn_info, info, torn_checkpoint]


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    leave: Callable[[Path], None] = request.param
    leave(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize("run", LEFT, indirect=True)
def test_a_run_that_is_kept_going_begins_anew(run: Path) -> None:
    done = full_run(run, {"keep-going": True, "rounds": 1})
    assert (done.info["status"], done.info["round"]) == ("finished", 1)
    assert not list(run.rglob("*.part"))


@pytest.mark.parametrize("run", LEFT, indirect=True)
def test_others_are_told_what_to_do(run: Path) -> None:
    assert barely_begun(run)
    with pytest.raises(RunFolderError, match="keep-going, or remove the folder"):
        RunFolder.create(str(run), {}, "resnet-tiny")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(RunFolderError):
        prepare(BASE | {"resume": str(run)})
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


@pytest.mark.parametrize("run", [info], indirect=True)
def test_a_start_that_is_still_at_work_is_left_alone(run: Path) -> None:
    with RunFolder.open(run).written("77"):
        before = (run / "run.json").read_bytes()
        with pytest.raises(BeingWrittenError) as refusal:
            RunFolder.create(str(run), {"seed": 9}, "resnet-tiny", anew=True)
        assert refusal.value.run == "77" and (run / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    "held", ["notes.txt", "supernet.safetensors", "checkpoints/round-000000.safetensors"]
)
@pytest.mark.parametrize("run", [info], indirect=True)
def test_nothing_that_holds_more_is_begun_anew(run: Path, held: str) -> None:
    (run / held).write_text("kept")
    with pytest.raises(RunFolderError, match="not empty"):
        RunFolder.create(str(run), {}, "resnet-tiny", anew=True)
    assert (run / held).read_text() == "kept"
