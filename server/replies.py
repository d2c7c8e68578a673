"""Replies: each is checked before it is folded, and a bad one is quarantined with its reason.

Sizes are looked at before anything is decoded. By then Flower has received the reply whole: the
SuperLink has stored it, and this process holds its bytes once (Flower 1.31 has no limit of its
own). What is saved is decoding it, keeping it and repeating its texts.
"""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from nas.accuracy import Score
from supernet import Architecture, Shape
from supernet.npy import flat_numbers
from supernet.wire import ARRAYS, CONFIG, METRICS, SUBNET, numel, numpy_dtype

_LOAD_FAILED = 1
_GONE = (3, 4, 5)  # said by the SuperLink: message, reply or node is unavailable
_LARGEST = sys.float_info.max
_NPY_HEADER = 1024  # np.save writes 128 bytes before the numbers of a flat array
_ROW = 128  # characters of one row of an evaluation; three numbers written out have fewer than 70
_BLOCK = 1 << 16  # numbers judged at a time: what is found stays in the processor's cache
_NUMBERS = ("num-examples", "loss", "seconds", "images", "mac-images")
_SAID = 500  # characters of a stranger's text that are repeated


class BadReply(ValueError):  # noqa: N818 (it is quarantined, not raised at the user)
    """Why a reply was not folded."""


@dataclass(frozen=True)
class Expected:
    """What the reply to one message must look like.

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

    ``evaluation`` holds (index of the ordered architecture, accuracy, loss) rows.
    """

    flat: np.ndarray
    examples: int
    loss: float
    seconds: float
    images: int
    mac_images: int
    evaluation: tuple[tuple[int, float, float], ...]
    evaluation_examples: int
    source: str
    source_root: str


@dataclass(frozen=True)
class Scored:
    """A node's scores: (position in the order, score) pairs, all on the same images."""

    scores: tuple[tuple[int, Score], ...]
    examples: int


@dataclass(frozen=True)
class Personalised:
    """A node's personalised subnets: (position in the order, initial, personalised accuracy)."""

    rows: tuple[tuple[int, float, float], ...]
    examples: int


def check_reply(message: Message, expected: Expected) -> Reply:
    """Check names, round, architecture, size, shape, dtype, numbers and examples of a reply.

    Raises
    ------
    BadReply
        With the reason, in the order above. Nothing larger than expected is decoded.
    """
    _check_error(message)
    arrays, metrics, config = (
        _record(message, key, kind)
        for key, kind in ((ARRAYS, ArrayRecord), (METRICS, MetricRecord), (CONFIG, ConfigRecord))
    )
    if list(arrays) != [SUBNET]:
        raise BadReply(f"names {_short(sorted(arrays))} in place of ['{SUBNET}']")
    if metrics.get("round") != expected.round:
        raise BadReply(f"round {_short(metrics.get('round'))} in place of {expected.round}")
    if config.get("architecture") != expected.arch.to_json():
        raise BadReply(
            f"architecture {_short(config.get('architecture'))} in place of "
            f"{expected.arch.to_json()}"
        )
    length = numel(expected.shapes)
    size = len(arrays[SUBNET].data)
    most = length * numpy_dtype(expected.wire_dtype).itemsize + _NPY_HEADER
    if size > most:
        raise BadReply(f"size {size:,} bytes in place of at most {most:,}")
    flat = _numbers(arrays[SUBNET], numpy_dtype(expected.wire_dtype))
    if flat.shape != (length,):
        raise BadReply(f"shape {flat.shape} in place of ({length},)")
    if flat.dtype != numpy_dtype(expected.wire_dtype):
        raise BadReply(f"dtype {flat.dtype} in place of {numpy_dtype(expected.wire_dtype)}")
    if not finite(flat, expected.wire_dtype):
        raise BadReply("numbers that are not finite")
    values = {key: metrics.get(key) for key in _NUMBERS}
    for key, value in values.items():
        # Compared, not converted: an integer may be larger than any float.
        if not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
            raise BadReply(f"metric {key} = {_short(value)}: must be a finite number of at least 0")
    _check_declared("num-examples", float(values["num-examples"]), expected.examples)
    evaluation_examples = _examples(metrics)
    _check_declared("evaluation-examples", evaluation_examples, expected.validation)
    return Reply(
        flat=flat,
        examples=int(values["num-examples"]),
        loss=float(values["loss"]),
        seconds=float(values["seconds"]),
        images=int(values["images"]),
        mac_images=int(values["mac-images"]),
        evaluation=_evaluation(str(config.get("evaluation", "[]")), expected.evaluated),
        evaluation_examples=evaluation_examples,
        source=_short(config.get("source", "")),
        source_root=_short(config.get("source-root", "")),
    )


