"""Checks of replies to errands: numbers about subnets, checked before they count."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord

from superfednas.records.refusals import Refusal
from superfednas.server.round.check import (
    BadReply,
    Tallies,
    check_declared,
    check_error,
    read_rows,
    read_tallies,
    record_of,
    short,
    usable,
)
from superfednas.supernet import Architecture
from superfednas.tasks import Metric
from superfednas.wire.claims import ClaimError, count_of
from superfednas.wire.order import ARRAYS, CONFIG, METRICS


@dataclass(frozen=True)
class Scored:
    """A node's tallies by position in the order, all of the same examples."""

    tallies: Tallies
    examples: int


@dataclass(frozen=True)
class Personalised:
    """A node's personalised subnets: (position in the order, initial, personalised metric)."""

    rows: tuple[tuple[int, float, float], ...]
    examples: int


def check_scores(
    message: Message,
    outer: Architecture,
    ordered: int,
    validation: int,
    wanted: Sequence[Metric],
) -> Scored:
    """Read the tallies of ``ordered`` subnets inside ``outer``, which hold the metrics ``wanted``.

    ``validation`` is the number of validation examples that the node declared.

    Raises
    ------
    BadReply
        For an error, another architecture, a number of images that is invalid or more than
        declared, or if a node with images does not give each subnet exactly one score.
    """
    metrics, config = _answer(message, outer)
    examples = _count(metrics, "evaluation-examples", 0)
    check_declared("evaluation-examples", examples, validation)
    if not examples:
        return Scored((), 0)
    rows = usable(read_tallies(config, ordered, examples), wanted)
    scored = {index for index, _ in rows}
    if not len(rows) == len(scored) == ordered:
        raise BadReply(
            Refusal.SCORES,
            f"{len(rows)} usable scores of {len(scored)} subnets in place of one for each of "
            f"{ordered} ({_allowed(wanted)})",
        )
    return Scored(rows, examples)


def check_personal(
    message: Message, outer: Architecture, ordered: int, metric: Metric, *, told: bool = True
) -> Personalised:
    """Read a metric of ``ordered`` subnets inside ``outer``, before and after fine-tuning.

    Of a node that keeps its scores (not ``told``) the result is empty.

    Raises
    ------
    BadReply
        For an error, another architecture, weights that came with it, no test images, or where not
        every subnet has its two values.
    """
    metrics, config = _answer(message, outer)
    if ARRAYS in message.content:
        raise BadReply(
            Refusal.WEIGHTS, "weights came back with it: what is personal stays on the node"
        )
    if not told:
        return Personalised((), 0)
    examples = _count(metrics, "personal-examples", 1)
    rows = tuple(
        (index, before, after)
        for index, before, after in read_rows(config, "personal", ordered, _two_values)
        if metric.allows(before) and metric.allows(after)
    )
    if len({index for index, _, _ in rows}) != ordered:
        raise BadReply(
            Refusal.SCORES,
            f"{len(rows)} usable rows in place of one for each of {ordered} subnets "
            f"({_allowed([metric])})",
        )
    return Personalised(rows, examples)


def _count(metrics: MetricRecord, key: str, least: int) -> int:
    try:
        return count_of(f"metric {key}", metrics.get(key, 0), least)
    except ClaimError as error:
        raise BadReply(Refusal.METRIC, str(error)) from None


def _two_values(index: Any, before: Any, after: Any) -> tuple[int, float, float]:
    return int(index), float(before), float(after)


def _allowed(metrics: Sequence[Metric]) -> str:
    return ", ".join(f"{m.name} from {m.low:g} to {m.high:g}" for m in metrics)


def _answer(message: Message, outer: Architecture) -> tuple[MetricRecord, ConfigRecord]:
    """Return the records of an errand's reply; ``BadReply`` if it concerns something else."""
    check_error(message)
    metrics, config = (
        record_of(message, key, kind)
        for key, kind in ((METRICS, MetricRecord), (CONFIG, ConfigRecord))
    )
    if config.get("architecture") != outer.to_json():
        raise BadReply(
            Refusal.ARCHITECTURE,
            f"architecture {short(config.get('architecture'))} in place of {outer.to_json()}",
        )
    return metrics, config
