"""What a round leaves in the books: its row of metrics.jsonl, and Flower's metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import MetricRecord

from server.plan import RoundPlan
from server.replies import Reply
from supernet import SearchSpace
from supernet.wire import numel, numpy_dtype

Row = dict[str, Any]
# A client's number of validation images and its (rung, accuracy, loss) rows.
Report = tuple[int, Sequence[tuple[int, float, float]]]


def round_row(
    plan: RoundPlan,
    found: Mapping[int, Reply | str],
    verdicts: Mapping[str, str],
    space: SearchSpace,
    wire_dtype: str,
) -> tuple[Row, list[Report]]:
    """Return a round's row of metrics.jsonl, and what each client scored on the ladder.

    Parameters
    ----------
    plan
        The round's plan.
    found
        For every position of the assignment the accepted reply, or why there is none.
    verdicts
        What the averaging did to the replies that it did not take as they were.
    space, wire_dtype
        To count MACs and bytes.
    """
    item = numpy_dtype(wire_dtype).itemsize
    clients: list[Row] = []
    reports: list[Report] = []
    for index, (name, arch) in enumerate(plan.assignment.items()):
        entry = found.get(index, "no reply")
        params = numel(plan.cuts[arch].shapes)
        client: Row = {
            "client": name,
            "architecture": arch.to_json(),
            "macs": space.macs(arch),
            "params": params,
            "weight": plan.weights[name],
            "favoured": name in plan.favoured,
            "bytes_down": plan.bytes_down[name],
            "bytes_up": 0,
            "accepted": isinstance(entry, Reply),
            "reason": entry if isinstance(entry, str) else None,
            "verdict": verdicts.get(name),
        }
        if isinstance(entry, Reply):
            scores = {i: accuracy for i, accuracy, _ in entry.evaluation}
            client |= {
                "bytes_up": item * params,
                "loss": entry.loss,
                "examples": entry.examples,
                "images": entry.images,
                "mac_images": entry.mac_images,
                "seconds": entry.seconds,
                "own_accuracy": scores.get(0),
                "smallest_accuracy": scores.get(1),
            }
            shifted = [(i - 1, a, loss) for i, a, loss in entry.evaluation if i]  # 0 is its own
            reports.append((entry.evaluation_examples, shifted))
        clients.append(client)
    row = {
        "kind": "round",
        "round": plan.round,
        "beta": plan.beta,
        "lr": plan.lr,
        "clients": clients,
    }
    return row, reports


def round_metrics(row: Row) -> MetricRecord:
    """Return a round's row as Flower's metrics."""
    accepted = [client for client in row["clients"] if client["accepted"]]
    values: dict[str, int | float | list[int] | list[float]] = {
        "accepted": len(accepted),
        "refused": len(row["clients"]) - len(accepted),
    }
    if row["beta"] is not None:
        values["beta"] = float(row["beta"])
    if accepted:
        values["loss"] = sum(float(c["loss"]) for c in accepted) / len(accepted)
    return MetricRecord(values)
