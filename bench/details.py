"""Details of each measure: tables by size, cause and format behind the one-line figures.

``superfednas bench --only NAME --details`` prints them as Markdown; benchmarks/results keeps them.
They measure the same as the measure's own module, at more points.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from superfednas.bench.figures import Effort, faster

Details = Callable[[Effort], Iterator[str]]
_SPACES = ("resnet-tiny", "resnet10-26")


def details(name: str, effort: Effort) -> Iterator[str]:
    """Measure and yield lines of Markdown.

    Parameters
    ----------
    name
        A measure of :data:`superfednas.bench.suite.MEASURES`.
    effort
        How many turns, and whether the large spaces are measured too.

    Raises
    ------
    ValueError
        For a measure without details.
    """
    if name not in DETAILS:
        raise ValueError(f"--details: --only must be one of {', '.join(DETAILS)}")
    if name != "gpu":
        torch.set_num_threads(1)
    return DETAILS[name](effort)


def _spaces(effort: Effort) -> tuple[str, ...]:
    return _SPACES[:1] if effort == "quick" else _SPACES


def _head(*columns: str) -> str:
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def _rounds(effort: Effort) -> Iterator[str]:
    from superfednas.bench.rounds import copy_seconds, rounds

    clients, count = 8, {"quick": 3, "normal": 40, "full": 100}[effort]
    with tempfile.TemporaryDirectory() as folder:
        total, causes, moved = rounds(10, clients, "resnet-tiny", count, Path(folder) / "run")
    yield f"resnet-tiny, {clients} empty clients a round, median of {count} rounds\n"
    yield _head("cause", "ms")
    for cause, seconds in causes.items():
        yield f"| {cause} | {1e3 * seconds:.2f} |"
    yield f"| the rest | {1e3 * (total - sum(causes.values())):.2f} |"
    yield f"| **the round** (allowed: {10 + 2 * clients}) | {1e3 * total:.2f} |"
    warm = 1e3 * copy_seconds(moved)
    yield f"| a copy of the same {moved / 1e6:.1f} MB on warm buffers | {warm:.2f} |"


def _wire(effort: Effort) -> Iterator[str]:
    from superfednas.bench.messages import ENVELOPE, one_round
    from superfednas.wire.flat import WIRE_DTYPES

    yield _head("space", "subnet", "format", "its bytes", "down, over", "up, over", "allowed")
    for space in _spaces(effort):
        for architecture in ("smallest", "random:0", "largest"):
            for wire_dtype in WIRE_DTYPES:
                size, down, up = one_round(space, architecture, wire_dtype)
                allowed = 0.02 * size + ENVELOPE
                verdict = "yes" if max(down, up) - size <= allowed else "NO"
                yield (
                    f"| {space} | {architecture} | {wire_dtype} | {size:,} | {down - size:,} | "
                    f"{up - size:,} | {allowed:,.0f}: {verdict} |"
                )


def _training(effort: Effort) -> Iterator[str]:
    from superfednas.bench.loops import RECIPE, Task, compare, pictures, pil_rate, tensor_rate
    from superfednas.tasks.images import Augment

    turns, images = {"quick": (1, 64), "normal": (7, 640), "full": (15, 640)}[effort]
    yield _head("space", "subnet", "batch", "augmentation", "bare, images/s", "client", "ratio")
    cases = [
        ("resnet-tiny", 8, 1, 16, images),
        ("resnet-tiny", 32, 3, 16, images // 4),
        ("resnet10-26", 32, 3, 32, 32),
    ]
    for name, size, channels, batch, count in cases[: 1 if effort == "quick" else None]:
        recipes = {"none": Augment()} | ({"crop, flip, Cutout": RECIPE} if size == 32 else {})
        for rung in ("smallest", "largest"):
            for said, augment in recipes.items():
                task = Task(name, rung, size, channels, batch, count, augment)
                taken = compare(task, turns)
                plain, client = (count / statistics.median(taken[w]) for w in ("bare", "client"))
                yield (
                    f"| {name}, {size}×{size} | {rung} | {batch} | {said} | {plain:,.0f} | "
                    f"{client:,.0f} | {faster(taken['client'], taken['bare']):.3f} |"
                )
    data = pictures(2000 if effort != "quick" else 100, 32, 3)
    pil = pil_rate(data)
    yield "\n" + _head("crop, flip, normalise, Cutout", "images/s", "÷ PIL")
    yield f"| PIL, one image at a time | {pil:,.0f} | 1 |"
    for batch in (16, 64, 256):
        rate = tensor_rate(data, batch)
        yield f"| tensors, batches of {batch} | {rate:,.0f} | {rate / pil:.1f} |"


def _gpu(effort: Effort) -> Iterator[str]:
    from superfednas.bench.gpu import PAPER, SMALL, train_mixed

    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if here.type == "cpu":
        torch.set_num_threads(1)
        yield "No GPU: the same code on the CPU, on the small work.\n"
    yield f"work: {SMALL if here.type == 'cpu' or effort == 'quick' else PAPER}\n"
    yield _head(
        *("format", "clients at once", "images/s", "÷ bare loop", "its images/s"),
        *("a round, s", "its floor, s", "matrix product, Tops/s"),
    )
    for row in train_mixed(SMALL if here.type == "cpu" or effort == "quick" else PAPER, here):
        yield (
            f"| {row.precision} | {row.at_once} | {row.speed:,.0f} | {row.speed / row.bare:.2f} | "
            f"{row.bare:,.0f} | {row.seconds:.2f} | {row.floor:.2f} | {row.matmul / 1e12:.3f} |"
        )


def _search(effort: Effort) -> Iterator[str]:
    from superfednas.bench.counting import rates

    yield _head("what", "a second", "in place of", "a second", "ratio")
    for name in _spaces(effort):
        for row in rates(name, measure=effort != "quick"):
            yield (
                f"| {row.what} | {row.ours:,.4g} | {row.against} | {row.other:,.3g} | "
                f"{row.ours / row.other:,.0f} |"
            )


def _growth(effort: Effort) -> Iterator[str]:
    from superfednas.bench.growth import IMAGES, by_nodes, by_replies, spaces, training_seconds

    turns, count = {"quick": (1, 2), "normal": (24, 12), "full": (48, 24)}[effort]
    yield _head(
        *("supernet, M", "replies", "cut out, ms", "check, average, ms", "ms a reply"),
        *("GB/s", "peak"),
    )
    for space in spaces()[: 1 if effort == "quick" else None]:
        for row in by_replies(space, turns):
            yield (
                f"| {row.numbers / 1e6:.1f} | {row.replies} | {1e3 * row.out:,.1f} | "
                f"{1e3 * row.back:,.1f} | {1e3 * row.each:.2f} | "
                f"{row.moved / (row.out + row.back) / 1e9:.1f} | "
                f"{row.peak / 4 / row.numbers:.2f} |"
            )
    training = training_seconds(spaces()[0])
    yield f"\nA client needs {1e3 * training:.0f} ms for {IMAGES} images.\n"
    yield _head(
        *("nodes known", "clients", "empty round, ms", "bookkeeping, ms"),
        *(f"its share with {IMAGES} images", f"{5 * IMAGES} images"),
    )
    for known in by_nodes(count):
        few, many = (known.share(n * training) for n in (1, 5))
        yield (
            f"| {known.nodes:,} | {known.sampled} | {1e3 * known.round:.1f} | "
            f"{1e3 * known.books:.2f} | {few:.2%} | {many:.2%} |"
        )


def _ray(effort: Effort) -> Iterator[str]:
    from superfednas.bench.simulated import NODES, OURS, WAYS, rounds

    clients = 8
    count, turns = {"quick": (3, 1), "normal": (15, 3), "full": (25, 5)}[effort]
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(turns):
        for name in WAYS if turn % 2 == 0 else reversed(WAYS):
            found[name].append(rounds(name, "resnet-tiny", clients, count))
    yield f"resnet-tiny, {NODES} nodes, {clients} clients a round, {count} rounds\n"
    yield _head("way", "ms a round, median", "of every turn", "ours ÷ it")
    ours = statistics.median(found[OURS])
    for name, values in found.items():
        each = ", ".join(f"{1e3 * value:,.0f}" for value in values)
        middle = statistics.median(values)
        yield f"| {name} | {1e3 * middle:,.0f} | {each} | {ours / middle:.2f} |"


DETAILS: dict[str, Details] = {
    "rounds": _rounds,
    "wire": _wire,
    "training": _training,
    "gpu": _gpu,
    "search": _search,
    "growth": _growth,
    "ray": _ray,
}
