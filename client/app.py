"""The Flower ClientApp: messages in, :class:`SubnetClient` calls, messages out.

``query``: the node's name, budget and numbers of examples. ``train``: a subnet's weights arrive as
one flat array and return trained, with measurements. ``evaluate``: subnets inside the received one
are scored on the node's validation images.
"""

import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from superfednas.client.data import device_class, node_data, within_reach
from superfednas.client.modules import check_modules
from superfednas.client.node_config import (
    LIMITS,
    TELL_SCORES,
    check_masked,
    flag,
    limits_of,
    node_name,
    pins_of,
    tells_scores,
    unknown_keys,
    whole,
)
from superfednas.client.problems import answered, problem_of
from superfednas.client.subnet_client import SubnetClient
from superfednas.client.worker.handover import on_a_node
from superfednas.common.malloc import keep_freed_memory
from superfednas.common.settings import Scalar, flatten, parse
from superfednas.common.words import one_line
from superfednas.data import DataSettings
from superfednas.wire.errands import ERRAND, PERSONALISE, SCORE, TRAIN
from superfednas.wire.flat import numpy_dtype
from superfednas.wire.meaning import MEANING, brief, told
from superfednas.wire.npy import flat_fields, flat_numbers
from superfednas.wire.order import (
    ARRAYS,
    CONFIG,
    METRICS,
    PROTOCOL,
    SECURE,
    STILL_THERE,
    SUBNET,
    TrainOrder,
)
from superfednas.wire.secure.parties import PARTIES, STAGE

app = ClientApp()


@app.query()  # type: ignore[untyped-decorator, unused-ignore]
@answered
def query(message: Message, context: Context) -> Message:
    """Answer with this node's name and what it can hold, from its node config."""
    node, order = context.node_config, _order(message)
    if order.get(STILL_THERE):
        return Message(RecordDict({CONFIG: ConfigRecord({"protocol": PROTOCOL})}), reply_to=message)
    if STAGE in order:
        from superfednas.client.secure import answer as secure_answer

        found = ConfigRecord(dict(secure_answer(order, node, context.state)))
        return Message(RecordDict({CONFIG: found}), reply_to=message)
    classes = tuple(filter(None, str(order["device-classes"]).split(",")))
    settings = parse(DataSettings, order, ignore_unknown=True)
    for problem in unknown_keys(node):  # they may belong to another app: reported, not refused
        print(one_line(f"warning: {problem}"), file=sys.stderr, flush=True)
    answer: dict[str, Any] = {
        "protocol": PROTOCOL,
        "name": node_name(node),
        "examples": 0,
        "device-class": device_class(node, classes),
        "in-turn": on_a_node(),  # a SuperNode gets messages one by one, in order
    }
    try:
        answer[TELL_SCORES] = tells_scores(node)
        pins = pins_of(node)
        errand = str(order.get(ERRAND, TRAIN))
        pins.check(errand, order)
        if errand == TRAIN:
            check_masked(node, masked=order.get(SECURE) is True)
        settings = within_reach(node, settings, pins, on_a_node=on_a_node())
        if on_a_node():  # an order may still name others: a resumed run has its own settings
            check_modules(node, {**context.run_config, **order})
        data = node_data(node, settings, int(order["seed"]))
        answer[MEANING] = told(brief(data.task.meaning))
        answer["examples"] = len(data.train)
        if answer[TELL_SCORES]:
            answer["validation-examples"] = len(data.validation)
        if flag(node, "tell-classes"):
            strata = data.strata(data.train)
            counts = np.bincount(strata, minlength=len(data.task.classes))
            answer["class-counts"] = counts.tolist()
    except ValueError as error:  # reported under the node's name: ids mean nothing to a reader
        answer |= problem_of(error, node)
    for key in (*LIMITS, "num-partitions"):
        if key in node:
            answer[key] = whole(node, key)
    return Message(RecordDict({CONFIG: ConfigRecord(answer)}), reply_to=message)


@app.train()  # type: ignore[untyped-decorator, unused-ignore]
@answered
def train(message: Message, context: Context) -> Message:
    """Train the subnet that came with the message."""
    check_masked(context.node_config, masked=PARTIES in _order(message))
    client, received, order = _client(message, context, TRAIN)
    (sent,), examples, metrics = client.fit(received, order)
    if PARTIES in order:
        from superfednas.client.secure import masked

        sent = masked(order, context.node_config, context.state, received[0], sent)
    reply = _records({"num-examples": examples, **metrics})
    reply[ARRAYS] = ArrayRecord({SUBNET: Array(*flat_fields(sent))})
    return Message(reply, reply_to=message)


@app.evaluate()  # type: ignore[untyped-decorator, unused-ignore]
@answered
def evaluate(message: Message, context: Context) -> Message:
    """Score subnets inside the one that came with the message, or personalise them."""
    errand = PERSONALISE if _order(message).get(PERSONALISE) else SCORE
    client, parameters, order = _client(message, context, errand)
    loss, examples, metrics = client.evaluate(parameters, order)
    return Message(_records({"num-examples": examples, "loss": loss, **metrics}), reply_to=message)


def _client(
    message: Message, context: Context, errand: str
) -> tuple[SubnetClient, list[np.ndarray], dict[str, Scalar]]:
    """Return this node's client, the flat array it was sent, and its order, which is allowed."""
    keep_freed_memory()
    node, order = context.node_config, _order(message)
    asked, pins = parse(TrainOrder, order, ignore_unknown=True), pins_of(node)
    pins.check(errand, flatten(asked))
    if on_a_node():
        check_modules(node, order)
    settings = parse(DataSettings, order, ignore_unknown=True)
    settings = within_reach(node, settings, pins, on_a_node=on_a_node())
    data = node_data(node, settings, int(order["seed"]))
    client = SubnetClient(
        node_name(node),
        data,
        Path(str(state_dir)) if (state_dir := node.get("state-dir")) else None,
        limits=limits_of(node),
        tells_scores=tells_scores(node),
        on_a_node=on_a_node(),
    )
    array = cast(ArrayRecord, message.content[ARRAYS])[SUBNET]
    return client, [flat_numbers(array, numpy_dtype(asked.wire_dtype))], order


def _records(metrics: dict[str, Any]) -> RecordDict:
    """Divide metrics into numbers and strings."""
    numbers: dict[str, Any] = {k: m for k, m in metrics.items() if isinstance(m, int | float)}
    texts: dict[str, Any] = {k: m for k, m in metrics.items() if isinstance(m, str)}
    return RecordDict({METRICS: MetricRecord(numbers), CONFIG: ConfigRecord(texts)})


def _order(message: Message) -> dict[str, Scalar]:
    """Return a message's flat config."""
    # Not `.config_records`: its result is a reference cycle that includes all records, so a
    # message's weights would stay in memory until the garbage collector runs.
    order = cast(ConfigRecord, message.content[CONFIG])
    return {key: value for key, value in order.items() if isinstance(value, int | float | str)}
