"""The answers of `superfednas bench`: figures, their table, measures that fail alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from superfednas.bench import figures, suite
from superfednas.bench.details import details
from superfednas.bench.figures import Figure, faster, in_turns, milliseconds, rate, torch_threads
from superfednas.bench.suite import MEASURES, chosen, take, take_apart
from superfednas.bench.table import (
    BEGIN,
    END,
    from_json,
    markdown,
    ratio_text,
    section,
    to_json,
    write_section,
)
from superfednas.cli import app

WHERE = {"command": "c", "machine": "m", "versions": "v", "date": "d", "load": "0.1"}
ROOT = Path(__file__).resolve().parents[2]


def figure(ratio: float | None = 0.5, **more) -> Figure:
    return Figure("merge", "what", "against", ratio, "1 ms", "2 ms", **more)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that every call of a way turns on by as many seconds as the way says."""
    now = [0.0]
    monkeypatch.setattr(figures.time, "perf_counter", lambda: now[0])
    return now


# Figures


@pytest.mark.parametrize(
    ("ratio", "asked", "more", "kept"),
    [
        (0.6, 0.6, True, True),
        (0.59, 0.6, True, False),
        (1.2, 1.2, False, True),
        (1.21, 1.2, False, False),
        (0.5, None, True, None),
        (None, 0.5, True, None),
    ],
)
def test_a_limit_is_kept_missed_or_not_there(
    ratio: float | None, asked: float | None, more: bool, kept: bool | None
) -> None:
    found = figure(ratio, asked=asked, more=more)
    assert found.kept is kept
    assert found.limit == {None: "", 0.6: "≥ 0.6", 1.2: "≤ 1.2", 0.5: "≥ 0.5"}[asked]


def test_faster_is_the_median_of_the_ratios_within_every_turn() -> None:
    assert faster([1.0, 2.0, 4.0], [2.0, 2.0, 40.0]) == 2.0
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        faster([1.0, 2.0], [1.0])


def test_ways_take_turns_and_the_first_does_not_count(clock: list[float]) -> None:
    order: list[str] = []

    def way(name: str, seconds: Iterator[float]) -> None:
        order.append(name)
        clock[0] += next(seconds)

    a, b = iter([9.0, 1.0, 2.0]), iter([9.0, 3.0, 4.0])

    def ready() -> None:
        order.append("ready")
        clock[0] += 100

    taken = in_turns({"a": lambda: way("a", a), "b": lambda: way("b", b)}, 2, ready=ready)
    assert taken == {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    assert [name for name in order if name != "ready"] == ["b", "a", "a", "b", "b", "a"]
    assert order.count("ready") == 6


def test_a_rate_is_calls_over_seconds(clock: list[float]) -> None:
    def call() -> None:
        clock[0] += 0.25

    assert rate(call, 1.0) == 4.0


def test_milliseconds() -> None:
    assert milliseconds([0.001, 0.0012345, 2]) == "1.23 ms"
    assert milliseconds([1.2345]) == "1,234 ms" and milliseconds([0.1]) == "100 ms"


def test_torch_has_its_threads_again() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


# Table


def test_ratios_have_the_digits_that_count() -> None:
    texts = [ratio_text(figure(r)) for r in (None, 0.0746, 1.0003, 3.88, 41.26, 2687.4)]
    assert texts == ["–", "0.075", "1.000", "3.9", "41.3", "2,687"]


def test_markdown_marks_what_is_missed() -> None:
    lines = markdown([figure(0.5, asked=0.6), figure(0.7, asked=0.6), figure(None)]).splitlines()
    assert lines[0] == "| what | ratio | asked | ours | against | its |"
    assert lines[2] == "| what | 0.500 (missed) | ≥ 0.6 | 1 ms | against | 2 ms |"
    assert "| 0.700 |" in lines[3] and "| – |" in lines[4]


def test_figures_survive_json() -> None:
    given = [figure(0.5, asked=0.6), figure(None, more=False, failed=True)]
    assert from_json(to_json(WHERE, given)) == (WHERE, given)


def test_only_what_lies_between_the_marks_is_written(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_section(path, WHERE, [figure()])
    assert path.read_text() == f"before\n{section(WHERE, [figure()])}\nafter\n"
    write_section(path, WHERE, [figure(0.7)])
    assert path.read_text() == f"before\n{section(WHERE, [figure(0.7)])}\nafter\n"


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN, f"{BEGIN}{END}{BEGIN}", f"{END}"])
def test_a_document_without_its_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"README.md: must have the lines"):
        write_section(path, WHERE, [figure()])
    assert path.read_text() == text


