"""Texts of strangers on all the ways by which they reach a terminal, a log or a page."""

import ast
import contextlib
import dataclasses
import io
import json
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings

from superfednas import cli
from superfednas.cli.common import say, show
from superfednas.common.terminal import Terminal
from superfednas.common.words import one_line
from superfednas.deploy.device.runtime.about import print_about
from superfednas.deploy.device.runtime.classify import Result, print_results
from superfednas.deploy.device.runtime.fields import Input
from superfednas.deploy.doctor.finding import FAULT, Finding
from superfednas.deploy.doctor.main import describe
from superfednas.deploy.fleet.superlink import SuperLink
from superfednas.flower.refusal import say as say_of_a_node
from superfednas.records.announcements import PREFIX, Announcement, Event
from superfednas.records.folder import RunFolder
from superfednas.records.refusals import Refusal, Refused
from superfednas.records.rows import EvaluationRow, RoundRow, Rung, Spread, SummaryRow
from superfednas.report.markup import table
from superfednas.server.errands.personalise import print_personal
from superfednas.server.journal.progress import LiveProgress, Progress
from superfednas.server.journal.prometheus import Exposition
from superfednas.server.journal.summary import print_finale
from tests.support.exports import picture_card
from tests.support.hostile import HOSTILE, assert_harmless
from tests.support.processes import ROOT

pytestmark = pytest.mark.attack


@given(text=HOSTILE)
def test_what_a_server_prints_of_its_nodes(text: str) -> None:
    out = io.StringIO()
    progress = Progress(Terminal(out, width=100))
    progress.note(f"client {text} refused: {Refused(Refusal.RAISED, text)}", "refused")
    metric = {"name": "accuracy", "better": "more"}
    evaluation = EvaluationRow("test", 1, ladder=(Rung(text, values={"accuracy": 0.5}),))
    progress.round(RoundRow(1))
    progress.evaluation(evaluation)
    spread = Spread(2, 0.5, 0.1, 0.4, 0.6, text)
    summary = SummaryRow(1, refused={text: 2}, spread={"own": spread}, metric=metric)
    print_finale(evaluation, summary, data_name="digits", console=progress.console)
    values = {"mean": 0.5, "sd": 0.0}
    row = {"name": text, "macs": 1, "initial": values, "personalised": values, "clients": {text: 1}}
    print_personal({"epochs": 1, "part": "head", "subnets": [row]}, progress.console)
    shown = out.getvalue()
    assert_harmless(shown)
    assert not any(line.startswith((PREFIX, "run folder: ")) for line in shown.splitlines())


@given(text=HOSTILE)
@settings(max_examples=20)
def test_what_the_live_display_shows(text: str) -> None:
    out = io.StringIO()
    progress = LiveProgress(Terminal(out, width=100))
    progress.evaluation(EvaluationRow("test", 1, ladder=(Rung(text, values={"accuracy": 0.5}),)))
    progress.round(RoundRow(1))
    progress.note(f"client {text}")
    progress.stop()
    assert_harmless(out.getvalue())


