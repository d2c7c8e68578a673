"""The Flower ClientApp: messages in, :class:`SubnetClient` calls, messages out.

``query``: who is this node (name, budget, examples). ``train``: one subnet's weights come in as one
flat array and go back trained, with what was measured on the way. ``evaluate``: subnets inside the
one that came in are scored on the node's validation images.
"""

import os
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.handover import FOLDER_VARIABLE
from client.node import device_class, node_data
from client.node_config import flag, node_name, unknown_keys, whole
from client.subnet_client import SubnetClient
from data import Augment, DataSettings
from supernet.config import Scalar, parse
from supernet.memory import keep_freed_memory
from supernet.npy import flat_fields, flat_numbers
from supernet.wire import (
    ARRAYS,
    CONFIG,
    METRICS,
    PROTOCOL,
    STILL_THERE,
    SUBNET,
    TrainOrder,
    numpy_dtype,
)

app = ClientApp()


@app.query()  # type: ignore[untyped-decorator, unused-ignore]
def query(message: Message, context: Context) -> Message:
    """Answer who this node is and what it can hold, from its node config."""
    node, order = context.node_config, _order(message)
    if order.get(STILL_THERE):
        return Message(RecordDict({CONFIG: ConfigRecord({"protocol": PROTOCOL})}), reply_to=message)
    classes = tuple(filter(None, str(order["device-classes"]).split(",")))
    settings = parse(DataSettings, order, ignore_unknown=True)
    for problem in unknown_keys(node):  # they may be another app's: said, not refused
        print(f"warning: {problem}", file=sys.stderr, flush=True)
    answer: dict[str, Any] = {
        "protocol": PROTOCOL,
        "name": node_name(node),
        "examples": 0,
        "validation-examples": 0,
        "device-class": device_class(node, classes),
        "in-turn": _in_turn(),
    }
    try:
        data = node_data(node, settings, int(order["seed"]))
        answer["examples"] = len(data.train)
        answer["validation-examples"] = len(data.validation)
        if flag(node, "tell-classes"):
            labels = data.train.labels.numpy()
            answer["class-counts"] = np.bincount(labels, minlength=data.num_classes).tolist()
    except ValueError as error:  # said under the node's name: ids mean nothing to a person
        answer["problem"] = str(error)
    for key in ("max-macs", "max-params", "num-partitions"):
        if key in node:
            answer[key] = whole(node, key)
    return Message(RecordDict({CONFIG: ConfigRecord(answer)}), reply_to=message)


def _in_turn() -> bool:
    """Say whether this is a SuperNode's client: it gets one message after the other, in order."""
    return FOLDER_VARIABLE in os.environ or Path(sys.argv[0]).name == "flwr-clientapp"


@app.train()  # type: ignore[untyped-decorator, unused-ignore]
def train(message: Message, context: Context) -> Message:
    """Train the subnet that came with the message."""
    client, parameters, order = _client(message, context)
    parameters, examples, metrics = client.fit(parameters, order)
    reply = _records({"num-examples": examples, **metrics})
    reply[ARRAYS] = ArrayRecord({SUBNET: Array(*flat_fields(parameters[0]))})
    return Message(reply, reply_to=message)


@app.evaluate()  # type: ignore[untyped-decorator, unused-ignore]
def evaluate(message: Message, context: Context) -> Message:
    """Score subnets of the one that came with the message."""
    client, parameters, order = _client(message, context)
    loss, examples, metrics = client.evaluate(parameters, order)
    return Message(_records({"num-examples": examples, "loss": loss, **metrics}), reply_to=message)


def _client(
    message: Message, context: Context
) -> tuple[SubnetClient, list[np.ndarray], dict[str, Scalar]]:
    """Return the client of this node, the flat array that it was sent, and its order."""
    keep_freed_memory()
    order = _order(message)
    settings = parse(DataSettings, order, ignore_unknown=True)
    data = node_data(context.node_config, settings, int(order["seed"]))
    client = SubnetClient(
        node_name(context.node_config),
        data,
        Augment.parse(settings.augment, data),
        Path(str(state_dir)) if (state_dir := context.node_config.get("state-dir")) else None,
    )
    wire_dtype = parse(TrainOrder, order, ignore_unknown=True).wire_dtype
    array = cast(ArrayRecord, message.content[ARRAYS])[SUBNET]
    return client, [flat_numbers(array, numpy_dtype(wire_dtype))], order


def _records(metrics: dict[str, Any]) -> RecordDict:
    """Divide metrics into numbers and texts."""
    numbers: dict[str, Any] = {k: m for k, m in metrics.items() if isinstance(m, int | float)}
    texts: dict[str, Any] = {k: m for k, m in metrics.items() if isinstance(m, str)}
    return RecordDict({METRICS: MetricRecord(numbers), CONFIG: ConfigRecord(texts)})


def _order(message: Message) -> dict[str, Scalar]:
    """Return a message's flat config."""
    # Not `.config_records`: what that makes refers to itself and to all records, and a message's
    # weights then stay until Python looks for circles.
    order = cast(ConfigRecord, message.content[CONFIG])
    return {key: value for key, value in order.items() if isinstance(value, int | float | str)}
