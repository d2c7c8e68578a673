"""Every verb that shows a run's values, on tasks of a user's own: less is better, no images.

The values shown are those of the run's files; the wording of sentences is not looked at.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import superfednas
from superfednas import cli
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.deploy.device.samples import write_pictures
from superfednas.nas.plan import Plan
from superfednas.records.folder import RunFolder
from superfednas.records.rows import evaluations, last_test
from superfednas.records.trained import Trained
from superfednas.report import write_report
from superfednas.report.comparison import compare
from superfednas.report.search_points import Points
from tests.extend.test_examples import EXAMPLES
from tests.report.test_report import PNG, Page

pytestmark = pytest.mark.slow

TABLE = "tests.extend.table_task"
METRICS = {"table": "log-loss", "heat": "squared-error"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Train the task of the tests and the one of the documentation, two rounds each."""
    folder = tmp_path_factory.mktemp("verbs")
    for name in ("my_task.py", "my_space.py"):
        (folder / name).write_text(EXAMPLES[name])
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(folder))
    options = {"norm": "none", "partition": "iid", "rounds": 2, "clients": 3, "lr": 0.02}
    options |= {"clients_per_round": 3, "ladder": 3, "evaluate_every": 1}
    names = {
        "table": (f"{TABLE}:table", f"{TABLE}:SoilPerceptrons"),
        "heat": ("my_task:heat", "my_space:MLPSpace"),
    }
    for key, (dataset, space) in names.items():
        superfednas.train(dataset=dataset, space=space, run_dir=str(folder / key), **options)
    yield {key: folder / key for key in names}
    patch.undo()


def said(*arguments: object) -> Result:
    """Run the command in this process; it must end well."""
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.exception
    return done


@pytest.mark.parametrize("key", METRICS)
def test_a_report_shows_the_tasks_own_metric(runs: dict[str, Path], key: str) -> None:
    run = RunFolder.open(runs[key])
    files = write_report(run)
    assert all(files[plot].read_bytes().startswith(PNG) for plot in ("rounds", "macs"))
    page, test = Page(files["html"]), last_test(run.rows())
    assert test is not None
    found = next(table for table in page.tables if table[0][0] == "subnet")
    column = found[0].index(METRICS[key])
    shown = {line[0]: float(line[column]) for line in found[1:]}
    assert shown == {r.name: pytest.approx(r[METRICS[key]], abs=5e-4) for r in test.ladder}
    assert found[0][-1] == "examples" and "accuracy" not in page.text
    assert len({line[1] for line in found[1:]}) == len({rung.macs for rung in test.ladder})
    own = next(table for table in page.tables if table[0][0] == "client")
    assert any(METRICS[key] in heading for heading in own[0])


@pytest.mark.parametrize("key", METRICS)
def test_a_front_of_a_metric_of_which_less_is_better_falls(
    runs: dict[str, Path], key: str, tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    search = ("search", "--run", runs[key], "--pareto", "macs", "--subnets", 8, "--out", out)
    said(*search)
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == 2 and all(path.read_bytes().startswith(PNG) for path in pictures)
    plan = Plan.load(out)
    points = Points.of(plan)
    assert points.metric is not None and points.metric.name == METRICS[key]
    assert {mark.y for mark in points.measured} == {
        entry.measured[METRICS[key]] for entry in plan.measured if entry.measured
    }
    assert all(mark.error == 0 for mark in points.all)
    heights = points.steps[:, 1]
    assert (heights[1:] <= heights[:-1]).all()
    assert heights[-1] == min(mark.y for mark in points.front)
    tested = said("test", "--run", runs[key], "--plan", out).stdout
    assert "s.e." not in tested and METRICS[key] in tested


def test_the_page_tells_plans_and_their_tests(runs: dict[str, Path], tmp_path: Path) -> None:
    for score in ("macs", "measured"):
        said("search", "--run", runs["table"], "--score", score)
    said("test", "--run", runs["table"])
    page = Page(write_report(RunFolder.open(runs["table"]), tmp_path)["html"])
    result = json.loads(said("test", "--run", runs["table"], "--json").stdout)
    tested = page.tables[-2]
    column = tested[0].index("test log-loss")
    assert {line[0]: float(line[column]) for line in tested[1:]} == {
        name: pytest.approx(row["log-loss"], abs=5e-4)
        for name, row in {"chosen": result["chosen"], **result["ladder"]}.items()
    }
    assert "accuracy" not in page.text


def test_runs_are_compared_by_the_least(runs: dict[str, Path], tmp_path: Path) -> None:
    run = RunFolder.open(runs["table"])
    rungs = [rung for row in evaluations(run.rows()) for rung in row.ladder]
    losses = [rung["log-loss"] for rung in rungs if rung.name == "largest"]
    comparison = compare([run, run], ["a", "b"], "largest", None)
    assert [curve.best for curve in comparison.curves] == [min(losses)] * 2
    assert comparison.target == min(losses) and not comparison.note
    reached = comparison.curves[0].reach(comparison.target)
    assert reached is not None and reached.value == min(losses)
    given = ("compare", run.path, run.path, "--names", "a,b", "--out", tmp_path, "--json")
    found = json.loads(said(*given, "--target", 1.5).stdout)
    assert found["target"] == 1.5 and found["metric"]["name"] == "log-loss"
    assert [point["log-loss"] for point in found["runs"][0]["curve"]] == losses
    assert (tmp_path / "comparison.png").read_bytes().startswith(PNG)
    said(*given[:-1])
    with pytest.raises(ValueError, match="target"):
        compare([run], [], "largest", float("inf"))


def test_different_metrics_are_refused_and_different_data_are_noted(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    table, heat = RunFolder.open(runs["table"]), RunFolder.open(runs["heat"])
    with pytest.raises(ValueError, match="metrics"):
        compare([table, heat], [], "largest", None)
    other = RunFolder.create(str(tmp_path / "other"), {**table.settings, "dataset": "x:y"}, "s")
    for row in table.rows():
        other.append(row)
    both = said("compare", table.path, other.path)
    note = compare([table, other], [], "largest", None).note
    assert note and note in " ".join(both.stdout.split())


@pytest.mark.parametrize("key", METRICS)
def test_a_task_without_images_has_no_pictures(
    runs: dict[str, Path], key: str, tmp_path: Path
) -> None:
    data = Trained.open(runs[key]).data
    with pytest.raises(DeployError) as raised:
        write_pictures(data, tmp_path / "pictures", 3)
    assert all(name in str(raised.value) for name in data.task.inputs)
    assert "\n" not in str(raised.value) and not (tmp_path / "pictures").exists()


def test_a_network_of_a_few_weights_is_counted_one_by_one(runs: dict[str, Path]) -> None:
    run = RunFolder.open(runs["table"])
    row = last_test(run.rows())
    assert row is not None and row.metric == {"name": "log-loss", "better": "less", "unit": ""}
    smallest = min(row.ladder, key=lambda rung: rung.macs)
    found = said("evaluate", "--arch", "smallest", "--run", run.path).stdout
    assert f"{smallest.macs} MACs" in found
