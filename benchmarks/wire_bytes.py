"""Count the bytes that a training message and its reply put on the wire.

    python benchmarks/wire_bytes.py

Real messages of one round, to and from the real client (one step on the embedded digits). Counted
is what Flower 1.31 sends: every object of the message in the form in which it is pushed and pulled
(array chunks, array, records, message), the tree of their names, the message's own header, and 192
bytes an object for the request that carries it (two 64-digit names, run, node, gRPC's frame).
``results/three-machines.md`` has what a network card counted.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from flwr.app import Context, Message
from hardware import describe

from client.app import app as client_app
from server.app import prepare
from server.local_grid import LocalGrid
from server.progress import Progress
from server.strategy import SupernetStrategy
from supernet.wire import WIRE_DTYPES, numpy_dtype

REQUEST = 192


def on_the_wire(message: Message) -> int:
    """Return the bytes in which Flower carries a message."""
    # Flower's own modules move between versions, so this is looked up where it is used.
    from flwr.app import RecordDict
    from flwr.common.serde import message_to_proto
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
    )

    objects = get_all_nested_objects(message)
    head = Message(RecordDict(), reply_to=message) if message.has_content() else message
    return (
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


class Silent(Progress):
    """Says nothing."""

    def write(self, text: str) -> None:
        """Say nothing."""


def main(
    spaces: Annotated[str, typer.Option(help="comma-separated")] = "resnet-tiny,resnet10-26",
) -> None:
    """Count and print Markdown."""
    print(describe())
    print("| space | subnet | format | its bytes | down, over | up, over | allowed |")
    print("|---|---|---|---|---|---|---|")
    for space in spaces.split(","):
        for architecture in ("smallest", "random:0", "largest"):
            for wire_dtype in WIRE_DTYPES:
                size, down, up = one_round(space, architecture, wire_dtype)
                allowed = 0.02 * size + 4000
                verdict = "yes" if max(down, up) - size <= allowed else "NO"
                print(
                    f"| {space} | {architecture} | {wire_dtype} | {size:,} | {down - size:,} | "
                    f"{up - size:,} | {allowed:,.0f}: {verdict} |",
                    flush=True,
                )


if __name__ == "__main__":
    typer.run(main)
