"""Runs beside each other: costs counted by hand, the target's rule, the verb and its sentences."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from superfednas import cli
from superfednas.records import rows as records
from superfednas.records.folder import RunFolder
from superfednas.records.rows import EvaluationRow, RoundRow, Rung
from superfednas.report.canvas import LIGHT
from superfednas.report.comparison import Comparison, Point, compare, comparison_plot, curve_of
from superfednas.server.journal.summary import summarise
from superfednas.supernet import load_space
from tests.support.rows import row_of

Row = dict[str, Any]
GIGA = 1_000_000_000
PNG = b"\x89PNG\r\n\x1a\n"


def client(macs: int, down: int, up: int, images: int | None = None, **more: int) -> Row:
    """Return a client's entry; one without images has sent nothing usable."""
    row: Row = {"client": "0", "macs": macs, "bytes_down": down, "bytes_up": up}
    row |= {"accepted": images is not None, "reason": None if images else "no reply"}
    return row | ({} if images is None else {"images": images}) | more


def round_row(number: int, *clients: Row) -> RoundRow:
    return row_of({"kind": "round", "round": number, "seconds": 1.0, "clients": list(clients)})


def evaluation(number: int, trained: int | None = None, **accuracies: float) -> EvaluationRow:
    ladder = tuple(Rung(name, values={"accuracy": value}) for name, value in accuracies.items())
    trained = number if trained is None else trained
    return EvaluationRow("evaluation", number, trained, ladder=ladder)


# Bytes and GMAC·images after rounds 1 to 3 of FAST: 1,500 and 20; 3,600 and 50; 3,700 and 50.
FAST = [
    evaluation(0, largest=0.1, smallest=0.1),
    round_row(1, client(2 * GIGA, 1000, 500, images=10)),
    evaluation(1, largest=0.5, smallest=0.3),
    round_row(
        2,
        client(GIGA, 600, 300, images=5),
        client(GIGA, 800, 400, images=7, mac_images=25 * GIGA),
    ),
    evaluation(2, largest=0.75, smallest=0.4),
    round_row(3, client(9 * GIGA, 100, 0)),
    evaluation(3, largest=0.625, smallest=0.5),
    EvaluationRow("test", 3, 3, ladder=(Rung("largest"),)),
]
SLOW = [
    round_row(1, client(GIGA, 10, 10, images=1)),
    evaluation(1, largest=0.25),
    round_row(2, client(GIGA, 10, 10, images=1)),
    evaluation(2, largest=0.5),
]


def run_of(path: Path, *rows: records.Row, **settings: Any) -> RunFolder:
    run = RunFolder.create(str(path), settings, "resnet-tiny")
    for row in rows:
        run.append(row)
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[RunFolder]:
    method = {"method": "fedsup"}
    return [run_of(tmp_path / "fast", *FAST, **method), run_of(tmp_path / "slow", *SLOW)]


def test_a_curve_is_the_cost_up_to_each_evaluation() -> None:
    assert curve_of(FAST, "largest") == (
        Point(0, 0, 0.0, 0.1),
        Point(1, 1500, 20.0, 0.5),
        Point(2, 3600, 50.0, 0.75),
        Point(3, 3700, 50.0, 0.625),
    )
    assert [point.value for point in curve_of(FAST, "smallest")] == [0.1, 0.3, 0.4, 0.5]


def test_a_whole_run_costs_what_its_summary_says() -> None:
    rows = [
        round_row(n, client(1_000_000 * n, 100, 50, images=30), client(2_000_000, 70, 0))
        for n in (1, 2, 3)
    ]
    (point,) = curve_of([*rows, evaluation(3, largest=0.5)], "largest")
    summary = summarise(load_space("resnet-tiny"), rows, 3)
    assert (point.bytes, point.gmac_images) == (summary.bytes, summary.gmac_images)


def test_what_clients_score_cost_the_rounds_before_and_may_miss_a_rung() -> None:
    rows = [
        round_row(1, client(GIGA, 10, 10, images=1)),
        evaluation(1, trained=0, smallest=0.1),
        round_row(2, client(GIGA, 10, 10, images=1)),
        evaluation(2, trained=1, smallest=0.2, largest=0.3),
    ]
    assert curve_of(rows, "smallest") == (Point(0, 0, 0.0, 0.1), Point(1, 20, 1.0, 0.2))
    assert curve_of(rows, "largest") == (Point(1, 20, 1.0, 0.3),)


def test_best_last_and_the_first_evaluation_that_reaches_a_target(runs: list[RunFolder]) -> None:
    comparison = compare(runs, [], "largest", 0.6)
    fast, slow = comparison.curves
    assert (fast.name, fast.method, fast.best, fast.last) == ("fast", "fedsup", 0.75, 0.625)
    assert (slow.name, slow.method, slow.best, slow.last) == ("slow", None, 0.5, 0.5)
    assert (comparison.target, comparison.target_rule) == (0.6, "as asked")
    assert fast.reach(0.6) == Point(2, 3600, 50.0, 0.75)
    assert fast.reach(0.75) == Point(2, 3600, 50.0, 0.75)
    assert slow.reach(0.6) is None


def test_without_a_target_every_run_reaches_the_lowest_best(runs: list[RunFolder]) -> None:
    comparison = compare(runs, ["a", "b"], "largest", None)
    assert comparison.target == 0.5
    assert "lowest of the runs' best" in comparison.target_rule
    reached = {curve.name: curve.reach(comparison.target) for curve in comparison.curves}
    assert reached == {"a": Point(1, 1500, 20.0, 0.5), "b": Point(2, 40, 2.0, 0.5)}


