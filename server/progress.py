"""What a run says while it runs: one line a round, or a live display on a terminal."""

import time
from collections.abc import Callable
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

Row = dict[str, Any]


class Note(Protocol):
    """Takes a sentence for people, and what happened to whom for programs."""

    def __call__(self, text: str, /, event: str = "note", **about: Any) -> None:
        """Say it; ``about`` are JSON values."""


_WIDTH = 100


class Progress:
    """Print one line a round: under Flower the output is a stream, so nothing is redrawn.

    Parameters
    ----------
    console
        Where to; by default standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, width=_WIDTH)
        self.journal: Callable[[Row], None] | None = None  # takes what is noted, as one row each
        self.rounds = 0
        self.first = 1
        self.started = self._after_first = time.monotonic()

    def start(self, first: int, rounds: int) -> None:
        """Begin with round ``first`` of ``rounds``."""
        self.first, self.rounds = first, rounds
        self.started = self._after_first = time.monotonic()

    def note(self, text: str, /, event: str = "note", **about: Any) -> None:
        """Say one sentence, if there is one, and keep it with what it is about."""
        if text:
            self.write(text)
        if self.journal is not None:
            self.journal({"event": event, **about, "text": text})

    def round(self, row: Row) -> None:
        """Report a finished round (a ``round`` row of metrics.jsonl)."""
        self.write(self.describe(row))

    def evaluation(self, row: Row) -> None:
        """Report an evaluation of the ladder."""
        self.write(f"{'':>{len(self._count(row['round']))}} {describe_evaluation(row)}")

    def write(self, text: str) -> None:
        """Print a line at once, never folded: the last one is a path that others read."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """End the display."""

    def describe(self, row: Row) -> str:
        """Return the line of a round."""
        accepted = [c for c in row["clients"] if c["accepted"]]
        parts = [self._count(row["round"])]
        if row["beta"] is not None:
            parts.append(f"β {row['beta']:.3f}")
        if accepted:
            parts.append(f"loss {sum(c['loss'] for c in accepted) / len(accepted):.3f}")
        refused = len(row["clients"]) - len(accepted)
        late = len(row.get("late", ()))
        parts.append(
            f"{len(accepted)} replies"
            + (f", {refused} missing or refused" if refused else "")
            + (f", {late} late" if late else "")
        )
        parts.append(f"{amount(traffic(row))} sent and received")
        parts.append(f"{row['seconds']:.1f} s")
        parts.append(f"{self.left(row['round'])} left")
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

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, auto_refresh=False)
        self._bytes = 0
        self._evaluation = "not yet"

    def start(self, first: int, rounds: int) -> None:
        """Begin with round ``first`` of ``rounds``."""
        super().start(first, rounds)
        self._live.start()

    def round(self, row: Row) -> None:
        """Redraw with a finished round."""
        self._bytes += traffic(row)
        table = Table.grid(padding=(0, 2))
        accepted = [c for c in row["clients"] if c["accepted"]]
        loss = sum(c["loss"] for c in accepted) / max(1, len(accepted))
        for name, value in (
            ("round", f"{row['round']} of {self.rounds}, {self.left(row['round'])} left"),
            ("β", "none" if row["beta"] is None else f"{row['beta']:.3f}"),
            ("training loss", f"{loss:.3f} over {len(accepted)} replies"),
            ("accuracy", self._evaluation),
            ("bytes", f"{amount(self._bytes)} sent and received"),
        ):
            table.add_row(name, value)
        self._live.update(table, refresh=True)

    def evaluation(self, row: Row) -> None:
        """Keep the newest accuracies for the display."""
        self._evaluation = describe_evaluation(row)

    def stop(self) -> None:
        """End the display."""
        self._live.stop()


def traffic(row: Row) -> int:
    """Return the weight bytes of a round, both ways."""
    return sum(int(c["bytes_down"]) + int(c["bytes_up"]) for c in row["clients"])


def describe_evaluation(row: Row) -> str:
    """Return an evaluation as one line."""
    rungs = ", ".join(f"{r['name']} {r['accuracy']:.1%}" for r in row["ladder"])
    return f"{row['split']} accuracy: {rungs}"


def amount(size: float) -> str:
    """Return a number of bytes in a unit that fits."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def duration(seconds: float) -> str:
    """Return seconds as a short text."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
