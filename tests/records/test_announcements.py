"""Announcements: what is printed is read again, and nothing else is taken for one."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superfednas.common.settings import Scalar
from superfednas.common.terminal import Terminal
from superfednas.common.words import one_line
from superfednas.records.announcements import PREFIX, Announcement, Event
from superfednas.records.folder import RunFolder
from superfednas.records.refusals import Refusal
from superfednas.server.journal.progress import Progress
from tests.support.bad_clients import bad_client, raising
from tests.support.training import as_flower

ANNOUNCEMENTS = st.builds(
    Announcement,
    st.sampled_from(Event),
    st.integers(0, 10**9),
    st.text(),
    st.none() | st.sampled_from(Refusal),
    st.lists(st.sampled_from(Refusal), max_size=3).map(tuple),
    st.text(),
    st.text(),
    st.text(),
)


@given(said=ANNOUNCEMENTS)
def test_a_line_is_read_as_what_was_announced(said: Announcement) -> None:
    line = said.line()
    assert line.isascii() and line.isprintable()
    assert Announcement.read(line) == Announcement.read(line + "\n") == said


@given(text=st.text() | st.text().map(lambda text: PREFIX + text))
def test_no_other_line_is_read(text: str) -> None:
    assert Announcement.read(text) is None


@pytest.mark.parametrize(
    "line", ["7", "[]", "{}", '{"event": "of a later version"}', '{"event": "round", "round": "x"}']
)
def test_what_a_later_version_announces_is_passed_over(line: str) -> None:
    assert Announcement.read(PREFIX + line) is None


def test_a_code_of_a_later_version_is_none() -> None:
    line = PREFIX + '{"event": "error", "refusal": "odd", "causes": ["odd", "crashed"], "more": 1}'
    assert Announcement.read(line) == Announcement(Event.ERROR, causes=(Refusal.CRASHED,))


FORGED = Announcement(Event.ERROR, text="forged").line()
TEXTS = st.text() | st.sampled_from("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029").map(
    lambda newline: newline + FORGED + newline
)


@given(said=TEXTS)
def test_a_text_of_a_node_begins_no_line(said: str) -> None:
    """Not on any of the ways by which a run prints it, and whatever it holds to break lines."""
    printed = io.StringIO()
    progress = Progress(Terminal(file=printed, width=40))
    announced: list[Announcement] = []
    progress.announce = announced.append
    progress.note(f"client {said} refused: {said}", "refused", client=said, reason=said)
    progress.write(f"last: {said}")
    lines = printed.getvalue().splitlines()
    assert len(lines) == 2 and not any(map(Announcement.read, lines))
    assert [(each.client, each.text) for each in announced] == [(said, said)]
    assert all(line.line().isprintable() for line in announced)


@given(text=st.text())
def test_a_text_on_one_line_is_printable_and_what_was_so_stays(text: str) -> None:
    assert one_line(text).isprintable()
    assert one_line(one_line(text)) == one_line(text)
    assert (one_line(text) == text) == text.isprintable()


def announced(capsys: pytest.CaptureFixture[str]) -> list[Announcement]:
    return [said for said in map(Announcement.read, capsys.readouterr().out.splitlines()) if said]


def test_a_run_announces_its_folder_its_rounds_and_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "run")
    as_flower({"run-dir": folder}, bad_client(raising, {2}, "1"), clients=3)
    refused = Announcement(Event.REFUSED, 2, text="", refusal=Refusal.RAISED, client="1")
    assert [replace(said, text="") for said in announced(capsys)] == [
        Announcement(Event.STARTED, folder=folder),
        Announcement(Event.ROUND, 1),
        refused,
        Announcement(Event.ROUND, 2),
        Announcement(Event.FINISHED, 2, folder=folder),
    ]


def test_a_run_that_goes_on_says_after_which_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values: dict[str, Scalar] = {"run-dir": str(tmp_path / "run"), "keep-going": True, "rounds": 6}
    with pytest.raises(SystemExit):
        as_flower(values, bad_client(raising, range(2, 9), "0123"))
    first = announced(capsys)
    assert (first[-1].event, first[-1].refusal) == (Event.ERROR, Refusal.STALLED)
    assert first[-1].causes == (Refusal.RAISED,)
    assert [each.round for each in first if each.event == Event.ROUND] == [1]
    as_flower(values)
    said = announced(capsys)
    # Rounds that changed nothing are not kept, but trained again.
    assert said[0] == Announcement(Event.RESUMED, 1)
    assert [each.round for each in said if each.event == Event.ROUND] == [2, 3, 4, 5, 6]


def test_a_run_that_is_kept_from_its_folder_names_the_one_at_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values: dict[str, Scalar] = {"run-dir": str(tmp_path / "run"), "keep-going": True, "rounds": 9}
    with pytest.raises(SystemExit):
        as_flower(values, bad_client(raising, range(9), "0123"))
    capsys.readouterr()
    with RunFolder.open(tmp_path / "run").written("77"), pytest.raises(SystemExit):
        as_flower(values, of=78)
    (said,) = announced(capsys)
    assert (said.event, said.refusal, said.run) == (Event.ERROR, Refusal.BEING_WRITTEN, "77")


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"dataset": "none"}, Refusal.NO_SERVER_DATA),
        ({"min-nodes": 9, "node-timeout": 0.01}, Refusal.TOO_FEW_NODES),
        ({"lr": -1.0}, None),
    ],
)
def test_why_a_run_does_not_begin_is_announced(
    values: dict[str, Scalar],
    code: Refusal | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        as_flower({"run-dir": str(tmp_path / "run"), **values})
    said = announced(capsys)[-1]
    assert (said.event, said.refusal) == (Event.ERROR, code) and said.text
