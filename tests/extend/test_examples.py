"""The examples of docs/extend.md run as they stand there, each in under 40 lines."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

import superfednas as api
from superfednas.nas.pipeline import Request
from superfednas.records.folder import RunFolder
from superfednas.records.trained import Trained
from tests.support.processes import ROOT, environment
from tests.support.rows import lines

pytestmark = pytest.mark.slow

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
        [sys.executable, "-m", "superfednas.cli", *arguments],
        cwd=folder,
        env=environment(folder) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_each_example_is_under_forty_lines() -> None:
    names = ("space", "data", "task", "policy", "method", "cost")
    assert set(EXAMPLES) == {f"my_{name}.py" for name in names}
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


def test_a_task_of_a_users_own_is_trained_and_searched_for_its_least_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    run = api.train(
        dataset="my_task:heat",
        space="my_space:MLPSpace",
        norm="none",
        partition="iid",
        rounds=2,
        clients=3,
        clients_per_round=3,
        lr=0.02,
        run_dir=str(folder / "run"),
    )
    test = [row for row in lines(run.rows()) if row["kind"] == "test"][-1]
    assert all(rung["examples"] == 100 and rung["squared-error"] > 0 for rung in test["ladder"])
    plan, _ = api.search(run.path, {"params": 1500}, request=Request(score="measured"))
    trained = Trained.open(run.path)
    space, metric = trained.space, trained.space.task.metrics[0]
    archs = map(space.decode, itertools.product(*map(range, space.genes)))
    fitting = [arch for arch in archs if space.params(arch) <= 1500]
    errors = [found.value(metric) for found in trained.measured().measure(fitting)]
    assert len(errors) > 1 and plan.chosen.score == min(errors)


def test_a_method_of_a_users_own_hears_what_came_of_its_orders(folder: Path) -> None:
    done = superfednas(
        folder,
        *("train", "--rounds", "4", "--clients", "3", "--clients-per-round", "3"),
        *("--method", "my_method:SlowDown", "--local-steps", "2", "--lr", "0.4"),
        *("--run-dir", str(folder / "run"), "--evaluate-every", "0"),
    )
    assert done.returncode == 0, done.stderr
    run = RunFolder.open(folder / "run")
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    losses = [
        fmean(client["loss"] for client in row["clients"]) for row in rows if row["kind"] == "round"
    ]
    rises = sum(later > before for before, later in itertools.pairwise(losses))
    assert run.latest().memory["method"] == {"rate": 0.4 / 2**rises, "last": losses[-1]}


def test_a_cost_of_a_users_own_is_a_limit(folder: Path) -> None:
    space = ("--space", "resnet-tiny", "--image-size", "8", "--in-channels", "1")
    options = ("search", *space, "--num-classes", "10", "--score", "macs", "--json")
    limited = ("--costs", "my_cost:Energy", "--max-energy", "4e-4")
    done = superfednas(folder, *options, *limited, "--out", "limited.json")
    assert done.returncode == 0, done.stderr
    costs = json.loads(done.stdout)["chosen"]["costs"]
    assert 0 < costs["energy"] <= 4e-4
    free = json.loads(superfednas(folder, *options, "--out", "free.json").stdout)
    assert free["chosen"]["costs"]["macs"] > costs["macs"]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--space", "my_space:Nothing", "my_space:Nothing"),
        ("--space", "no_such_module:Space", "no_such_module"),
        (
            "--assignment",
            "my_space:MLPSpace",
            "is no subclass of superfednas.server.assign.policies.Policy",
        ),
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
