"""Replies to one order, right ones and wrong ones, by what is wrong with them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from superfednas.flower.codes import ErrorCode, OwnCode
from superfednas.records.refusals import Refusal
from superfednas.server.round.check import Expected
from superfednas.supernet import Architecture
from superfednas.wire.flat import pack


@dataclass(frozen=True)
class Named(Architecture):
    """An architecture that is only a number."""

    reply_number: int


ORDER = Message(RecordDict(), dst_node_id=7, message_type="train", group_id="3")
EXPECTED = Expected("5", 3, Named(1), {"w": (2, 2), "b": (3,)}, "float32", 3, 11, 8)
LENGTH = 2 * 2 + 3
METRICS = {
    "num-examples": 11,
    "loss": 0.5,
    "seconds": 0.25,
    "images": 33,
    "mac-images": 330,
    "round": 3,
}
TEXTS = {"architecture": Named(1).to_json(), "source": "abc", "source-root": "/app"}


def flat(dtype: str = "float32", size: int = LENGTH) -> np.ndarray:
    return pack({"w": torch.arange(size)}, dtype)


def reply(
    array: Array | np.ndarray | None = None,
    *,
    metrics: dict[str, Any] | None = None,
    texts: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    record: dict[str, Any] | None = None,
) -> Message:
    """Give a right reply with some parts changed, or left out."""
    array = flat() if array is None else array
    numbers = {k: v for k, v in (METRICS | (metrics or {})).items() if k not in drop}
    words = {k: v for k, v in (TEXTS | (texts or {})).items() if k not in drop}
    parts: dict[str, Any] = {
        "arrays": ArrayRecord({"subnet": array if isinstance(array, Array) else Array(array)}),
        "metrics": MetricRecord(numbers),
        "config": ConfigRecord(words),
    }
    parts = {key: part for key, part in parts.items() if key not in drop} | (record or {})
    return Message(RecordDict(parts), reply_to=ORDER)


def error(code: int, reason: str | None = None) -> Message:
    """Give what Flower sends in place of a reply."""
    return Message(Error(code, reason), reply_to=ORDER)


def endless() -> np.ndarray:
    """Give weights of which one has left the numbers."""
    values = flat()
    values[4] = np.inf
    return values


# One reply for each way to be refused.
WRONG: dict[Refusal, Message] = {
    Refusal.FLOWER_ERROR: error(ErrorCode.UNKNOWN, "odd"),
    Refusal.LOAD_FAILED: error(ErrorCode.LOAD_FAILED, "ImportError"),
    Refusal.RAISED: error(ErrorCode.RAISED, "<class 'ValueError'>:<'x'>"),
    Refusal.MESSAGE_UNAVAILABLE: error(ErrorCode.MESSAGE_UNAVAILABLE, "expired"),
    Refusal.MESSAGE_LOST: error(ErrorCode.REPLY_UNAVAILABLE, "lost"),
    Refusal.NODE_GONE: error(ErrorCode.NODE_UNAVAILABLE, "gone"),
    Refusal.MOD_PRECONDITION: error(ErrorCode.MOD_PRECONDITION),
    Refusal.INVALID_FAB: error(ErrorCode.INVALID_FAB),
    Refusal.CRASHED: error(ErrorCode.CRASHED, "ClientApp stopped responding."),
    Refusal.UNREADABLE: error(OwnCode.UNREADABLE, "the reply cannot be read: KeyError: 'Array'"),
    Refusal.NAMES: reply(drop=("arrays",)),
    Refusal.ROUND: reply(metrics={"round": 2}),
    Refusal.ARCHITECTURE: reply(texts={"architecture": Named(2).to_json()}),
    Refusal.SIZE: reply(flat(size=10_000)),
    Refusal.SHAPE: reply(flat(size=LENGTH - 1)),
    Refusal.DTYPE: reply(np.zeros(LENGTH, np.int32)),
    Refusal.NOT_FINITE: reply(endless()),
    Refusal.METRIC: reply(metrics={"seconds": -1}),
    Refusal.MORE_THAN_DECLARED: reply(metrics={"num-examples": 12}),
}
