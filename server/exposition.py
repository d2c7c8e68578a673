"""A run's state in Prometheus's text format, for the node exporter's textfile collector."""

import time
from collections.abc import Sequence
from typing import Any

from server.progress import traffic

Row = dict[str, Any]


def exposition(rows: Sequence[Row], rounds: int) -> str:
    """Return the metrics of a run.

    Parameters
    ----------
    rows
        The rows of metrics.jsonl so far, at least one of a round.
    rounds
        Rounds that are to be trained.
    """
    done = [row for row in rows if row["kind"] == "round"]
    last = done[-1]
    accepted = [client for client in last["clients"] if client["accepted"]]
    late = sum(len(row.get("late", ())) for row in done)
    asked = sum(len(row["clients"]) for row in done)
    usable = sum(client["accepted"] for row in done for client in row["clients"])
    lines = [
        *_metric("round", "gauge", "Rounds finished.", last["round"]),
        *_metric("rounds", "gauge", "Rounds to train.", rounds),
        *_metric("round_seconds", "gauge", "Seconds of the last round.", last["seconds"]),
        *_metric("replies", "gauge", "Usable replies of the last round.", len(accepted)),
        *_metric("asked", "gauge", "Clients asked in the last round.", len(last["clients"])),
        *_metric("late_replies_total", "counter", "Replies after their round.", late),
        *_metric("unusable_total", "counter", "Replies missing or refused.", asked - usable),
        *_metric("bytes_total", "counter", "Weight bytes, both ways.", sum(map(traffic, done))),
        *_metric("last_round_timestamp_seconds", "gauge", "When it ended.", round(time.time(), 3)),
    ]
    if accepted:
        loss = sum(client["loss"] for client in accepted) / len(accepted)
        lines += _metric("loss", "gauge", "Mean training loss of the last round.", loss)
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    if evaluations:
        lines += [
            f"# HELP superfednas_accuracy Validation accuracy after round "
            f"{evaluations[-1]['trained_rounds']}.",
            "# TYPE superfednas_accuracy gauge",
            *(
                f'superfednas_accuracy{{subnet="{rung["name"]}"}} {rung["accuracy"]}'
                for rung in evaluations[-1]["ladder"]
            ),
        ]
    return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, text: str, value: float) -> list[str]:
    full = f"superfednas_{name}"
    return [f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full} {value}"]
