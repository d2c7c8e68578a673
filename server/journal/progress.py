"""Progress of a run: one line per round, or a live display on a terminal."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rich.live import Live
from rich.table import Table

from superfednas.common.terminal import Terminal
from superfednas.common.words import amount, duration
from superfednas.records.announcements import Announcement
from superfednas.records.rows import EvaluationRow, RoundRow
from superfednas.tasks.registry import metric_of

Row = dict[str, Any]


class Note(Protocol):
    """Takes a sentence for human readers, and structured details for programs."""

    def __call__(self, text: str, /, event: str = "note", **about: Any) -> None:
        """Report it; ``about`` holds JSON values."""


_WIDTH = 100


class Progress:
    """Print one line per round: under Flower the output is a stream, so nothing is redrawn.

    Parameters
    ----------
    console
        Where to; by default standard output.
    """

    def __init__(self, console: Terminal | None = None) -> None:
        self.console = console or Terminal(width=_WIDTH)
        self.journal: Callable[[Row], None] | None = None  # takes each note as one row
        self.announce: Callable[[Announcement], None] | None = None  # for who submitted the run
        self.rounds = 0
        self.first = 1
        self.started = self._after_first = time.monotonic()

    def start(self, first: int, rounds: int) -> None:
        """Begin with round ``first`` of ``rounds``."""
        self.first, self.rounds = first, rounds
        self.started = self._after_first = time.monotonic()

    def note(self, text: str, /, event: str = "note", **about: Any) -> None:
        """Print one sentence, if there is one, and record it with its details."""
        if text:
            self.write(text)
        if self.journal is not None:
            self.journal({"event": event, **about, "text": text})
        self._announce(event, about)

    def round(self, row: RoundRow) -> None:
        """Report a finished round."""
        self.write(self.describe(row))
        if row.folded:
            self._announce("round", {"round": row.round})

    def evaluation(self, row: EvaluationRow) -> None:
        """Report an evaluation of the ladder."""
        self.write(f"{'':>{len(self._count(row.round))}} {describe_evaluation(row)}")

    def _announce(self, event: str, about: Mapping[str, Any]) -> None:
        announcement = Announcement.of(event, about)
        if self.announce is not None and announcement is not None:
            self.announce(announcement)

    def write(self, text: str) -> None:
        """Print one line at once, never folded: the last one is a path that others read."""
        self.console.say(text)

    def stop(self) -> None:
        """End the display."""

    def describe(self, row: RoundRow) -> str:
        """Return the line of a round."""
        accepted, refused, late = len(row.accepted), len(row.refused), len(row.late)
        parts = [self._count(row.round)]
        if row.beta is not None:
            parts.append(f"β {row.beta:.3f}")
        if row.loss is not None:
            parts.append(f"loss {row.loss:.3f}")
        parts.append(
            f"{accepted} replies"
            + (f", {refused} missing or refused" if refused else "")
            + (f", {late} late" if late else "")
        )
        parts.append(f"{amount(row.bytes)} sent and received")
        parts.append(f"{row.seconds:.1f} s")
        parts.append(f"{self.left(row.round)} left")
        return " · ".join(parts)

    def left(self, done: int) -> str:
        """Return the expected time to the end."""
        if done == self.first:
            self._after_first = time.monotonic()
        since, rounds = self.started, done - self.first + 1
        if done > self.first:  # the first round starts processes and reads data
            since, rounds = self._after_first, rounds - 1
        per_round = (time.monotonic() - since) / max(1, rounds)
        return duration(per_round * (self.rounds - done))

    def _count(self, done: int) -> str:
        return f"round {done:>{len(str(self.rounds))}}/{self.rounds}"


class LiveProgress(Progress):
    """Redraw a small table: round, β, accuracies, bytes, time left."""

    def __init__(self, console: Terminal) -> None:
        super().__init__(console)
        self._live = Live(console=console, auto_refresh=False)
        self._bytes = 0
        self._evaluation = "not yet"

    def start(self, first: int, rounds: int) -> None:
        """Begin with round ``first`` of ``rounds``."""
        super().start(first, rounds)
        self._live.start()

    def round(self, row: RoundRow) -> None:
        """Redraw with a finished round."""
        self._bytes += row.bytes
        table = Table.grid(padding=(0, 2))
        for name, value in (
            ("round", f"{row.round} of {self.rounds}, {self.left(row.round)} left"),
            ("β", "none" if row.beta is None else f"{row.beta:.3f}"),
            ("training loss", _loss(row)),
            ("evaluation", self._evaluation),
            ("bytes", f"{amount(self._bytes)} sent and received"),
        ):
            table.add_row(name, value)
        self._live.update(table, refresh=True)

    def evaluation(self, row: EvaluationRow) -> None:
        """Keep the newest evaluation for the display."""
        self._evaluation = describe_evaluation(row)

    def stop(self) -> None:
        """End the display."""
        self._live.stop()


def _loss(row: RoundRow) -> str:
    replies = len(row.accepted)
    kept = replies and row.loss is None
    return "kept by the clients" if kept else f"{row.loss or 0:.3f} over {replies} replies"


def describe_evaluation(row: EvaluationRow) -> str:
    """Return an evaluation as one line."""
    metric = metric_of(row.metric)
    rungs = ", ".join(f"{r.name} {metric.say(r[metric.name], 1)}" for r in row.ladder)
    whose = ""
    if row.clients != row.of:
        whose = f" ({row.clients} of {row.of} clients)"
    return f"{row.split} {metric.name}{whose}: {rungs}"
