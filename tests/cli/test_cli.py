"""The command line: what it answers, and one sentence for every wrong input."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
import typer
from safetensors.numpy import save_file
from typer.testing import CliRunner

from superfednas import cli
from tests.support.processes import ROOT, environment
from tests.support.reference import PUBLISHED


def superfednas(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run the command with a home of its own."""
    return subprocess.run(
        [sys.executable, "-m", "superfednas.cli", *arguments],
        cwd=ROOT,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.parametrize(("depth", "ratio", "macs", "params"), PUBLISHED)
def test_cost_prints_the_papers_table(
    depth: str, ratio: float, macs: int, params: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arch = json.dumps({"depth": [int(d) for d in depth], "expand": [ratio] * 12})
    arguments = ["cost", "--space", "resnet10-26", "--norm", "group", "--arch", arch, "--json"]
    cli.app(arguments, standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert (found["macs"], found["params"]) == (macs, params)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of two rounds."""
    home = tmp_path_factory.mktemp("finished")
    done = superfednas(
        *("train", "--rounds", "2", "--clients", "3", "--clients-per-round", "2"),
        *("--local-steps", "2", "--run-dir", str(home / "run"), "--json"),
        home=home,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["run"] == str(home / "run")
    assert {rung["name"] for rung in answer["test"]} >= {"smallest", "largest", "random:0"}
    return home / "run"


@pytest.mark.slow
def test_evaluate_report_and_warm_start_of_a_finished_run(finished: Path, tmp_path: Path) -> None:
    done = superfednas(
        *("evaluate", "--run", str(finished), "--arch", "smallest", "--split", "test", "--json"),
        home=tmp_path,
    )
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    test = next(row for row in rows if row["kind"] == "test")
    assert json.loads(done.stdout)["accuracy"] == test["ladder"][0]["accuracy"]

    done = superfednas("report", "--run", str(finished), "--json", home=tmp_path)
    assert all(Path(path).stat().st_size > 1000 for path in json.loads(done.stdout).values())

    done = superfednas(
        *("train", "--from", str(finished), "--rounds", "1", "--clients", "3"),
        *("--clients-per-round", "2", "--local-steps", "1", "--run-dir", str(tmp_path / "next")),
        home=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1] == f"run folder: {tmp_path / 'next'}"


def bad_files(folder: Path, finished: Path) -> dict[str, str]:
    """Make what a user may wrongly point at."""
    (folder / "corrupt.npz").write_bytes(b"PK\x03\x04 not an archive")
    three = {f"{k}_{s}": v for s in ("train", "test") for k, v in _images(classes=3).items()}
    np.savez(folder / "three.npz", **three)
    weights = (finished / "supernet.safetensors").read_bytes()
    for name, content in (("truncated", weights[: len(weights) // 2]), ("foreign", None)):
        run = folder / name
        run.mkdir()
        (run / "run.json").write_text((finished / "run.json").read_text())
        if content is None:
            save_file({"w": np.zeros(3, np.float32)}, run / "supernet.safetensors")
        else:
            (run / "supernet.safetensors").write_bytes(content)
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("keep me")
    return {"here": str(folder), "finished": str(finished)}


def _images(classes: int) -> dict[str, np.ndarray]:
    labels = np.arange(60) % classes
    return {
        "x": np.zeros((60, 8, 8), np.uint8) + labels[:, None, None].astype(np.uint8),
        "y": labels,
    }


DEEP = '{"depth":[0,0,0,3],"expand":[[0.1],[0.1],[0.1],[0.1,0.1,0.1,0.1]]}'
BAD = {
    "key": (["train", "--roundz", "3"], ["--roundz"]),
    "range": (["train", "--lr", "-1"], ["lr = -1.0", "above 0"]),
    "choice": (["train", "--averaging", "mean"], ["averaging = 'mean'", "maxnet, overlap"]),
    "space": (["train", "--space", "resnet-huge"], ["resnet-huge", "resnet-tiny"]),
    "policy": (["train", "--assignment", "best"], ["assignment = 'best'", "tracking-sandwich"]),
    "architecture": (
        ["cost", "--space", "resnet-tiny", "--arch", '{"depth":[0,0,0,7],"expand":[]}'],
        ["expand"],
    ),
    "depth": (
        ["cost", "--space", "resnet10-26", "--arch", DEEP],
        ["depth[3] = 3", "[0, 1, 2]"],
    ),
    "missing": (["train", "--dataset", "{here}/none.npz"], ["none.npz"]),
    "corrupt": (["train", "--dataset", "{here}/corrupt.npz"], ["corrupt.npz"]),
    "classes": (["train", "--num-classes", "4"], ["num-classes = 4", "10"]),
    "channels": (["train", "--in-channels", "3"], ["in-channels = 3", "has 1"]),
    "other data": (
        ["evaluate", "--run", "{finished}", "--arch", "smallest", "--dataset", "{here}/three.npz"],
        ["classes", "3", "10"],
    ),
    "truncated": (["evaluate", "--run", "{here}/truncated", "--arch", "smallest"], ["truncated"]),
    "foreign": (["evaluate", "--run", "{here}/foreign", "--arch", "smallest"], ["no checkpoint"]),
    "no run": (["report", "--run", "{here}/full"], ["no run folder"]),
    "resume finished": (["train", "--resume", "{finished}"], ["has finished"]),
    "resume and more": (["train", "--resume", "{finished}", "--lr", "1"], ["leave out --lr"]),
    "full folder": (["train", "--run-dir", "{here}/full"], ["is not empty"]),
    "too many clients": (
        ["train", "--clients", "3", "--clients-per-round", "5"],
        ["clients-per-round = 5", "clients = 3"],
    ),
    "partition": (
        ["train", "--clients", "200", "--partition", "iid", "--min-partition-size", "50"],
        ["50"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_one_sentence_and_overwrites_nothing(
    case: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, said = BAD[case]
    places = bad_files(tmp_path, finished)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    for name, place in places.items():
        arguments = [argument.replace(f"{{{name}}}", place) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["superfednas", *arguments])
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit) as status:
        cli.main()
    assert status.value.code not in (0, None)
    stderr = capsys.readouterr().err
    for part in said:
        assert part in stderr
    if case != "key":  # said by the option parser, in its own frame
        assert stderr.startswith("error: ")
        assert len(stderr.strip().splitlines()) == 1
    assert (tmp_path / "full" / "thesis.txt").read_text() == "keep me"
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_a_wrong_setting_ends_the_process_with_status_one(tmp_path: Path) -> None:
    done = superfednas("train", "--beta-start", "1.5", home=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "error: beta-start = 1.5: beta-start must be a number above 0 and at most 1.\n"
    )
    assert done.stdout == ""


def test_the_readme_and_pyproject_tell_the_same_story() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = dict(re.findall(r"<!-- command: (\w+) -->\n```sh\n(.*)\n```", readme))
    assert set(commands) == {"run", "test"}
    assert commands["run"].split(" && ")[-1].startswith("flwr run . --stream")
    assert commands["test"].split(" && ")[-1] == "pytest"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"## {project['project']['version']} " in (ROOT / "CHANGELOG.md").read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", readme):
        assert (ROOT / link).exists(), link


@pytest.mark.slow
def test_a_flag_that_is_on_can_be_switched_off(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--rounds", "1", "--clients", "2", "--clients-per-round", "2", "--local-steps", "1"]
    options += ["--method", "fedsup", "--no-local-sandwich", "--evaluate-every", "0"]
    done = CliRunner().invoke(cli.app, ["train", *options, "--run-dir", str(run)])
    assert done.exit_code == 0, done.output
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert (settings["local-sandwich"], settings["distil"]) == (False, "off")


def test_every_verb_that_opens_what_may_name_code_can_be_told_to_trust_it() -> None:
    """A refusal names the option; the other verbs read JSON alone."""
    opens, only_json = {"run", "runs", "plan", "model", "state_dir"}, {"doctor"}
    for name, verb in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        own = verb.get_params(click.Context(verb))
        if name not in only_json and opens & {each.name for each in own}:
            assert "--trust-code" in {option for each in own for option in each.opts}, name


def test_the_methods_are_listed() -> None:
    done = CliRunner().invoke(cli.app, ["methods", "--json"])
    assert [row["name"] for row in json.loads(done.stdout)][:3] == ["maxnet", "fedavg", "fedsup"]
    said = " ".join(CliRunner().invoke(cli.app, ["methods"]).output.split())
    assert "fedrolex" in said and "arXiv" in said