def test_the_readme_shows_the_results_that_are_there() -> None:
    where, found = from_json((ROOT / "benchmarks/results/bench.json").read_text("utf-8"))
    readme = (ROOT / "README.md").read_text("utf-8")
    assert section(where, found) in readme
    assert section(where, found) in (ROOT / "benchmarks/results/bench.md").read_text("utf-8")
    assert not any(row.failed for row in found) and "--full" in where["command"]
    assert {row.measure for row in found} == set(MEASURES)


# Measures


def test_which_measures() -> None:
    assert chosen("normal", []) == ["merge", "rounds", "wire", "training", "gpu", "search"]
    assert chosen("full", []) == list(MEASURES)
    assert chosen("quick", ["ray", "merge"]) == ["merge", "ray"]
    with pytest.raises(ValueError, match="--only fast: must be one of merge, rounds"):
        chosen("full", ["fast"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["merge", "rounds", "wire", "training", "search", "growth"])
def test_every_measure_gives_figures(name: str) -> None:
    found = take(name, "quick")
    assert found
    for row in found:
        assert row.measure == name and row.what and row.against and row.ours and row.other
        assert row.ratio is not None and row.ratio > 0 and not row.failed


def test_the_gpu_is_measured_or_said_to_be_missing() -> None:
    found = take("gpu", "quick")
    if torch.cuda.is_available():
        assert all(row.ratio for row in found)
    else:
        assert [row.ours for row in found] == ["not measured: no GPU"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise RuntimeError('broken')", "not measured: RuntimeError: broken"),
        ("import os; os._exit(1)", "not measured: its process was killed"),
    ],
)
def test_a_measure_that_fails_says_so_and_takes_nothing_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    (tmp_path / "bad_measure.py").write_text(f"def figures(effort):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(suite._MODULES, "bad", ("bad_measure", False))
    (found,) = take_apart("bad", "quick")
    assert found.failed and found.ratio is None and found.ours.startswith(reason)


# The command


@pytest.mark.slow
def test_the_command_prints_writes_and_shows_progress(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    options = ["bench", "--quick", "--only", "wire", "--out", str(tmp_path / "new" / "folder")]
    result = CliRunner().invoke(app, [*options, "--readme", str(readme), "--json"])
    assert result.exit_code == 0, result.output
    where, found = from_json(result.stdout)
    assert [row.measure for row in found] == ["wire"] and where["machine"] and where["date"]
    assert "against the subnet's own bytes" in result.stderr
    written = (tmp_path / "new" / "folder" / "bench.json").read_text("utf-8")
    assert json.loads(written) == json.loads(result.stdout)
    assert section(where, found) + "\n" == readme.read_text("utf-8")
    assert section(where, found) in (tmp_path / "new" / "folder" / "bench.md").read_text("utf-8")


@pytest.mark.slow
def test_a_failed_measure_is_exit_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suite._MODULES, "gpu", ("no_such_module", False))
    result = CliRunner().invoke(app, ["bench", "--quick", "--only", "gpu"])
    assert result.exit_code == 1
    assert "not measured: ModuleNotFoundError" in result.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--full", "--quick"], "exclude each other"), (["--only", "fast"], "must be one of")],
)
def test_wrong_options_are_one_sentence(options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", *options])
    assert isinstance(result.exception, ValueError) and said in str(result.exception)


# Details


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wire", "search"])
def test_details_are_tables_whose_rows_have_their_head_s_columns(name: str) -> None:
    lines = "\n".join(details(name, "quick")).splitlines()
    tables = [line.count("|") for line in lines if line.startswith("|")]
    assert len(tables) > 3 and len(set(tables)) == 1


@pytest.mark.parametrize(
    "options", [[], ["--only", "wire", "--only", "rounds"], ["--only", "merge"]]
)
def test_details_are_of_one_measure_that_has_them(options: list[str]) -> None:
    done = CliRunner().invoke(app, ["bench", "--details", *options])
    assert isinstance(done.exception, ValueError)
