"""Measure how the server's work grows: with the nodes known, the replies, the supernet.

    python benchmarks/growth.py

**Nodes.** Rounds in one process with empty clients (``round_overhead.py``). Bookkeeping is all of a
round but what moves weights: who is there, who takes part, who gets what, checking, metrics. Its
share is of a round in which every client trains 100 (or 500) images of the smallest subnet, one
client after the other, at the rate that is measured in the same call.

**Replies and supernets.** The server's own calls for one round: cut out, check, unpack, average.
Eight distinct subnets (the largest, the smallest, six random) come again and again, in memory of
their own, so that 512 replies need no more memory here than eight. Peak is how far the process's
resident memory rose above where it was with supernet, replies and outgoing buffer.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from hardware import describe
from local_training import pictures
from merge_extract import peak_beyond
from merge_rivals import Round
from round_overhead import rounds

from client.training import train
from data import Augment
from server.averaging import Averaging
from server.outgoing import gather
from server.replies import finite
from server.settings import check_settings
from supernet import SearchSpace, extract, load_space
from supernet.resnet import ResNet10To26
from supernet.wire import LocalTraining, unpack

OPTIONS = {"num_classes": 10, "in_channels": 3, "image_size": 32}
IMAGES = 100
MOVING = ("messages: cut out, serialise", "the clients, empty", "replies: check, average")


class Middle(ResNet10To26):
    """The paper's space at three eighths of its width."""

    name = "middle"
    stem = 24
    widths = (96, 192, 384, 768)


def training_seconds(space: SearchSpace) -> float:
    """Return how long a client trains 100 images on the smallest subnet, on one thread."""
    data, local = pictures(IMAGES, 32, 3), LocalTraining(local_epochs=1)
    times = []
    for _ in range(4):
        module = space.build(space.smallest)
        module.load_state_dict(extract(space.init(0), space.boxes(space.smallest)))
        start = time.perf_counter()
        train(module, data, Augment(4, True, 16), local, seed=0, round=1, name="0")
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def by_nodes(count: int) -> None:
    """Print the table of nodes known and clients sampled."""
    per_client = training_seconds(load_space("resnet-tiny", **OPTIONS))
    print(f"A client needs {1e3 * per_client:.0f} ms for {IMAGES} images.\n")
    print("| nodes known | clients | empty round, ms | bookkeeping, ms | 100 | 500 images |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for nodes in (10, 100, 1000, 10_000):
            for sampled in (2, 8, 64):
                if sampled > nodes:
                    continue
                path = Path(folder) / f"{nodes}-{sampled}"
                total, causes, _ = rounds(nodes, sampled, "resnet-tiny", count, path)
                books = total - sum(causes[cause] for cause in MOVING)
                few, many = (books / (total + n * sampled * per_client) for n in (1, 5))
                print(
                    f"| {nodes:,} | {sampled} | {1e3 * total:.1f} | {1e3 * books:.2f} | "
                    f"{few:.2%} | {many:.2%} |",
                    flush=True,
                )


def by_replies(turns: int) -> None:
    """Print the table of supernets and replies."""
    print(
        "\n| supernet, M | replies | cut out, ms | check, average, ms | ms a reply | GB/s | peak |"
    )
    print("|---|---|---|---|---|---|---|")
    spaces = (load_space("resnet-tiny", **OPTIONS), Middle(**OPTIONS), ResNet10To26(**OPTIONS))
    for space in spaces:
        what = Round.of(space, 8)
        buffer = np.full(what.size, 0, np.float32)
        for replies in (8, 64, 512):
            averaging = Averaging(check_settings({}))
            averaging.adopt(what.state)
            again = list(zip(what.cuts, what.flats, strict=True)) * (replies // 8)

            def cut_out() -> None:
                for cut, flat in again:  # noqa: B023 (called in this turn only)
                    gather(what.state, cut, buffer[: flat.size])  # noqa: B023

            def merge() -> None:
                average = averaging.open(what.state)  # noqa: B023
                for cut, flat in again:  # noqa: B023
                    assert finite(flat, "float32")
                    average.add(unpack(flat, cut.shapes), 1.0, cut)
                what.state = average.result()  # noqa: B023

            peak = peak_beyond(lambda: (cut_out(), merge(), cut_out(), merge()))
            taken: list[tuple[float, float]] = []
            for _ in range(max(2, turns * 8 // replies)):
                start = time.perf_counter()
                cut_out()
                middle = time.perf_counter()
                merge()
                taken.append((middle - start, time.perf_counter() - middle))
            out, back = (statistics.median(row[k] for row in taken) for k in range(2))
            # Out: read and write. Back: read, read and write the average.
            moved = 4 * 5 * sum(flat.size for _, flat in again)
            print(
                f"| {what.size / 1e6:.1f} | {replies} | {1e3 * out:,.1f} | {1e3 * back:,.1f} | "
                f"{1e3 * (out + back) / replies:.2f} | {moved / (out + back) / 1e9:.1f} | "
                f"{peak / 4 / what.size:.2f} |",
                flush=True,
            )


def main(
    count: Annotated[int, typer.Option("--rounds", help="Of every row of the first table.")] = 12,
    turns: Annotated[int, typer.Option(help="With eight replies; fewer with more.")] = 24,
) -> None:
    """Measure and print Markdown."""
    torch.set_num_threads(1)
    print(describe({"space of the first table": f"resnet-tiny, {OPTIONS}"}))
    by_replies(turns)
    print()
    by_nodes(count)


if __name__ == "__main__":
    typer.run(main)
