"""Checks of replies: each is checked before it is folded, a bad one quarantined with a reason.

Sizes are checked before anything is decoded. By then Flower has received the whole reply: the
SuperLink has stored it, and this process holds its bytes once (Flower 1.31 has no limit of its
own). The check avoids decoding it, keeping it and repeating its texts.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from superfednas.common.words import beginning
from superfednas.flower.codes import GONE, ErrorCode
from superfednas.records.refusals import Refusal, Refused, of_flower, said_by_node
from superfednas.supernet import Architecture, Shape
from superfednas.tasks import Metric, Tally
from superfednas.wire.flat import numel, numpy_dtype
from superfednas.wire.npy import flat_numbers
from superfednas.wire.order import ARRAYS, CONFIG, METRICS, SUBNET

LARGEST = 1e100
"""Size up to which numbers beside weights are believed: sums of their squares are finite."""
_NPY_HEADER = 1024  # np.save writes 128 bytes before the numbers of a flat array
_ROW = 4096  # characters of one row of an evaluation: the sums of a histogram of a hundred bins
_BLOCK = 1 << 16  # numbers checked at a time: the result stays in the processor's cache
_LOSS = "loss"  # a node may keep it to itself
_NUMBERS = ("num-examples", _LOSS, "seconds", "images", "mac-images")
_SAID = 500  # characters of an untrusted text that are repeated


Tallies = tuple[tuple[int, Tally], ...]
"""Pairs of a position in the order and what was counted of that subnet."""


class BadReply(ValueError):  # noqa: N818 (it is quarantined, not raised at the user)
    """Why a reply was not folded: a code for programs, a reason for people."""

    def __init__(self, code: Refusal, reason: str) -> None:
        self.refused = Refused(code, reason)
        super().__init__(self.refused.reason)


@dataclass(frozen=True)
class Expected:
    """The expected form of the reply to one message.

    ``examples`` and ``validation`` are the numbers of images that the node declared.
    """

    client: str
    round: int
    arch: Architecture
    shapes: dict[str, Shape]
    wire_dtype: str
    evaluated: int
    examples: int
    validation: int


@dataclass(frozen=True)
class Reply:
    """A reply that passed every check.

    ``evaluation`` holds (index of the ordered architecture, tally) rows; see :func:`usable`.
    ``loss`` is None of a node that keeps its scores.
    """

    flat: np.ndarray
    examples: int
    loss: float | None
    seconds: float
    images: int
    mac_images: int
    evaluation: Tallies
    source: str
    source_root: str


def check_reply(message: Message, expected: Expected, *, weights_later: bool = False) -> Reply:
    """Check names, round, architecture, size, shape, dtype, numbers and examples of a reply.

    With ``weights_later`` the weights are not read: whoever measures them finds what is not finite.

    Raises
    ------
    BadReply
        With the first reason in the order above. Nothing larger than expected is decoded.
    """
    check_error(message)
    arrays, metrics, config = (
        record_of(message, key, kind)
        for key, kind in ((ARRAYS, ArrayRecord), (METRICS, MetricRecord), (CONFIG, ConfigRecord))
    )
    if list(arrays) != [SUBNET]:
        raise BadReply(Refusal.NAMES, f"names {short(sorted(arrays))} in place of ['{SUBNET}']")
    if metrics.get("round") != expected.round:
        raise BadReply(
            Refusal.ROUND, f"round {short(metrics.get('round'))} in place of {expected.round}"
        )
    if config.get("architecture") != expected.arch.to_json():
        raise BadReply(
            Refusal.ARCHITECTURE,
            f"architecture {short(config.get('architecture'))} in place of "
            f"{expected.arch.to_json()}",
        )
    length = numel(expected.shapes)
    size = len(arrays[SUBNET].data)
    most = length * numpy_dtype(expected.wire_dtype).itemsize + _NPY_HEADER
    if size > most:
        raise BadReply(Refusal.SIZE, f"size {size:,} bytes in place of at most {most:,}")
    flat = _numbers(arrays[SUBNET], numpy_dtype(expected.wire_dtype))
    if flat.shape != (length,):
        raise BadReply(Refusal.SHAPE, f"shape {flat.shape} in place of ({length},)")
    if flat.dtype != numpy_dtype(expected.wire_dtype):
        raise BadReply(
            Refusal.DTYPE, f"dtype {flat.dtype} in place of {numpy_dtype(expected.wire_dtype)}"
        )
    if not weights_later and not finite(flat, expected.wire_dtype):
        raise BadReply(Refusal.NOT_FINITE, "numbers that are not finite")
    values = {key: metrics.get(key) for key in _NUMBERS if key in metrics or key != _LOSS}
    for key, value in values.items():
        # Compared, not converted: an integer may be larger than any float.
        if not isinstance(value, int | float) or not 0 <= value <= LARGEST:
            raise BadReply(
                Refusal.NOT_FINITE if _diverged(value) else Refusal.METRIC,
                f"metric {key} = {short(value)}: must be a finite number of at least 0",
            )
    check_declared("num-examples", float(values["num-examples"]), expected.examples)
    evaluation_examples = _examples(metrics)
    check_declared("evaluation-examples", evaluation_examples, expected.validation)
    return Reply(
        flat=flat,
        examples=int(values["num-examples"]),
        loss=float(values[_LOSS]) if _LOSS in values else None,
        seconds=float(values["seconds"]),
        images=int(values["images"]),
        mac_images=int(values["mac-images"]),
        evaluation=_once(read_tallies(config, expected.evaluated, evaluation_examples)),
        source=short(config.get("source", "")),
        source_root=short(config.get("source-root", "")),
    )


def _once(tallies: Tallies) -> Tallies:
    """Return tallies of which no two are of one subnet, which would count twice; else none."""
    return tallies if len(dict(tallies)) == len(tallies) else ()


def usable(tallies: Tallies, metrics: Sequence[Metric]) -> Tallies:
    """Keep the tallies from which every metric can be read, with a value that it can have."""

    def fits(tally: Tally) -> bool:
        try:
            return all(metric.allows(tally.value(metric)) for metric in metrics)
        except (KeyError, ValueError, ArithmeticError):  # sums that are not the task's
            return False

    return tuple((index, tally) for index, tally in tallies if fits(tally))


def is_silence(message: Message | None) -> bool:
    """Return whether this error means that the node has not answered at all."""
    return message is None or (message.has_error() and message.error.code in GONE)


def check_error(message: Message) -> None:
    """Raise ``BadReply`` for an error, or the node's own refusal, in place of a reply."""
    if message.has_error():
        reason = f"error {message.error.code}: {short(message.error.reason or 'no reason given')}"
        if message.error.code == ErrorCode.LOAD_FAILED:
            reason += _LOAD_HINT
        elif _OPAQUE in reason:
            reason += _OPAQUE_HINT
        raise BadReply(of_flower(message.error.code), reason)
    config = message.content.get(CONFIG)
    if isinstance(config, ConfigRecord) and (refused := said_by_node(config)):
        raise BadReply(refused.code, refused.reason)


