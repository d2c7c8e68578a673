"""Answers to the query: what a node says of itself, read as a client or refused with a reason."""

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, Message

from superfednas.nas.cost.cost import COSTS
from superfednas.records.refusals import Refusal, Refused, of_flower, said_by_node
from superfednas.server.assign.client import Client
from superfednas.supernet import SearchSpace
from superfednas.wire.claims import (
    ClaimError,
    class_counts_of,
    count_of,
    flag_of,
    limit_of,
    name_of,
    shown,
)
from superfednas.wire.meaning import MEANING, heard
from superfednas.wire.order import CONFIG

LIMIT = "max-"
_SAID = 500  # characters of an untrusted text that are repeated

Answer = Mapping[str, Any]


class BadAnswer(ValueError):  # noqa: N818 (it leaves out a node, it is not raised at the user)
    """Why a node is left out.

    Parameters
    ----------
    code, reason
        For programs, and for human readers; of a long text only the beginning is kept.
    name
        The name that the node gave itself; empty where it has no right one.
    """

    def __init__(self, code: Refusal, reason: str, name: str = "") -> None:
        self.refused, self.name = Refused(code, reason[:_SAID]), name
        super().__init__(self.refused.reason)


def answer_of(reply: Message | None) -> Answer:
    """Return what a node answered, by key.

    Raises
    ------
    BadAnswer
        For silence or an error.
    """
    if reply is None or reply.has_error():
        why = "no answer in time" if reply is None else (reply.error.reason or "no reason given")
        code = Refusal.NO_REPLY if reply is None else of_flower(reply.error.code)
        raise BadAnswer(code, f"it did not say who it is ({why[:_SAID]})")
    record = reply.content.get(CONFIG)
    return dict(record) if isinstance(record, ConfigRecord) else {}


def parts_of(answer: Answer) -> int:
    """Return the number of nodes that hold parts of one data set, if the node says it; else 0."""
    try:
        return count_of("num-partitions", answer.get("num-partitions"), 1)
    except ClaimError:
        return 0


def client_of(answer: Answer, space: SearchSpace, shares: Mapping[str, float]) -> Client:
    """Return the client that a node says it is.

    Parameters
    ----------
    answer
        What it said.
    space, shares
        For a node that names only its device class: class to share of the largest's MACs.

    Raises
    ------
    BadAnswer
        If anything that it says cannot be, or cannot be kept by this run.
    """
    try:
        name = name_of("name", answer.get("name"))
    except ClaimError as error:
        raise BadAnswer(Refusal.NO_IDENTITY, f"it did not say who it is ({error})") from None
    if problem := said_by_node(answer):
        raise BadAnswer(problem.code, problem.reason, name)
    try:
        return _client(name, answer, space, shares)
    except ClaimError as error:
        raise BadAnswer(Refusal.CLAIM, str(error), name) from None


def _client(name: str, answer: Answer, space: SearchSpace, shares: Mapping[str, float]) -> Client:
    examples = count_of("examples", answer.get("examples"))
    validation = count_of("validation-examples", answer.get("validation-examples", 0))
    tells_scores = flag_of("tell-scores", answer.get("tell-scores", True))
    if "num-partitions" in answer:
        count_of("num-partitions", answer["num-partitions"], 1)
    given = {key: value for key, value in answer.items() if key.startswith(LIMIT)}
    unknown = [key for key in given if not _told(key.removeprefix(LIMIT))]
    if unknown:
        raise BadAnswer(
            Refusal.UNKNOWN_LIMIT,
            f"it limits {shown(unknown[0].removeprefix(LIMIT))}, which this run cannot keep",
            name,
        )
    limits = {key.removeprefix(LIMIT): limit_of(key, most) for key, most in given.items()}
    kind = answer.get("device-class", "")
    if kind != "":
        kind = name_of("device-class", kind)
        if kind not in shares:
            raise BadAnswer(
                Refusal.DEVICE_CLASS,
                f"its device-class {kind!r} is not one of {sorted(shares)}",
                name,
            )
        limits.setdefault("macs", int(shares[kind] * space.macs(space.largest)))
    classes = answer.get("class-counts")
    if classes is not None:
        try:
            classes = class_counts_of("class-counts", classes, examples)
        except ClaimError as error:
            raise BadAnswer(Refusal.CLASS_COUNTS, str(error), name) from None
    meaning = heard(answer[MEANING]) if MEANING in answer else {}
    return Client(name, limits, examples, validation, classes, tells_scores, meaning)


def _told(cost: str) -> bool:
    return cost in COSTS and COSTS[cost].told