@given(text=HOSTILE)
@settings(max_examples=30)
def test_what_is_logged(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        run.log({"event": text, "client": text, "reason": text})
        lines = (run.path / "log.jsonl").read_bytes()
    assert lines.isascii() and lines.count(b"\n") == 1
    assert_harmless(lines.decode())


@given(text=HOSTILE)
def test_what_prometheus_reads(text: str) -> None:
    found = Exposition(text)
    metric = {"name": text, "better": "more"}
    found.add(
        EvaluationRow("evaluation", 1, ladder=(Rung(text, values={text: 0.5}),), metric=metric)
    )
    shown = found.text(3, "running")
    assert_harmless(shown)
    for line in shown.splitlines():
        name = line.removeprefix("# HELP ").removeprefix("# TYPE ").partition("{")[0].split(" ")[0]
        assert name.isascii() and name.startswith("superfednas_")


@given(text=HOSTILE)
def test_what_a_device_says_of_a_downloaded_model(text: str) -> None:
    results = [
        Result(Path("a.png"), ((text, 0.9),)),
        Result(Path("b.png"), problem=f"b.png: {text}"),
    ]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        print_results(results)
        print_results(results, as_json=True)
    assert_harmless(out.getvalue() + err.getvalue())
    assert len(out.getvalue().splitlines()) == 3 and len(err.getvalue().splitlines()) == 2
    assert json.loads(out.getvalue().splitlines()[1])["answers"][0]["class"] == text


@given(text=HOSTILE)
def test_what_a_device_says_a_model_reads_and_answers(text: str) -> None:
    ground = Input((), "int64", categories=(text, f"{text} {5_000 * 'd'}"))
    pictures = picture_card(classes=(text, "d" * 5_000))
    card = dataclasses.replace(pictures, task=text, inputs={text: ground, **pictures.inputs})
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_about(card)
        print_about(card, as_json=True)
    *lines, as_json = out.getvalue().splitlines()
    assert_harmless(out.getvalue())
    assert [line.split()[0] for line in lines] == ["task", "files", "reads", "reads", "answers"]
    assert max(map(len, lines)) < 1_000
    assert json.loads(as_json)["outputs"]["logits"]["names"] == [text, "d" * 5_000]


def test_a_device_prints_no_text_that_has_not_passed_one_function() -> None:
    """Texts of a model are printed as ``one_line`` or ``printable_json`` give them."""
    for path in (ROOT / "deploy" / "device" / "runtime").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "print":
                for given in call.args:
                    names = {node.id for node in ast.walk(given) if isinstance(node, ast.Name)}
                    harmless = names & {"one_line", "printable_json", "shown", "row", "number"}
                    assert not names or harmless, (path.name, call.lineno)


@given(text=HOSTILE)
def test_what_the_doctor_and_a_node_say(text: str) -> None:
    said = describe([Finding(text, FAULT, text, f"do {text}")])
    assert_harmless(said)
    assert len(said.splitlines()) == 2
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        say_of_a_node(text)
    assert_harmless(err.getvalue())
    assert len(err.getvalue().splitlines()) == 1


@given(text=HOSTILE)
def test_what_the_command_prints(text: str) -> None:
    out, err = io.StringIO(), io.StringIO()

    def fail(**_: object) -> None:
        say(text)
        show({text: text})
        raise ValueError(text)

    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr("superfednas.cli.common.app", fail)
        with pytest.raises(SystemExit):
            cli.main()
    assert_harmless(out.getvalue() + err.getvalue())
    first, rest = out.getvalue().split("\n", 1)
    assert first == one_line(text) and json.loads(rest) == json.loads(json.dumps({text: text}))
    assert err.getvalue() == f"error: {one_line(text)}\n"


@given(text=HOSTILE)
def test_what_a_page_holds(text: str) -> None:
    html = table([text], [[text]], text)
    assert_harmless(html)
    assert "<script>" not in html


@pytest.mark.processes
def test_what_is_relayed_of_a_servers_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Colours of Flower's logger are left out, announcements stay what they are."""
    announced = Announcement(Event.REFUSED, 1, client="\x1b[2J").line()
    printed = tmp_path / "printed"
    printed.write_text(f"\x1b[92mINFO\x1b[0m :\tok\n\x1b[2Jgone\u202e\x07\n{announced}\n")
    link = SuperLink("127.0.0.1:9093", None)
    code = "import sys; print(open(sys.argv[1], newline='').read(), end='')"
    line = [sys.executable, "-X", "utf8", "-c", code, str(printed)]
    monkeypatch.setattr(SuperLink, "_command", lambda *_: line)
    with link:
        lines = link._show(["log"], lambda: False)
    shown = capsys.readouterr().out
    assert_harmless(shown)
    assert shown.splitlines()[0].split() == ["INFO", ":", "ok"]
    assert shown.splitlines()[2] == announced and len(lines) == 3
