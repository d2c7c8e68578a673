"""The examples of docs/extend.md run as they stand there, each in under 40 lines."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, environment

EXAMPLES = dict(
    re.findall(
        r"<!-- file: (\S+) -->\n```python\n(.*?)```", (ROOT / "docs/extend.md").read_text(), re.S
    )
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder that holds the examples as files."""
    for name, text in EXAMPLES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def superfednas(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder of a user's own."""
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=folder,
        env=environment(folder) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_each_example_is_under_forty_lines() -> None:
    assert set(EXAMPLES) == {"my_space.py", "my_data.py", "my_policy.py"}
    assert all(text.count("\n") < 40 for text in EXAMPLES.values())


def test_the_example_space_keeps_the_contract_and_a_broken_one_is_named(folder: Path) -> None:
    options = ("--norm", "none", "--image-size", "8", "--in-channels", "1")
    done = superfednas(folder, "spaces", "--check", "my_space:MLPSpace", *options, "--json")
    assert done.returncode == 0, done.stderr
    assert all(not result["problem"] for result in json.loads(done.stdout))

    broken = EXAMPLES["my_space.py"].replace("layers=1 + choices[0]", "layers=3 - choices[0]")
    (folder / "broken_space.py").write_text(broken)
    done = superfednas(folder, "spaces", "--check", "broken_space:MLPSpace", *options)
    assert done.returncode == 1
    assert "FAILS  names nest" in done.stdout


def test_space_data_and_policy_of_a_users_own_train_together(folder: Path) -> None:
    done = superfednas(
        folder,
        *("train", "--rounds", "2", "--clients", "4", "--clients-per-round", "2"),
        *("--space", "my_space:MLPSpace", "--norm", "none", "--local-steps", "2"),
        *("--dataset", "my_data:upside_down", "--assignment", "my_policy:EndsThenInside"),
        *("--run-dir", str(folder / "run"), "--json"),
    )
    assert done.returncode == 0, done.stderr
    rungs = json.loads(done.stdout)["test"]
    assert [rung["examples"] for rung in rungs] == [360] * len(rungs)
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    second = next(row for row in rows if row["kind"] == "round" and row["round"] == 2)
    layers = [json.loads(client["architecture"])["layers"] for client in second["clients"]]
    assert layers == [1, 3]  # the ends of the space


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--space", "my_space:Nothing", "my_space:Nothing"),
        ("--space", "no_such_module:Space", "no_such_module"),
        ("--assignment", "my_space:MLPSpace", "is no subclass of server.assignment.Policy"),
        ("--dataset", "my_data:Nothing", "my_data:Nothing"),
    ],
)
def test_a_wrong_reference_is_one_sentence(
    folder: Path, option: str, value: str, said: str
) -> None:
    done = superfednas(folder, "train", option, value, "--run-dir", str(folder / "run"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "run").exists()
