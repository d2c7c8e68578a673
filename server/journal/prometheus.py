"""A run's state in Prometheus's text format, for the node exporter's textfile collector.

Every sample names its run, so that the files of several runs can share a folder; ``# HELP`` lines
are therefore the same in all of them.
"""

import time
from collections.abc import Iterator

from superfednas.common.words import one_line
from superfednas.records.index import STATUSES
from superfednas.records.rows import EvaluationRow, RoundRow, Row
from superfednas.tasks.registry import metric_of

_BACKSLASH = str.maketrans({"\\": r"\\"})
_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\""})


class Exposition:
    """The metrics of a run, as sums and last rows: a round's cost does not grow with the run.

    Parameters
    ----------
    run
        The run folder's name.
    """

    def __init__(self, run: str) -> None:
        self._run = run.encode(errors="replace").decode()  # folder names can be any bytes
        self._late = self._asked = self._usable = self._bytes = 0
        self._round: RoundRow | None = None
        self._ended: float | None = None
        self._evaluation: EvaluationRow | None = None

    def add(self, row: Row) -> None:
        """Take the row of metrics.jsonl that has just been written."""
        self.restore(row)
        if isinstance(row, RoundRow):
            self._ended = round(time.time(), 3)

    def restore(self, row: Row) -> None:
        """Take a row of an earlier start; rows do not state when their round ended."""
        if isinstance(row, RoundRow):
            self._round = row
            self._late += len(row.late)
            self._asked += len(row.clients)
            self._usable += len(row.accepted)
            self._bytes += row.bytes
        elif isinstance(row, EvaluationRow) and row.kind == "evaluation":
            self._evaluation = row

    def text(self, rounds: int, status: str, wanted: int = 0) -> str:
        """Return the metrics of a run.

        Parameters
        ----------
        rounds
            To train.
        status
            One of :data:`superfednas.records.index.STATUSES`.
        wanted
            Clients that a round should have; 0 leaves that out.
        """
        done = 0 if self._round is None else self._round.round
        lines = [
            *self._metric(
                "status",
                "gauge",
                "1 for what the run is, 0 for what it is not.",
                *(({"status": known}, int(known == status)) for known in STATUSES),
            ),
            *self._single("round", "gauge", "Rounds finished.", done),
            *self._single("rounds", "gauge", "Rounds to train.", rounds),
            *(self._single("wanted", "gauge", "Clients a round wants.", wanted) if wanted else ()),
            *self._last_round(),
            *self._last_evaluation(),
        ]
        return "\n".join(lines) + "\n"

    def _last_round(self) -> Iterator[str]:
        last, unusable = self._round, self._asked - self._usable
        if last is None:
            return
        asked = len(last.clients)
        yield from self._single(
            "round_seconds", "gauge", "Seconds of the last round.", last.seconds
        )
        yield from self._single(
            "replies", "gauge", "Usable replies of the last round.", len(last.accepted)
        )
        yield from self._single("asked", "gauge", "Clients asked in the last round.", asked)
        yield from self._single(
            "late_replies_total", "counter", "Replies after their round.", self._late
        )
        yield from self._single(
            "unusable_total", "counter", "Replies missing or refused.", unusable
        )
        yield from self._single("bytes_total", "counter", "Weight bytes, both ways.", self._bytes)
        if self._ended is not None:
            yield from self._single(
                "last_round_timestamp_seconds", "gauge", "When the last round ended.", self._ended
            )
        if last.loss is not None:
            said = "Mean training loss of the last round."
            yield from self._single("loss", "gauge", said, last.loss)

    def _last_evaluation(self) -> Iterator[str]:
        last = self._evaluation
        if last is None:
            return
        metric = metric_of(last.metric)
        name = "".join(char if char.isascii() and char.isalnum() else "_" for char in metric.name)
        yield from self._single(
            f"{name}_round",
            "gauge",
            "Rounds trained when it was measured.",
            last.trained_rounds,
        )
        yield from self._metric(
            name,
            "gauge",
            f"Validation {metric.name} of the last evaluation.",
            *(({"subnet": rung.name}, rung[metric.name]) for rung in last.ladder),
        )

    def _single(self, name: str, kind: str, text: str, value: float) -> Iterator[str]:
        return self._metric(name, kind, text, ({}, value))

    def _metric(
        self, name: str, kind: str, text: str, *samples: tuple[dict[str, str], float]
    ) -> Iterator[str]:
        full = f"superfednas_{name}"
        yield f"# HELP {full} {one_line(text).translate(_BACKSLASH)}"
        yield f"# TYPE {full} {kind}"
        for labels, value in samples:
            every = {"run": self._run, **labels}
            said = ",".join(f'{key}="{_label(text)}"' for key, text in every.items())
            yield f"{full}{{{said}}} {value}"


def _label(text: str) -> str:
    """Return a text as the value of a label."""
    return one_line(text).translate(_ESCAPED)
