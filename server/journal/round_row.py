"""Records of a round: its row of metrics.jsonl, and Flower's metrics."""

from collections.abc import Mapping
from dataclasses import replace

from flwr.app import MetricRecord

from superfednas.records.refusals import Refusal, Refused
from superfednas.records.rows import ClientRow, RoundRow
from superfednas.server.journal.evaluation import Report
from superfednas.server.round.check import Reply, usable
from superfednas.server.round.orders import SUPERNET, RoundPlan
from superfednas.supernet import SearchSpace
from superfednas.wire.flat import numel, numpy_dtype

_NOTHING = Refused(Refusal.NO_REPLY, "no reply")


def round_row(
    plan: RoundPlan,
    found: Mapping[int, Reply | Refused],
    verdicts: Mapping[str, str],
    space: SearchSpace,
    wire_dtype: str,
) -> tuple[RoundRow, dict[str, Report]]:
    """Return a round's row of metrics.jsonl, and what each client, by name, scored on the ladder.

    Parameters
    ----------
    plan
        The round's plan.
    found
        For every position of the plan the accepted reply, or why there is none.
    verdicts
        What the averaging did to the replies that it did not use as they were.
    space, wire_dtype
        To count MACs and bytes, and to read tallies.
    """
    item = numpy_dtype(wire_dtype).itemsize
    metric = space.task.metrics[0]
    unknown = {metric.name: None}
    clients: list[ClientRow] = []
    reports: dict[str, Report] = {}
    for index, order in enumerate(plan.orders):
        entry = found.get(index, _NOTHING)
        params = numel(order.cut.shapes)
        client = ClientRow(
            client=order.name,
            architecture=order.arch.to_json(),
            macs=space.macs(order.arch),
            params=params,
            weight=order.weight,
            favoured=order.favoured,
            bytes_down=order.bytes,
            verdict=verdicts.get(order.name),
            target="" if order.target == SUPERNET else order.target,
        )
        if isinstance(entry, Refused):
            client = replace(client, refusal=entry.code, reason=entry.reason)
        else:
            tallies = usable(entry.evaluation, space.task.metrics)
            scores = {rung: {metric.name: tally.value(metric)} for rung, tally in tallies}
            client = replace(
                client,
                accepted=True,
                bytes_up=item * params,
                loss=entry.loss,
                examples=entry.examples,
                images=entry.images,
                mac_images=entry.mac_images,
                seconds=entry.seconds,
                own=scores.get(0, unknown),
                smallest=scores.get(1, unknown),
            )
            # 0 is its own
            reports[order.name] = [(rung - 1, tally) for rung, tally in tallies if rung]
        clients.append(client)
    return RoundRow(plan.round, plan.beta, plan.lr, tuple(clients)), reports


def round_metrics(row: RoundRow) -> MetricRecord:
    """Return a round's row as Flower's metrics."""
    values: dict[str, int | float | list[int] | list[float]] = {
        "accepted": len(row.accepted),
        "refused": len(row.refused),
    }
    if row.beta is not None:
        values["beta"] = float(row.beta)
    if row.loss is not None:
        values["loss"] = row.loss
    return MetricRecord(values)
