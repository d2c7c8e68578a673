"""Messages of a server to one node, and what the node answers, without a run around them."""

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict

from superfednas.client.app import app
from superfednas.common.settings import Scalar, flatten, settings_of
from superfednas.data import DataSettings
from superfednas.supernet import SearchSpace, State, extract, load_space
from superfednas.wire.flat import pack
from superfednas.wire.order import LocalTraining, Privacy, SpaceOptions, TrainOrder, encode_list

OPTIONS = SpaceOptions("mobilenetv1-tiny", num_classes=10, in_channels=1, image_size=8)
SPACE: SearchSpace = load_space("mobilenetv1-tiny", num_classes=10, in_channels=1, image_size=8)
PART: dict[str, Scalar] = {"partition-id": 1, "num-partitions": 6}


def order(**asked: Any) -> dict[str, Scalar]:
    """Give an order to train one step on the smallest subnet; ``asked`` by kebab-case keys."""
    local, privacy, own = LocalTraining(local_steps=1, batch_size=8), Privacy(), TrainOrder()
    base = flatten(own) | flatten(OPTIONS) | flatten(local) | flatten(privacy)
    base |= {"round": 1, "device": "cpu", "architecture": SPACE.smallest.to_json()}
    base |= flatten(DataSettings()) | {key.replace("_", "-"): v for key, v in asked.items()}
    assert base.keys() <= settings_of(TrainOrder).keys() | settings_of(DataSettings).keys()
    return base


def ask(
    node: dict[str, Scalar], kind: str = MessageType.TRAIN, state: State | None = None, **asked: Any
) -> dict[str, Any]:
    """Send a node an order and return what it answers, all records in one; weights are ``flat``."""
    arch = SPACE.smallest
    state = state or SPACE.init(0)
    if kind == MessageType.EVALUATE:
        asked.setdefault("evaluate", encode_list([arch.to_json()]))
    flat = pack(extract(state, SPACE.boxes(arch)), "float32")
    content = {
        "arrays": ArrayRecord({"subnet": Array(flat)}),
        "config": ConfigRecord(order(**asked)),
    }
    message = Message(RecordDict(content), dst_node_id=1, message_type=kind, group_id="1")
    return _told(message, node)


def query(node: dict[str, Scalar], **asked: Any) -> dict[str, Any]:
    """Ask a node who it is."""
    question = {**flatten(DataSettings()), "seed": 0, "device-classes": ""}
    question |= {key.replace("_", "-"): value for key, value in asked.items()}
    content = RecordDict({"config": ConfigRecord(question)})
    message = Message(content, dst_node_id=1, message_type=MessageType.QUERY, group_id="roster")
    return _told(message, node)


def _told(message: Message, node: dict[str, Scalar]) -> dict[str, Any]:
    reply = app(message, Context(1, 1, {**node}, RecordDict(), {}))
    told: dict[str, Any] = {}
    for record in (*reply.content.metric_records.values(), *reply.content.config_records.values()):
        told |= dict(record)
    for record in reply.content.array_records.values():
        told["flat"] = np.array(record["subnet"].numpy())
    return told