@pytest.mark.parametrize(
    ("names", "rung", "target", "sentence"),
    [
        ([], "huge", None, "rung = 'huge': not on the ladder of 'fast', 'slow'; must be one of la"),
        ([], "smallest", None, "on the ladder of 'slow'; must be one of largest"),
        (["a"], "largest", None, "names = 'a': must be 2, one a run, with commas between"),
        (["a", "a"], "largest", None, "name = 'a': stands for more than one run; names must diff"),
        (["a", ""], "largest", None, "names = 'a,': a name must not be empty"),
        ([], "largest", 60.0, "target = 60: must be a number above 0 and at most 1"),
        ([], "largest", 0.0, "target = 0: must be"),
        ([], "largest", float("nan"), "target = nan: must be"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    names: list[str], rung: str, target: float | None, sentence: str, runs: list[RunFolder]
) -> None:
    with pytest.raises(ValueError) as raised:
        compare(runs, names, rung, target)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_runs_that_were_never_evaluated_or_share_nothing(
    runs: list[RunFolder], tmp_path: Path
) -> None:
    silent = run_of(tmp_path / "silent", SLOW[0])
    with pytest.raises(ValueError, match=r"run 'silent' has no evaluation: .* evaluate-every"):
        compare([*runs, silent], [], "largest", None)
    other = run_of(tmp_path / "other", evaluation(0, half=0.1))
    with pytest.raises(ValueError, match="not on the ladder of 'other'; no rung is in all"):
        compare([*runs, other], [], "largest", None)


def test_the_folders_of_two_runs_may_have_one_name(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / parent / "run", *SLOW) for parent in ("a", "b")]
    with pytest.raises(ValueError, match=r"name = 'run': .* --names"):
        compare(runs, [], "largest", None)
    assert [c.name for c in compare(runs, ["a", "b"], "largest", None).curves] == ["a", "b"]


def test_the_plot_of_many_runs_with_any_names(runs: list[RunFolder]) -> None:
    names = ["_hidden", "$\\frac{", "", *(str(i) for i in range(17))]
    comparison = compare(runs[:1], [], "largest", 0.99)
    curve = comparison.curves[0]
    many = tuple(type(curve)(name, curve.path, None, curve.points) for name in names)
    assert comparison_plot(
        Comparison("largest", comparison.target, "as asked", many), LIGHT
    ).startswith(PNG)


def test_the_plot_of_an_evaluation_before_any_round(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", evaluation(0, largest=0.1))
    assert comparison_plot(compare([run], [], "largest", None), LIGHT).startswith(PNG)


# The verb


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")]


def test_the_verb_prints_a_table_and_draws(runs: list[RunFolder], tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    arguments = [*(str(run.path) for run in runs), "--target", "0.6", "--out", str(folder)]
    done = CliRunner().invoke(cli.app, ["compare", *arguments])
    assert done.exit_code == 0, done.output
    lines = [cells(line) for line in done.stdout.splitlines() if line[:1] in "│┃"]
    assert lines == [
        ["run", "method", "best", "last", "rounds", "bytes", "GMAC·images"],
        ["fast", "fedsup", "75.00%", "62.50%", "2", "3.6 kB", "50.0"],
        ["slow", "–", "50.00%", "50.00%", "–", "–", "–"],
    ]
    assert "target 60.00%: as asked\n" in done.stdout
    assert done.stdout.endswith(f"plot: {folder / 'comparison.png'}\n")
    assert [path.name for path in folder.iterdir()] == ["comparison.png"]
    assert (folder / "comparison.png").read_bytes().startswith(PNG)


def test_the_verb_answers_in_json_what_it_prints(runs: list[RunFolder]) -> None:
    arguments = [*(str(run.path) for run in runs), "--names", "a, b", "--json"]
    done = CliRunner().invoke(cli.app, ["compare", *arguments])
    found = json.loads(done.stdout)
    assert (found["rung"], found["target"], found["plot"]) == ("largest", 0.5, None)
    assert "lowest" in found["target_rule"]
    assert [run["name"] for run in found["runs"]] == ["a", "b"]
    first = found["runs"][0]
    assert (first["run"], first["method"]) == (str(runs[0].path), "fedsup")
    assert (first["best"], first["last"]) == (0.75, 0.625)
    reached = {"rounds": 1, "bytes": 1500, "gmac_images": 20.0, "accuracy": 0.5}
    assert first["reached"] == first["curve"][1] == reached
    assert len(first["curve"]) == 4


def test_latest_is_the_newest_run_and_no_method_is_no_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run_of(tmp_path / ".superfednas" / "runs" / "newest", *SLOW)
    done = CliRunner().invoke(cli.app, ["compare", "latest"])
    assert done.exit_code == 0, done.output
    assert "newest" in done.stdout
    assert "method" not in done.stdout
    assert "target 50.00%: the lowest of the runs' best accuracies" in done.stdout


def test_the_command_says_what_is_wrong_in_one_line(
    runs: list[RunFolder], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", str(runs[0].path), str(runs[0].path), "--rung", "largest"]
    monkeypatch.setattr(sys, "argv", ["superfednas", *arguments])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    with pytest.raises(SystemExit) as status:
        cli.main()
    assert status.value.code == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: name = 'fast': stands for more than one run")
    assert len(stderr.splitlines()) == 1
