"""Growth of the server's work with known nodes, replies and the supernet.

**Nodes.** Rounds in one process with empty clients (:mod:`superfednas.bench.rounds`). Bookkeeping
is everything in a round that does not move weights: who is online, who takes part, who gets what,
checks, metrics. Its share refers to a round in which every client trains 100 (or 500) images on the
smallest subnet, one client after another, at the rate measured in the same call.

**Replies and supernets.** The server's own calls for one round: extract, check, unpack, average.
Eight distinct subnets (the largest, the smallest, six random) are repeated, in their own memory, so
that 512 replies need no more memory here than eight. Peak is the rise of the process's resident
memory above its level with supernet, replies and outgoing buffer.
"""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from superfednas.bench.figures import Effort, Figure, milliseconds, seconds, torch_threads
from superfednas.bench.loops import pictures
from superfednas.bench.merging import Round, peak_beyond
from superfednas.bench.rounds import rounds
from superfednas.client.training import train
from superfednas.server.average.choose import Averaging
from superfednas.server.round.check import finite
from superfednas.server.round.encode import gather
from superfednas.server.round.orders import SUPERNET
from superfednas.server.settings import check_settings
from superfednas.supernet import SearchSpace, extract
from superfednas.supernet.families.resnet.spaces import ResNet10To26, ResNetTiny
from superfednas.tasks.images import Images
from superfednas.wire.flat import unpack
from superfednas.wire.order import LocalTraining

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
        times.append(
            seconds(lambda: train(module, data, local, seed=0, round=1, name="0"))  # noqa: B023
        )
    return statistics.median(times[1:])


@dataclass(frozen=True)
class Known:
    """An empty round with so many nodes known: seconds, and those of bookkeeping alone."""

    nodes: int
    sampled: int
    round: float
    books: float

    def share(self, training: float) -> float:
        """Return bookkeeping's share of a round in which every client trains so many seconds."""
        return self.books / (self.round + self.sampled * training)


def by_nodes(
    count: int, known: Sequence[int] = (10, 100, 1000, 10_000), sampled: Sequence[int] = (2, 8, 64)
) -> Iterator[Known]:
    """Measure rounds with more and more nodes known and clients sampled."""
    with tempfile.TemporaryDirectory() as folder:
        for nodes in known:
            for clients in sampled:
                if clients > nodes:
                    continue
                path = Path(folder) / f"{nodes}-{clients}"
                total, causes, _ = rounds(nodes, clients, "resnet-tiny", count, path)
                books = total - sum(causes[cause] for cause in MOVING)
                yield Known(nodes, clients, total, books)


@dataclass(frozen=True)
class Replies:
    """A round's work for so many replies: seconds to cut out and to merge, bytes, peak."""

    numbers: int
    replies: int
    out: float
    back: float
    moved: int
    peak: int

    @property
    def each(self) -> float:
        """Seconds a reply."""
        return (self.out + self.back) / self.replies


def by_replies(
    space: SearchSpace, turns: int, numbers: Sequence[int] = (8, 64, 512)
) -> Iterator[Replies]:
    """Measure a supernet with more and more replies."""
    what = Round.of(space, 8)
    buffer = np.full(what.size, 0, np.float32)
    for replies in numbers:
        averaging = Averaging(check_settings({}))
        averaging.adopt(what.state)
        again = list(zip(what.cuts, what.flats, strict=True)) * (replies // 8)

        def cut_out() -> None:
            for cut, flat in again:  # noqa: B023 (called in this turn only)
                gather(what.state, cut, buffer[: flat.size])

        def merge() -> None:
            average = averaging.open({SUPERNET: what.state})[SUPERNET]  # noqa: B023
            for cut, flat in again:  # noqa: B023
                assert finite(flat, "float32")
                average.add(unpack(flat, cut.shapes), 1.0, cut)
            what.state = average.result()

        def twice() -> None:
            for _ in range(2):
                cut_out()
                merge()

        peak = peak_beyond(twice)
        taken = [(seconds(cut_out), seconds(merge)) for _ in range(max(2, turns * 8 // replies))]
        out, back = (statistics.median(row[k] for row in taken) for k in range(2))
        # Out: read and write. Back: read, read and write the average.
        moved = 4 * 5 * sum(flat.size for _, flat in again)
        yield Replies(what.size, replies, out, back, moved, peak)


def spaces() -> list[SearchSpace]:
    """Return supernets of 1.5, 10 and 72 million parameters."""
    task = Images(10, 3, 32)
    return [ResNetTiny(task), Middle(task), ResNet10To26(task)]


def figures(effort: Effort) -> Iterator[Figure]:
    """Measure growth."""
    with torch_threads(1):
        turns, count = {"quick": (2, 2), "normal": (8, 8), "full": (24, 12)}[effort]
        space = spaces()[-1 if effort == "full" else 0]
        few, *_, many = by_replies(space, turns, (8, 64) if effort == "quick" else (8, 64, 512))
        training = training_seconds(spaces()[0])
        known = (10, 100) if effort == "quick" else (10, 10_000)
        home, crowd = by_nodes(count, known, (8,))
    yield Figure(
        "growth",
        f"the server's time a reply with {many.replies} replies, {few.numbers / 1e6:.1f} M numbers",
        "that with 8",
        many.each / few.each,
        milliseconds([many.each]),
        milliseconds([few.each]),
        1.1,
        more=False,
    )
    yield Figure(
        "growth",
        f"memory of {many.replies} replies' merge, beside replies and messages",
        "the supernet",
        many.peak / 4 / many.numbers,
        f"{many.peak / 1e6:,.0f} MB",
        f"{4 * many.numbers / 1e6:,.0f} MB",
        1.2,
        more=False,
    )
    yield Figure(
        "growth",
        f"bookkeeping of a round of 8 clients with {crowd.nodes:,} nodes known",
        "that with 10",
        crowd.books / home.books,
        milliseconds([crowd.books]),
        milliseconds([home.books]),
    )
    yield Figure(
        "growth",
        f"bookkeeping with {crowd.nodes:,} nodes known, its share of a round",
        f"a round of 8 clients of {IMAGES} images",
        crowd.share(training),
        milliseconds([crowd.books]),
        milliseconds([crowd.round + 8 * training]),
        0.01,
        more=False,
    )
