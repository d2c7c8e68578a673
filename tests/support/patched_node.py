"""A node of ``superfednas node`` that spoils what it pushes: its replies to training, one by one.

    python -m tests.support.patched_node LONGEST-POLL OPTIONS-OF-FLOWER-SUPERNODE

Every object keeps the hash that its content has, so that the SuperLink takes it.
"""

import hashlib
import itertools
import json
import struct
import time
from collections.abc import Callable
from typing import Any

from flwr.proto.message_pb2 import ObjectTree

Content = dict[str, bytes]


def whole(kind: str, children: bytes, body: bytes) -> bytes:
    return f"{kind} ".encode() + children + f" {len(body)}".encode() + b"\0" + body


def body_of(content: bytes) -> tuple[str, bytes, bytes]:
    """Return an object's kind, its children's ids and its body."""
    head, _, body = content.partition(b"\0")
    kind, children, _ = head.split(b" ")
    return kind.decode(), children, body


def with_body(kind: str, change: Callable[[bytes], bytes]) -> Callable[[str, bytes], bytes | None]:
    """Return what changes the bodies of the objects of one kind."""

    def spoil(found: str, content: bytes) -> bytes | None:
        if found != kind:
            return None
        _, children, body = body_of(content)
        return whole(kind, children, change(body))

    return spoil


def filled(pattern: bytes) -> Callable[[bytes], bytes]:
    """Return what fills all numbers of a float32 array."""
    return lambda body: body[:128] + pattern * ((len(body) - 128) // len(pattern))


def repeating(body: bytes) -> bytes:
    about = json.loads(body)
    about["arraychunk_ids"] *= 100_000
    return json.dumps(about).encode()


SPOILS: dict[str, Callable[[str, bytes], bytes | None]] = {
    "record that is no protobuf": with_body("MetricRecord", lambda body: b"\xff" * 99),
    "array that repeats its chunk": with_body("Array", repeating),
    "array described by nonsense": with_body(
        "Array", lambda body: b'{"dtype": 5, "shape": 7, "stype": [], "arraychunk_ids": [-1]}'
    ),
    "numbers of 3.4e38": with_body("ArrayChunk", filled(struct.pack("<f", 3.4e38))),
    "numbers that are not": with_body("ArrayChunk", filled(struct.pack("<f", float("nan")))),
    "bytes that are no array": with_body("ArrayChunk", lambda body: b"nonsense" * 9),
    "records of nothing": with_body("RecordDict", lambda body: b"[" * 5000),
}


def spoilt(tree: ObjectTree, get: Callable[[str], bytes], spoil: Any) -> tuple[ObjectTree, Content]:
    """Return a message's tree with some objects spoilt, and the content of all."""
    while not (content := get(tree.object_id)):
        time.sleep(0.02)  # it is still being written
    children, found = [], Content()
    for child in tree.children:
        new, below = spoilt(child, get, spoil)
        content = content.replace(child.object_id.encode(), new.object_id.encode())
        children.append(new)
        found |= below
    content = spoil(body_of(content)[0], content) or content
    identifier = hashlib.sha256(content).hexdigest()
    return ObjectTree(object_id=identifier, children=children), found | {identifier: content}


class Store:
    """The store of one message, as it is sent."""

    def __init__(self, tree: ObjectTree, content: Content, store: Any) -> None:
        self._tree, self._content, self._store = tree, content, store

    def get_object_tree(self, identifier: str) -> ObjectTree:
        return self._tree

    def get(self, identifier: str) -> bytes:
        return self._content[identifier]

    def delete(self, identifier: str) -> None:
        self._store.delete(identifier)


def patch(module: Any) -> None:
    """Make Flower's SuperNode spoil its replies to training."""
    push, names = module._push_messages, iter(itertools.cycle(SPOILS))

    def spoiling(state: Any, object_store: Any, send: Any, push_object: Any) -> None:
        class Watched:
            """The state, whose replies are looked at before they go."""

            def get_messages(self, **named: Any) -> Any:
                return found if named.get("is_reply") else state.get_messages(**named)

            def __getattr__(self, name: str) -> Any:
                return getattr(state, name)

        found: Any = []
        while not (found := state.get_messages(is_reply=True)[:1]):
            module.time.sleep(0.1)
        (message, *_) = found
        store = object_store
        if message.metadata.message_type == "train" and not message.has_error():
            name = next(names)
            print(f"spoilt: {name}", flush=True)
            tree = object_store.get_object_tree(message.metadata.message_id)
            store = Store(*spoilt(tree, object_store.get, SPOILS[name]), object_store)
            own = store.get_object_tree("").object_id
            original = send

            def send(sent: Any, *rest: Any) -> Any:
                before = sent.metadata.message_id
                sent.metadata.__dict__["_message_id"] = own
                try:
                    return original(sent, *rest)
                finally:
                    sent.metadata.__dict__["_message_id"] = before

        push(Watched(), store, send, push_object)

    module._push_messages = spoiling


if __name__ == "__main__":
    import flwr.supernode.start_client_internal as internal

    from superfednas.deploy.fleet import node

    patch(internal)
    node.main()
