"""A run's state in Prometheus's text format, for the node exporter's textfile collector.

Every sample names its run, so that the files of several runs can lie in one folder; what stands in
a ``# HELP`` line is therefore the same in all of them.
"""

import time
from collections.abc import Iterator
from typing import Any

from server.newest import STATUSES
from server.progress import traffic

Row = dict[str, Any]
_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Exposition:
    """The metrics of a run, as sums and last rows: a round costs the same at any age.

    Parameters
    ----------
    run
        The run folder's name.
    """

    def __init__(self, run: str) -> None:
        self._run = run.encode(errors="replace").decode()  # names of folders can be any bytes
        self._late = self._asked = self._usable = self._bytes = 0
        self._round: Row | None = None
        self._ended: float | None = None
        self._evaluation: Row | None = None

    def add(self, row: Row) -> None:
        """Take the row of metrics.jsonl that has just been written."""
        self.restore(row)
        if row["kind"] == "round":
            self._ended = round(time.time(), 3)

    def restore(self, row: Row) -> None:
        """Take a row of an earlier start; rows do not say when their round ended."""
        if row["kind"] == "evaluation":
            self._evaluation = row
        elif row["kind"] == "round":
            self._round = row
            self._late += len(row.get("late", ()))
            self._asked += len(row["clients"])
            self._usable += sum(client["accepted"] for client in row["clients"])
            self._bytes += traffic(row)

    def text(self, rounds: int, status: str, wanted: int = 0) -> str:
        """Return the metrics of a run.

        Parameters
        ----------
        rounds
            To train.
        status
            One of :data:`server.newest.STATUSES`.
        wanted
            Clients that a round should have; 0 leaves that out.
        """
        done = 0 if self._round is None else self._round["round"]
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
        accepted = [client for client in last["clients"] if client["accepted"]]
        asked = len(last["clients"])
        yield from self._single(
            "round_seconds", "gauge", "Seconds of the last round.", last["seconds"]
        )
        yield from self._single(
            "replies", "gauge", "Usable replies of the last round.", len(accepted)
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
        if accepted:
            loss = sum(client["loss"] for client in accepted) / len(accepted)
            yield from self._single("loss", "gauge", "Mean training loss of the last round.", loss)

    def _last_evaluation(self) -> Iterator[str]:
        last = self._evaluation
        if last is None:
            return
        yield from self._single(
            "accuracy_round",
            "gauge",
            "Rounds trained when it was measured.",
            last["trained_rounds"],
        )
        yield from self._metric(
            "accuracy",
            "gauge",
            "Validation accuracy of the last evaluation.",
            *(({"subnet": rung["name"]}, rung["accuracy"]) for rung in last["ladder"]),
        )

    def _single(self, name: str, kind: str, text: str, value: float) -> Iterator[str]:
        return self._metric(name, kind, text, ({}, value))

    def _metric(
        self, name: str, kind: str, text: str, *samples: tuple[dict[str, str], float]
    ) -> Iterator[str]:
        full = f"superfednas_{name}"
        yield f"# HELP {full} {text}"
        yield f"# TYPE {full} {kind}"
        for labels, value in samples:
            every = {"run": self._run, **labels}
            said = ",".join(f'{key}="{label.translate(_ESCAPED)}"' for key, label in every.items())
            yield f"{full}{{{said}}} {value}"
