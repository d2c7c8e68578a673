"""Flower's own grid on a SuperLink that is a dictionary: what nodes push is decoded as ever."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.common.serde import message_to_proto
from flwr.common.typing import Run
from flwr.proto.appio_pb2 import PullAppMessagesResponse, PushAppMessagesResponse
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, ObjectTree, PullObjectResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.grid.grpc_grid import GrpcGrid


class Link:
    """The SuperLink's side of the calls of a grid."""

    def __init__(self) -> None:
        self.replies: dict[str, tuple[Any, ObjectTree]] = {}
        self.objects: dict[str, bytes] = {}

    def answer(self, order: Message, reply: Message, changed: Mapping[str, bytes] = {}) -> None:
        """Store a reply whose objects are partly ``changed``, by id."""
        proto = message_to_proto(Message(RecordDict(), reply_to=order))
        proto.metadata.message_id = reply.object_id
        self.replies[order.metadata.message_id] = proto, get_object_tree(reply)
        self.objects |= objects_of(reply) | dict(changed)

    def PushMessages(self, request: Any) -> PushAppMessagesResponse:
        return PushAppMessagesResponse(
            message_ids=[message.metadata.message_id for message in request.messages_list]
        )

    def PushObject(self, request: Any) -> None:
        raise AssertionError("nothing was asked for")

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:
        found = [self.replies.pop(i) for i in request.message_ids if i in self.replies]
        return PullAppMessagesResponse(
            messages_list=[message for message, _ in found],
            message_object_trees=[tree for _, tree in found],
        )

    def PullObject(self, request: Any) -> PullObjectResponse:
        content = self.objects.get(request.object_id)
        there = content is not None
        return PullObjectResponse(
            object_found=there, object_available=there, object_content=content or b""
        )

    def ConfirmMessageReceived(self, request: Any) -> ConfirmMessageReceivedResponse:
        return ConfirmMessageReceivedResponse()


def grid_on(link: Link) -> GrpcGrid:
    """Return Flower's grid, connected to ``link``."""
    grid: Any = GrpcGrid(token="test")
    grid._channel, grid._grpc_stub = object(), link
    grid._run = Run.create_empty(1)
    return grid


def objects_of(message: Message) -> dict[str, bytes]:
    """Return the objects that a message is stored as, by id."""
    return {i: thing.deflate() for i, thing in get_all_nested_objects(message).items()}


def order(node: int, size: int = 0) -> Message:
    """Return a message to a node, with an array of ``size`` bytes."""
    content = RecordDict({"arrays": ArrayRecord({"subnet": plain(size)})})
    return _timeless(Message(content, node, MessageType.TRAIN, group_id=str(node)))


def right(to: Message, number: int = 1) -> Message:
    """Return a reply with a record of each kind, all of them its own."""
    array = Array(np.arange(7, dtype=np.float32) + number)
    reply = Message(
        RecordDict(
            {
                "arrays": ArrayRecord({"subnet": array}),
                "metrics": MetricRecord({"round": number, "losses": [0.5, 1.5]}),
                "config": ConfigRecord({"name": f"{number}", "raw": b"\0 "}),
            }
        ),
        reply_to=to,
    )
    return _timeless(reply)


def _timeless(message: Message) -> Message:
    """Give a message the same bytes whenever it is made."""
    message.metadata.__dict__ |= {"_created_at": 1.0, "_ttl": 60.0}
    return message


def plain(size: int) -> Array:
    return Array("uint8", (size,), "numpy.ndarray", bytes(size))