def check_scores(message: Message, outer: Architecture, ordered: int, validation: int) -> Scored:
    """Read the scores of ``ordered`` subnets inside ``outer``.

    ``validation`` is the number of validation images that the node declared.

    Raises
    ------
    BadReply
        For an error, another architecture, a number of images that is none or more than declared,
        or where a node that has images does not give each subnet one score.
    """
    metrics, config = _answer(message, outer)
    examples = metrics.get("evaluation-examples", 0)
    if not isinstance(examples, int) or examples < 0:
        raise BadReply(
            f"metric evaluation-examples = {examples!r:.100}: must be a whole number of at least 0"
        )
    _check_declared("evaluation-examples", examples, validation)
    if not examples:
        return Scored((), 0)
    rows = _evaluation(str(config.get("evaluation", "[]")), ordered)
    scored = {index for index, _, _ in rows}
    if not len(rows) == len(scored) == ordered:
        raise BadReply(
            f"{len(rows)} usable scores of {len(scored)} subnets in place of one for each of "
            f"{ordered} (accuracy from 0 to 1, finite loss)"
        )
    return Scored(tuple((i, Score(a, loss, examples)) for i, a, loss in rows), examples)


def check_personal(message: Message, outer: Architecture, ordered: int) -> Personalised:
    """Read the accuracies of ``ordered`` subnets inside ``outer``, before and after fine-tuning.

    Raises
    ------
    BadReply
        For an error, another architecture, weights that came with it, no test images, or where not
        every subnet has its two accuracies.
    """
    metrics, config = _answer(message, outer)
    if ARRAYS in message.content:
        raise BadReply("weights came back with it: what is personal stays on the node")
    examples = metrics.get("personal-examples", 0)
    if not isinstance(examples, int) or examples < 1:
        raise BadReply(f"metric personal-examples = {_short(examples)}: must be at least 1")
    rows = _evaluation(str(config.get("personal", "[]")), ordered)
    if len({i for i, _, _ in rows}) != ordered or not all(0 <= after <= 1 for _, _, after in rows):
        raise BadReply(
            f"{len(rows)} usable rows in place of one for each of {ordered} subnets (accuracies "
            "from 0 to 1)"
        )
    return Personalised(rows, examples)


def _answer(message: Message, outer: Architecture) -> tuple[MetricRecord, ConfigRecord]:
    """Return the records of an errand's reply; ``BadReply`` where it is about something else."""
    _check_error(message)
    metrics, config = (
        _record(message, key, kind)
        for key, kind in ((METRICS, MetricRecord), (CONFIG, ConfigRecord))
    )
    if config.get("architecture") != outer.to_json():
        raise BadReply(
            f"architecture {_short(config.get('architecture'))} in place of {outer.to_json()}"
        )
    return metrics, config


def is_silence(message: Message | None) -> bool:
    """Say whether this in place of a reply means that the node said nothing at all."""
    return message is None or (message.has_error() and message.error.code in _GONE)


def _check_error(message: Message) -> None:
    if message.has_error():
        reason = f"error {message.error.code}: {_short(message.error.reason or 'no reason given')}"
        if message.error.code == _LOAD_FAILED:
            reason += _LOAD_HINT
        elif _OPAQUE in reason:
            reason += _OPAQUE_HINT
        raise BadReply(reason)


def _check_declared(key: str, count: float, declared: int) -> None:
    if count > declared:
        raise BadReply(f"metric {key} = {count:g}: the node declared {declared}")


def _short(value: object) -> str:
    return f"{value!s:.{_SAID}}"


