"""Replies that a hostile node could send, made from right ones: what is wrong is drawn as data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from hypothesis import strategies as st

from superfednas.wire.claims import MOST_CLASSES
from tests.server.test_fuzz import EVALUATIONS, NUMBERS, SCALARS
from tests.support.hostile import HOSTILE as HOSTILE_TEXT
from tests.support.hostile_federation import RIGHT, UNREADABLE

Records = dict[str, Any]
_KEYS = ("num-examples", "images", "mac-images", "loss", "seconds", "round")
_TEXTS = ("architecture", "evaluation", "evaluation-examples", "source", "source-root")
_NOT_FINITE = (float("nan"), float("inf"), -float("inf"))
_DTYPES = (">f4", "f8", "f2", "i4", "u1", "?", "U3", "c8")
ODD = st.sampled_from(
    [
        *(0, -1, 1, 5, True, False, 10**9, 10**9 + 1, 2**63 - 1, -(2**63), 10**400, 10**5000),
        *(0.0, -0.5, 0.5, 1e308, *_NOT_FINITE),
        *("", " ", "1", "kitchen", "9" * 5000, "\n", "\x1b[2Jgone", "\u202e", "a\0b", "é" * 100),
        *("x" * 10**6, "{}" * 50, b"", b"\xff" * 1000),
        *([], [5], [-1, 6], [0.5] * 3, [float("nan")], [True], ["a", "\n"], [b"x"]),
        [1] * (MOST_CLASSES + 1),
    ]
)
KEYS = st.sampled_from(
    [
        *("name", "name", "examples", "validation-examples", "num-partitions", "in-turn"),
        *("max-macs", "max-params", "max-memory", "max-latency", "max-", "max-" + "x" * 10**5),
        *("device-class", "class-counts", "problem", "protocol", "still-there", "\x1b"),
    ]
)


@dataclass(frozen=True)
class Spoil:
    """One way to spoil a reply.

    Parameters
    ----------
    kind
        Its name, for reports.
    breaks
        Whether it breaks a rule for certain, so that the reply must be refused.
    apply
        What makes the reply from the right one and the order.
    about
        What was drawn, to read it when a test fails.
    """

    kind: str
    breaks: bool
    apply: Callable[[Message, Message], Any]
    about: str

    def __call__(self, reply: Message, order: Message) -> Any:
        return self.apply(reply, order)

    def __repr__(self) -> str:
        return f"{self.kind}({self.about:.100})"


@st.composite
def answers(draw: st.DrawFn, name: str = "1") -> dict[str, Any]:
    """Draw the config of an answer that is wrong in one to three things, or lacks them."""
    said: dict[str, Any] = RIGHT | {"name": name}
    for _ in range(draw(st.integers(1, 3))):
        key = draw(KEYS)
        if draw(st.integers(0, 9)) == 0:
            said.pop(key, None)
        else:
            said[key] = draw(ODD | st.text(max_size=120) | st.integers() | st.floats())
    return said


def _flat(message: Message) -> np.ndarray:
    return message.content.array_records["arrays"]["subnet"].numpy()


def _with(reply: Message, order: Message, **records: Any) -> Message:
    return Message(RecordDict(dict(reply.content) | records), reply_to=order)


def _weights(change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., Message]:
    def apply(reply: Message, order: Message) -> Message:
        with np.errstate(all="ignore"):
            flat = change(np.array(_flat(reply)), _flat(order))
        return _with(reply, order, arrays=ArrayRecord({"subnet": Array(flat)}))

    return apply


@st.composite
def numbers(draw: st.DrawFn) -> Spoil:
    """Draw a number, or all of them, that no average survives."""
    value = draw(st.sampled_from([*_NOT_FINITE, 3.4e38, -3.4e38, 1e30]))
    where = draw(st.none() | st.floats(0, 0.999))

    def change(flat: np.ndarray, sent: np.ndarray) -> np.ndarray:
        if where is None:
            return np.full_like(flat, value)
        flat[int(where * len(flat))] = value
        return flat

    return Spoil("numbers", True, _weights(change), f"{value} at {where}")


@st.composite
def far(draw: st.DrawFn) -> Spoil:
    """Draw a change that is longer than training makes it."""
    factor = draw(st.sampled_from([-1, 1])) * 10 ** draw(st.floats(3, 30))
    return Spoil(
        "far",
        True,
        _weights(lambda flat, sent: (sent + factor * (flat - sent)).astype(np.float32)),
        f"times {factor:.3g}",
    )


@st.composite
def shapes(draw: st.DrawFn) -> Spoil:
    """Draw another length, shape or number format."""
    kind = draw(st.sampled_from(["cut", "longer", "empty", "shape", "dtype"]))
    more, dtype = draw(st.integers(1, 10_000)), draw(st.sampled_from(_DTYPES))

    def change(flat: np.ndarray, sent: np.ndarray) -> np.ndarray:
        if kind == "cut":
            return flat[:-more]
        if kind == "longer":
            return np.concatenate([flat, flat[:more]])
        if kind == "empty":
            return flat[:0]
        return flat[None] if kind == "shape" else flat.astype(dtype)

    return Spoil("shapes", True, _weights(change), f"{kind} {more} {dtype}")


@st.composite
def array_bytes(draw: st.DrawFn) -> Spoil:
    """Draw an array whose description or first bytes are spoilt."""
    head = draw(st.none() | st.binary(max_size=200))
    seed = draw(st.integers(0, 2**32))
    about = draw(
        st.sampled_from(
            [("float64", None, ""), ("", None, ""), ("bogus", (3,), "x"), (None, (-1,), None)]
        )
    )
    cut = draw(st.floats(0, 1))

    def apply(reply: Message, order: Message) -> Message:
        whole = reply.content.array_records["arrays"]["subnet"]
        if head is None:
            data = whole.data[: int(cut * (len(whole.data) - 1))]
            data += np.random.default_rng(seed).bytes(50)
        else:
            data = head + whole.data[len(head) + 1 :]
        given = [
            new if new is not None else old
            for new, old in zip(about, (whole.dtype, whole.shape, whole.stype), strict=True)
        ]
        return _with(reply, order, arrays=ArrayRecord({"subnet": Array(*given, data)}))

    return Spoil("bytes", True, apply, f"{about} {head!r} {cut} {seed}")


@st.composite
def names(draw: st.DrawFn) -> Spoil:
    """Draw records and arrays of other names, or too many of them."""
    kind = draw(st.sampled_from(["other", "two", "none", "records", "many"]))
    text = draw(HOSTILE_TEXT.filter(lambda t: t.isascii()) | st.text("ab\n", max_size=9))

    def apply(reply: Message, order: Message) -> Message:
        array = reply.content.array_records["arrays"]["subnet"]
        if kind == "records":
            left = {f"{text}{key}x": record for key, record in reply.content.items()}
            return Message(RecordDict(left), reply_to=order)
        found = {
            "other": {f"{text}x": array},
            "two": {"subnet": array, f"{text}x": array},
            "none": {},
            "many": {str(k): Array(np.zeros(k % 5, np.float32)) for k in range(500)},
        }[kind]
        return _with(reply, order, arrays=ArrayRecord(found))

    return Spoil("names", True, apply, f"{kind} {text!r}")


@st.composite
def metrics(draw: st.DrawFn) -> Spoil:
    """Draw measurements that cannot be, are missing, or are of another type."""
    changes = draw(
        st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=5), NUMBERS, min_size=1)
    )
    gone = draw(st.lists(st.sampled_from(_KEYS), max_size=2))

    def apply(reply: Message, order: Message) -> Message:
        own = dict(reply.content.metric_records["metrics"])
        for key in gone:
            own.pop(key, None)
        try:
            record = MetricRecord(own | changes)
        except (TypeError, ValueError):  # Flower refuses it where it is made
            record = MetricRecord({})
        return _with(reply, order, metrics=record)

    return Spoil("metrics", False, apply, f"{changes} without {gone}")


@st.composite
def texts(draw: st.DrawFn) -> Spoil:
    """Draw texts that are another's, megabytes, or no JSON."""
    changes = draw(
        st.dictionaries(
            st.sampled_from(_TEXTS), SCALARS | EVALUATIONS | ODD | HOSTILE_TEXT, min_size=1
        )
    )

    def apply(reply: Message, order: Message) -> Message:
        own = dict(reply.content.config_records["config"])
        try:
            record = ConfigRecord(own | changes)
        except (TypeError, ValueError):
            record = ConfigRecord({})
        return _with(reply, order, config=record)

    return Spoil("texts", False, apply, f"{changes}")