def check_declared(key: str, count: float, declared: int) -> None:
    """Raise ``BadReply`` for more images than the node declared."""
    if count > declared:
        raise BadReply(
            Refusal.MORE_THAN_DECLARED,
            f"metric {key} = {min(count, LARGEST):g}: the node declared {declared}",
        )


def _diverged(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def short(value: object) -> str:
    """Return as much of a stranger's text as is repeated."""
    return beginning(value, _SAID)


def _examples(metrics: MetricRecord) -> int:
    scored = metrics.get("evaluation-examples", 0)
    return scored if isinstance(scored, int) and scored > 0 else 0


_LOAD_HINT = (
    " (the node could not load this app's client: another app's `client` package may have been "
    "picked up; run `superfednas stop`, then start again from this app's folder)"
)

_OPAQUE = repr(numpy_dtype("bfloat16"))  # numpy's words when something computes with such an array
_OPAQUE_HINT = (
    " (a mod of the ClientApp computes with the weights, which only wire-dtype = 'float32' allows)"
)


def record_of(message: Message, key: str, kind: type) -> Any:
    """Return a record of a reply; ``BadReply`` where there is none of that kind."""
    record = message.content.get(key)
    if not isinstance(record, kind):
        raise BadReply(Refusal.NAMES, f"names: no {kind.__name__} called '{key}'")
    return record


def _numbers(array: Any, dtype: np.dtype) -> np.ndarray:
    """Return an array's numbers, as a view of the received bytes if everything is as expected."""
    try:
        flat = flat_numbers(array, dtype)
    except Exception as error:  # noqa: BLE001 (a stranger's bytes can break numpy's reader anywhere)
        raise BadReply(Refusal.DTYPE, f"dtype: the array cannot be read ({error})") from None
    if not isinstance(flat, np.ndarray):
        raise BadReply(
            Refusal.DTYPE, f"dtype: the bytes hold a {type(flat).__name__}, not an array"
        )
    return flat


def finite(flat: np.ndarray, wire_dtype: str) -> bool:
    """Return whether every number of a flat array is finite (16-bit formats are opaque)."""
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    if wire_dtype == "bfloat16":
        return all(((b.view(np.uint16) & 0x7F80) != 0x7F80).all() for b in blocks)
    return all(np.isfinite(b.view(wire_dtype)).all() for b in blocks)


def read_tallies(config: ConfigRecord, ordered: int, examples: int) -> Tallies:
    """Return the tallies of an evaluation; what is none is no reason to refuse weights."""

    def read(index: Any, sums: Any) -> tuple[int, Tally]:
        return int(index), Tally(examples, {str(name): float(n) for name, n in sums.items()})

    rows: Tallies = read_rows(config, "evaluation", ordered, read) if examples else ()
    return tuple(row for row in rows if all(abs(n) <= LARGEST for n in row[1].sums.values()))


def read_rows(
    config: ConfigRecord, key: str, ordered: int, read: Callable[..., tuple[Any, ...]]
) -> tuple[Any, ...]:
    """Return rows of JSON, each about one of ``ordered`` subnets; of a bad list none."""
    text = str(config.get(key, "[]"))
    if len(text) > _ROW * (1 + ordered):
        return ()
    try:
        rows = [read(*row) for row in json.loads(text)]
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return ()
    return tuple(row for row in rows if 0 <= row[0] < ordered)