def _examples(metrics: MetricRecord) -> int:
    scored = metrics.get("evaluation-examples", 0)
    return scored if isinstance(scored, int) and scored > 0 else 0


_LOAD_HINT = (
    " (the node could not load this app's client: another app's `client` package may have been "
    "picked up; run `superfednas stop`, then start again from this app's folder)"
)

_OPAQUE = repr(numpy_dtype("bfloat16"))  # numpy says so where something computes with such an array
_OPAQUE_HINT = (
    " (a mod of the ClientApp computes with the weights, which only wire-dtype = 'float32' allows)"
)


def _record(message: Message, key: str, kind: type) -> Any:
    record = message.content.get(key)
    if not isinstance(record, kind):
        raise BadReply(f"names: no {kind.__name__} called '{key}'")
    return record


def _numbers(array: Any, dtype: np.dtype) -> np.ndarray:
    """Return an array's numbers: where all is as expected, a view of what has come."""
    try:
        flat = flat_numbers(array, dtype)
    except Exception as error:  # noqa: BLE001 (a stranger's bytes can break numpy's reader anywhere)
        raise BadReply(f"dtype: the array cannot be read ({error})") from None
    if not isinstance(flat, np.ndarray):
        raise BadReply(f"dtype: the bytes hold a {type(flat).__name__}, not an array")
    return flat


def finite(flat: np.ndarray, wire_dtype: str) -> bool:
    """Say whether every number of a flat array is finite (what has 16 bits travels opaque)."""
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    if wire_dtype == "bfloat16":
        return all(((b.view(np.uint16) & 0x7F80) != 0x7F80).all() for b in blocks)
    return all(np.isfinite(b.view(wire_dtype)).all() for b in blocks)


def _evaluation(text: str, ordered: int) -> tuple[tuple[int, float, float], ...]:
    """Keep the well-formed rows of an evaluation; accuracy is no reason to refuse weights."""
    if len(text) > _ROW * (1 + ordered):
        return ()
    try:
        rows = [(int(i), float(accuracy), float(loss)) for i, accuracy, loss in json.loads(text)]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return ()
    return tuple(
        row for row in rows if 0 <= row[0] < ordered and 0 <= row[1] <= 1 and math.isfinite(row[2])
    )


class FoldQueue:
    """Give replies back in assignment order, whatever the order in which they came.

    A reply ahead of its turn waits in memory up to ``limit`` bytes, then as a file in ``folder``.

    Parameters
    ----------
    limit
        Bytes of waiting replies kept in memory.
    folder
        Where the others wait; None keeps all in memory.
    in_order
        False hands every reply on at once (``fold-order = "arrival"``).
    """

    def __init__(self, limit: int, folder: Path | None, *, in_order: bool = True) -> None:
        self.limit = limit
        self.folder = folder
        self.in_order = in_order
        self.turn = 0
        self.held_bytes = 0
        self._waiting: dict[int, np.ndarray | Path | None] = {}

    def put(self, index: int, flat: np.ndarray | None) -> Iterator[tuple[int, np.ndarray]]:
        """Take reply number ``index`` (None: there will be none); yield those whose turn came."""
        if not self.in_order:
            if flat is not None:
                yield index, flat
            return
        self._waiting[index] = (
            flat if flat is None or index == self.turn else self._hold(index, flat)
        )
        while self.turn in self._waiting:
            held = self._waiting.pop(self.turn)
            if isinstance(held, Path):
                # Mapped, not read: several are folded together, which must not need their memory.
                ready = np.load(held, mmap_mode="r", allow_pickle=False)
                held.unlink()  # its pages stay until the last view has gone
            else:
                ready = held
                if ready is not None and self.turn != index:
                    self.held_bytes -= ready.nbytes
            self.turn += 1
            if ready is not None:
                yield self.turn - 1, ready

    def _hold(self, index: int, flat: np.ndarray) -> np.ndarray | Path:
        if self.folder is None or self.held_bytes + flat.nbytes <= self.limit:
            self.held_bytes += flat.nbytes
            return flat
        path = self.folder / f"held-{index}.npy"
        np.save(path, flat, allow_pickle=False)
        return path
