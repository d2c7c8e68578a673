"""A run's state in Prometheus's text format, for the node exporter's textfile collector."""

import time
from typing import Any

from server.progress import traffic

Row = dict[str, Any]


class Exposition:
    """The metrics of a run, as sums and last rows: a round costs the same at any age."""

    def __init__(self) -> None:
        self._late = self._asked = self._usable = self._bytes = 0
        self._round: Row | None = None
        self._evaluation: Row | None = None

    def add(self, row: Row) -> None:
        """Take the next row of metrics.jsonl."""
        if row["kind"] == "evaluation":
            self._evaluation = row
        elif row["kind"] == "round":
            self._round = row
            self._late += len(row.get("late", ()))
            self._asked += len(row["clients"])
            self._usable += sum(client["accepted"] for client in row["clients"])
            self._bytes += traffic(row)

    def text(self, rounds: int) -> str:
        """Return the metrics of a run of so many rounds; nothing before the first."""
        last = self._round
        if last is None:
            return ""
        accepted = [client for client in last["clients"] if client["accepted"]]
        lines = [
            *_metric("round", "gauge", "Rounds finished.", last["round"]),
            *_metric("rounds", "gauge", "Rounds to train.", rounds),
            *_metric("round_seconds", "gauge", "Seconds of the last round.", last["seconds"]),
            *_metric("replies", "gauge", "Usable replies of the last round.", len(accepted)),
            *_metric("asked", "gauge", "Clients asked in the last round.", len(last["clients"])),
            *_metric("late_replies_total", "counter", "Replies after their round.", self._late),
            *_metric(
                "unusable_total",
                "counter",
                "Replies missing or refused.",
                self._asked - self._usable,
            ),
            *_metric("bytes_total", "counter", "Weight bytes, both ways.", self._bytes),
            *_metric(
                "last_round_timestamp_seconds", "gauge", "When it ended.", round(time.time(), 3)
            ),
        ]
        if accepted:
            loss = sum(client["loss"] for client in accepted) / len(accepted)
            lines += _metric("loss", "gauge", "Mean training loss of the last round.", loss)
        if self._evaluation is not None:
            lines += [
                f"# HELP superfednas_accuracy Validation accuracy after round "
                f"{self._evaluation['trained_rounds']}.",
                "# TYPE superfednas_accuracy gauge",
                *(
                    f'superfednas_accuracy{{subnet="{rung["name"]}"}} {rung["accuracy"]}'
                    for rung in self._evaluation["ladder"]
                ),
            ]
        return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, text: str, value: float) -> list[str]:
    full = f"superfednas_{name}"
    return [f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full} {value}"]