@st.composite
def errors(draw: st.DrawFn) -> Spoil:
    """Draw an error, with any code and text, or nothing at all."""
    code, said = draw(st.integers(0, 300)), draw(HOSTILE_TEXT | st.just("x" * 10**6))
    empty = draw(st.booleans())

    def apply(reply: Message, order: Message) -> Message:
        if empty:
            return Message(RecordDict(), reply_to=order)
        return Message(Error(code, said), reply_to=order)

    return Spoil("errors", True, apply, f"{code} {said!r} {empty}")


@st.composite
def objects(draw: st.DrawFn) -> Spoil:
    """Draw what is no message, names another's, or cannot be decoded where it is pulled."""
    kind = draw(st.sampled_from(["undecodable", "another's", "None", "number", "round"]))
    number = draw(st.integers(-(2**60), 2**60))

    def apply(reply: Message, order: Message) -> Any:
        if kind == "undecodable":
            return Message(RecordDict({UNREADABLE: ConfigRecord({})}), reply_to=order)
        if kind == "another's":
            reply.metadata.__dict__["_reply_to_message_id"] = f"local-{number % 9}x"
            return reply
        if kind == "round":
            own = dict(reply.content.metric_records["metrics"])
            own["round"] += number or 1
            return _with(reply, order, metrics=MetricRecord(own))
        return None if kind == "None" else number

    return Spoil("objects", True, apply, f"{kind} {number}")


REPLIES: st.SearchStrategy[Spoil] = st.one_of(
    *(numbers(), far(), shapes(), array_bytes(), names(), metrics(), texts(), errors(), objects())
)
