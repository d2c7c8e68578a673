"""Metrics of a run as Prometheus reads them."""

import json
import re
from pathlib import Path

import pytest
from flwr.app import Context, Message

from superfednas.client.app import app as client_app
from superfednas.common.words import one_line
from superfednas.records.index import STATUSES
from superfednas.server.journal.prometheus import Exposition
from tests.support.rows import rows_of
from tests.support.training import full_run

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
Labels = frozenset[tuple[str, str]]
Samples = dict[tuple[str, Labels], float]


def parsed(text: str) -> Samples:
    """Read the text format as its specification has it, and refuse what breaks a rule of it."""
    assert text.endswith("\n")
    found: Samples = {}
    family, described, typed = "", set(), set()
    for line in text.removesuffix("\n").split("\n"):  # no other character ends a line
        if line.startswith("# "):
            _, word, name, rest = line.split(" ", 3)
            assert NAME.fullmatch(name) and rest, line
            seen = described if word == "HELP" else typed
            assert name not in seen, f"a second {word} of {name}"
            seen.add(name)
            assert word == "HELP" or rest in ("gauge", "counter"), line
            family = name
            continue
        match = NAME.match(line)
        assert match, line
        name, labels, rest = match[0], {}, line[match.end() :]
        # All samples of a metric stand together, behind its HELP and TYPE.
        assert name == family and name in described and name in typed, line
        if rest.startswith("{"):
            labels, rest = read_labels(rest[1:])
        assert rest.startswith(" ") and " " not in rest[1:], line
        key = name, frozenset(labels.items())
        assert key not in found, f"{line}: twice"
        found[key] = float(rest)
    return found


def read_labels(text: str) -> tuple[dict[str, str], str]:
    """Return the labels up to the closing brace, and what follows it."""
    found: dict[str, str] = {}
    while not text.startswith("}"):
        name, text = text.split('="', 1)
        assert NAME.fullmatch(name) and name not in found, name
        value = ""
        while not text.startswith('"'):
            if text[0] == "\\":
                value, text = value + {"\\": "\\", '"': '"', "n": "\n"}[text[1]], text[2:]
            else:
                value, text = value + text[0], text[1:]
        found[name], text = value, text[1:].removeprefix(",")
    return found, text[1:]


def exposition(rows: list[dict], rounds: int, run: str = "r", status: str = "running") -> Samples:
    found = Exposition(run)
    for row in rows_of(rows):
        found.add(row)
    return parsed(found.text(rounds, status))


def values(samples: Samples) -> dict[str, float]:
    """Return what has no other label than the run's name."""
    return {name: value for (name, labels), value in samples.items() if len(labels) == 1}


def status_in(run: Path) -> str:
    """Return the one status whose sample is 1."""
    samples = parsed((run / "metrics.prom").read_text())
    found = {
        dict(labels)["status"]: value
        for (name, labels), value in samples.items()
        if name == "superfednas_status"
    }
    assert set(found) == set(STATUSES) and sorted(found.values()) == [0, 0, 0, 1]
    return max(found, key=found.__getitem__)


def client(*, accepted: bool) -> dict:
    given = {"client": "0", "accepted": accepted, "bytes_down": 30, "bytes_up": 20 * accepted}
    return given | ({"loss": 1.5} if accepted else {})


ROWS = [
    {"kind": "round", "round": 1, "seconds": 3.0, "clients": [client(accepted=True)] * 2},
    {
        "kind": "round",
        "round": 2,
        "seconds": 0.5,
        "clients": [client(accepted=True), client(accepted=False)],
        "late": [{"client": "0", "round": 1}] * 2,
    },
    {
        "kind": "evaluation",
        "round": 2,
        "trained_rounds": 2,
        "ladder": [{"name": "25%", "accuracy": 0.25}],
    },
]


def test_the_numbers_are_those_of_the_rows() -> None:
    samples = exposition(ROWS, 9)
    found = values(samples)
    assert found.pop("superfednas_last_round_timestamp_seconds") > 1.7e9
    assert found == {
        "superfednas_round": 2,
        "superfednas_rounds": 9,
        "superfednas_round_seconds": 0.5,
        "superfednas_replies": 1,
        "superfednas_asked": 2,
        "superfednas_late_replies_total": 2,
        "superfednas_unusable_total": 1,
        "superfednas_bytes_total": 4 * 30 + 3 * 20,
        "superfednas_loss": 1.5,
        "superfednas_accuracy_round": 2,
    }
    accuracy = "superfednas_accuracy", frozenset({("run", "r"), ("subnet", "25%")})
    assert samples[accuracy] == 0.25


