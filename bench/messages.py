"""The bytes of a training message and its reply on the wire.

Real messages of one round, to and from the real client (one step on the embedded digits). Counted
is what Flower 1.31 sends: every object of the message in the form in which it is pushed and pulled
(array chunks, array, records, message), the tree of their names, the message's own header, and 192
bytes an object for the request that carries it (two 64-digit names, run, node, gRPC's frame).
``benchmarks/results/three-machines.md`` has what a network card counted.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from flwr.app import Context, Message

from superfednas.bench.figures import Effort, Figure
from superfednas.bench.rounds import Silent
from superfednas.client.app import app as client_app
from superfednas.flower.local_grid import LocalGrid
from superfednas.server.app import prepare
from superfednas.server.strategy import SupernetStrategy
from superfednas.wire.flat import numpy_dtype

REQUEST = 192
ENVELOPE = 4000  # bytes that a message may have in addition to its numbers


def on_the_wire(message: Message) -> int:
    """Return the bytes in which Flower carries a message."""
    # Flower's internal modules move between versions, so this is imported where it is used.
    from flwr.app import RecordDict
    from flwr.common.serde import message_to_proto
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
    )

    objects = get_all_nested_objects(message)
    head = Message(RecordDict(), reply_to=message) if message.has_content() else message
    return int(
        sum(len(entry.deflate()) + REQUEST for entry in objects.values())
        + get_object_tree(message).ByteSize()
        + message_to_proto(head).ByteSize()
    )


def one_round(space: str, architecture: str, wire_dtype: str) -> tuple[int, int, int]:
    """Return the bytes of a subnet, of the message that brings it, and of the reply."""
    seen: list[tuple[Message, Message]] = []

    def recorded(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        seen.append((message, reply))
        return reply

    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(
            {
                "run-dir": str(Path(folder) / "run"),
                "space": space,
                "rounds": 1,
                "clients-per-round": 1,
                "assignment": "fixed",
                "architecture": architecture,
                "wire-dtype": wire_dtype,
                "local-steps": 1,
                "evaluate-every": 1,
                "evaluate-on": "clients",
            }
        )
        trainer = SupernetStrategy(prepared.settings, progress=Silent())
        grid = LocalGrid(recorded, {1: {"partition-id": 0, "num-partitions": 10}}, {}, 1)
        try:
            trainer.train(grid, prepared.state)
        finally:
            grid.close()
    message, reply = seen[-1]
    arch = trainer.space.parse(architecture)
    size = trainer.space.params(arch) * numpy_dtype(wire_dtype).itemsize
    return size, on_the_wire(message), on_the_wire(reply)


def figures(effort: Effort) -> Iterator[Figure]:
    """Count messages and replies."""
    spaces = ("resnet-tiny", "resnet10-26") if effort == "full" else ("resnet-tiny",)
    formats = ("float32",) if effort == "quick" else ("float32", "bfloat16")
    for space in spaces:
        for wire_dtype in formats:
            size, down, up = one_round(space, "largest", wire_dtype)
            yield Figure(
                "wire",
                f"bytes of a message and of its reply, largest of `{space}`, {wire_dtype}",
                "the subnet's own bytes",
                max(down, up) / size,
                f"{down / 1e6:,.3f} and {up / 1e6:,.3f} MB",
                f"{size / 1e6:,.3f} MB",
                1.02 + ENVELOPE / size,
                more=False,
            )
