"""Clients whose replies are spoilt, each in another way, and the code by which it is refused."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)

from superfednas.client.app import app as client_app
from superfednas.records.refusals import Refusal
from tests.support.training import App, order_of

VICTIM = "1"


def spoil(reply: Message, order: Message, **parts: Any) -> Message:
    return Message(RecordDict(dict(reply.content) | parts), reply_to=order)


def raising(reply: Message, order: Message) -> Message:
    raise RuntimeError("out of paper")


def not_a_number(reply: Message, order: Message) -> Message:
    flat = reply.content.array_records["arrays"]["subnet"].numpy()
    flat[len(flat) // 2] = np.nan
    return spoil(reply, order, arrays=ArrayRecord({"subnet": Array(flat)}))


def wrong_shape(reply: Message, order: Message) -> Message:
    flat = reply.content.array_records["arrays"]["subnet"].numpy()
    return spoil(reply, order, arrays=ArrayRecord({"subnet": Array(flat[:-1])}))


def wrong_architecture(reply: Message, order: Message) -> Message:
    texts = dict(reply.content.config_records["config"])
    texts["architecture"] = '{"depth":[0,0,0,0],"expand":[[1.0],[0.33],[1.0],[0.67]]}'
    return spoil(reply, order, config=ConfigRecord(texts))


def stale_round(reply: Message, order: Message) -> Message:
    return numbers(reply, order, round=order_of(order) - 1)


def nothing_usable(reply: Message, order: Message) -> Message:
    return Message(RecordDict(), reply_to=order)


def oversized(reply: Message, order: Message) -> Message:
    flat = reply.content.array_records["arrays"]["subnet"].numpy()
    return spoil(reply, order, arrays=ArrayRecord({"subnet": Array(np.tile(flat, 10))}))


def boastful(reply: Message, order: Message) -> Message:
    return numbers(reply, order, **{"num-examples": 10**9})


def unreadable(reply: Message, order: Message) -> Message:
    broken = Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=b"?")
    return spoil(reply, order, arrays=ArrayRecord({"subnet": broken}))


def gigantic(reply: Message, order: Message) -> Message:
    """Send finite numbers from which no later round would recover."""
    flat = reply.content.array_records["arrays"]["subnet"].numpy()
    return spoil(reply, order, arrays=ArrayRecord({"subnet": Array(np.full_like(flat, 3.4e38))}))


def hundredfold(reply: Message, order: Message) -> Message:
    """Send a hundred times what training changed."""
    sent = order.content.array_records["arrays"]["subnet"].numpy()
    trained = reply.content.array_records["arrays"]["subnet"].numpy()
    false = (sent + 100 * (trained - sent)).astype(sent.dtype)
    return spoil(reply, order, arrays=ArrayRecord({"subnet": Array(false)}))


def endless_loss(reply: Message, order: Message) -> Message:
    return numbers(reply, order, loss=1e300)


def tireless(reply: Message, order: Message) -> Message:
    return numbers(reply, order, images=10**15)


def numbers(reply: Message, order: Message, **other: float) -> Message:
    own = dict(reply.content.metric_records["metrics"]) | other
    return spoil(reply, order, metrics=MetricRecord(own))


BAD: dict[Callable[[Message, Message], Message], Refusal] = {
    raising: Refusal.RAISED,
    not_a_number: Refusal.NOT_FINITE,
    wrong_shape: Refusal.SHAPE,
    wrong_architecture: Refusal.ARCHITECTURE,
    stale_round: Refusal.ROUND,
    nothing_usable: Refusal.NAMES,
    oversized: Refusal.SIZE,
    boastful: Refusal.MORE_THAN_DECLARED,
    unreadable: Refusal.DTYPE,
    gigantic: Refusal.TOO_FAR,
    hundredfold: Refusal.TOO_FAR,
    endless_loss: Refusal.METRIC,
    tireless: Refusal.METRIC,
}


def bad_client(
    what: Callable[[Message, Message], Message],
    when: Iterable[int],
    who: Iterable[str] = VICTIM,
    serving: App = client_app,
) -> App:
    """Serve as usual, except that ``who`` spoils its replies of the rounds ``when``."""

    def app(message: Message, context: Context) -> Message:
        reply = serving(message, context)
        if (
            message.metadata.message_type == MessageType.TRAIN
            and str(context.node_config["partition-id"]) in who
            and order_of(message) in when
        ):
            return what(reply, message)
        return reply

    return app