@pytest.mark.parametrize(
    "name", ["20261125-101500-resnet-tiny", 'a"b\\c\nd', "\\n", "è {x}, y=1\r"]
)
def test_every_sample_names_its_run_whatever_that_is_called(name: str) -> None:
    samples = exposition(ROWS, 9, name)
    assert {dict(labels)["run"] for _, labels in samples} == {one_line(name)}


def test_a_folder_whose_name_is_no_text_does_not_stop_the_run() -> None:
    found = Exposition("a\udcff").text(1, "running")  # as Python reads a name with a byte of 255
    assert 'run="a?"' in found.encode().decode()


def test_runs_can_lie_in_one_folder_since_only_samples_differ() -> None:
    comments = []
    for run, rows in (("a", ROWS), ("b", [{**ROWS[0], "round": 3}, {**ROWS[2]}])):
        found = Exposition(run)
        for row in rows_of(rows):
            found.add(row)
        lines = found.text(9, "running").splitlines()
        comments.append([line for line in lines if line.startswith("#")])
    assert comments[0] == comments[1]


def test_before_the_first_round_there_is_a_status() -> None:
    samples = exposition([], 5)
    assert values(samples) == {"superfednas_round": 0, "superfednas_rounds": 5}
    statuses = {dict(labels).get("status"): value for (_, labels), value in samples.items()}
    assert {status: statuses[status] for status in STATUSES} == {
        "running": 1,
        "finished": 0,
        "failed": 0,
        "interrupted": 0,
    }


def test_when_an_earlier_start_had_its_last_round_is_not_claimed_to_be_now() -> None:
    found = Exposition("r")
    for row in rows_of(ROWS):
        found.restore(row)
    restored = values(parsed(found.text(9, "running")))
    assert restored["superfednas_round"] == 2
    assert "superfednas_last_round_timestamp_seconds" not in restored


def test_a_round_without_a_usable_reply_has_no_loss() -> None:
    row = {"kind": "round", "round": 1, "seconds": 1.0, "clients": [client(accepted=False)]}
    assert "superfednas_loss" not in values(exposition([row], 1))


def test_a_run_folder_holds_the_newest(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run", {"rounds": 2, "evaluate-every": 2})
    samples = parsed((run.path / "metrics.prom").read_text())
    found = values(samples)
    assert found["superfednas_round"] == found["superfednas_rounds"] == 2
    assert ("superfednas_accuracy", frozenset({("run", "run"), ("subnet", "largest")})) in samples
    assert status_in(run.path) == "finished"


def test_a_run_that_ends_says_how_and_one_that_goes_on_says_that(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    seen: list[tuple[str, str]] = []
    error: list[BaseException] = [KeyboardInterrupt()]

    def stopping(message: Message, context: Context) -> Message:
        """Answer, but in round 2 raise, as Ctrl-C and `flwr stop` do."""
        if error:  # messages that wait in line may still be served while the run is being ended
            status = json.loads((folder / "run.json").read_text())["status"]
            seen.append((status_in(folder), status))
        order = message.content.config_records.get("config", {})
        if order.get("round") == 2 and error:
            raise error.pop(0)
        return client_app(message, context)

    with pytest.raises(KeyboardInterrupt):
        full_run(folder, {"rounds": 2}, stopping)
    assert status_in(folder) == "interrupted"
    assert set(seen) == {("running", "running")}  # from the first message on, before round 1
    seen.clear()
    error[:] = [SystemExit(0)]
    with pytest.raises(SystemExit):
        full_run(folder, {"resume": str(folder), "run-dir": ""}, stopping)
    assert status_in(folder) == "interrupted"
    assert set(seen) == {("running", "running")}
    full_run(folder, {"resume": str(folder), "run-dir": ""}, stopping)
    assert status_in(folder) == "finished"


def test_a_run_that_fails_says_so(tmp_path: Path) -> None:
    values = {"min-nodes": 9, "node-timeout": 0.01}
    with pytest.raises(RuntimeError, match="9 nodes are needed"):
        full_run(tmp_path / "run", values)
    assert status_in(tmp_path / "run") == "failed"


def test_how_many_clients_a_round_wants() -> None:
    """So that an alarm can compare it with how many are asked."""
    assert values(parsed(Exposition("r").text(3, "running", 7)))["superfednas_wanted"] == 7
    assert "superfednas_wanted" not in values(parsed(Exposition("r").text(3, "running")))
