"""A round's extract and merge, against the machine's own copy and against the dense method.

The clients hold the largest, the smallest and random subnets. A client's reply is what it was sent,
changed in place: 64 replies of ``resnet10-26`` are 9 GB. All alternatives take turns, and ratios
are taken within a turn.
"""

import ctypes
import math
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from superfednas.bench.figures import Effort, Figure, faster, milliseconds, seconds, torch_threads
from superfednas.server.average.choose import Averaging
from superfednas.server.average.overlap import TOGETHER, Given, blank
from superfednas.server.round.encode import gather
from superfednas.server.round.orders import SUPERNET
from superfednas.server.settings import check_settings
from superfednas.supernet import Architecture, SearchSpace, State, extract, load_space
from superfednas.supernet.boxes import Boxes, Cut
from superfednas.wire.flat import pack, unpack

OPTIONS: dict[str, Any] = {"num_classes": 10, "in_channels": 3, "image_size": 32}
BETA = 0.3


@dataclass
class Round:
    """The start of a round.

    Parameters
    ----------
    state
        The supernet.
    archs, cuts
        One a client.
    flats
        One outgoing buffer per client, which will also hold its reply.
    """

    space: SearchSpace
    state: State
    archs: list[Architecture]
    cuts: list[Cut]
    flats: list[np.ndarray]

    @classmethod
    def of(cls, space: SearchSpace, clients: int) -> "Round":
        """Draw the architectures and allocate the buffers."""
        rng = np.random.default_rng(0)
        archs = [space.largest, space.smallest][:clients]
        while len(archs) < clients:
            arch = space.sample(rng)
            archs += [arch] if arch not in archs else []
        shapes = space.shapes(space.largest)
        state = blank({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()})
        generator = torch.Generator().manual_seed(0)
        for tensor in state.values():
            tensor.normal_(generator=generator)
        flats = [np.empty(space.params(arch), np.float32) for arch in archs]
        cuts = [Cut(shapes, space.boxes(arch)) for arch in archs]
        found = cls(space, state, archs, cuts, flats)
        found.extract()
        return found

    @property
    def size(self) -> int:
        """Numbers of the supernet."""
        return self.space.params(self.space.largest)

    @property
    def weights(self) -> list[float]:
        """MaxNet's a_k."""
        others = len(self.archs) - 1
        return [BETA] + [(1 - BETA) / max(others, 1)] * others

    def extract(self) -> None:
        """Write every client's weights into its outgoing buffer."""
        for cut, flat in zip(self.cuts, self.flats, strict=True):
            gather(self.state, cut, flat)

    def extract_fresh(self) -> None:
        """Do the same with a new buffer for every client, as the dense method that allocates."""
        for arch in self.archs:
            pack(extract(self.state, self.space.boxes(arch)))

    def train(self) -> None:
        """Change every reply a little."""
        for number, flat in enumerate(self.flats):
            flat *= np.float32(1 + 1e-3 * (number + 1))

    def replies(self) -> list[tuple[State, float, Boxes]]:
        """Return every reply's tensors, its weight and the tensors' places."""
        return [
            (unpack(flat, cut.shapes), weight, cut)
            for cut, flat, weight in zip(self.cuts, self.flats, self.weights, strict=True)
        ]

    def must_move(self, together: int) -> int:
        """Return the bytes that a round must read and write, so many replies merged in one pass.

        Extract: each subnet read and written. Merge: each reply read; of the new state, a pass
        writes what is first covered, and reads and writes what was before; what nobody covers is
        read and written.
        """
        sent, new, again = sum(flat.size for flat in self.flats), 0, 0
        for name, tensor in self.state.items():
            seen = torch.zeros(tensor.shape, dtype=torch.bool)
            for start in range(0, len(self.cuts), together):
                now = torch.zeros_like(seen)
                for cut in self.cuts[start : start + together]:
                    if name in cut:
                        for outer, _ in cut.parts(name):
                            now[outer] = True
                new += int((now & ~seen).sum())
                again += int((now & seen).sum())
                seen |= now
        return 4 * (2 * sent + sent + new + 2 * again + 2 * (self.size - new))


class Dense:
    """Zero-padded sum and count tensors for every client; ``reuse`` keeps all four."""

    def __init__(self, what: Round, *, reuse: bool) -> None:
        self._what, self._reuse = what, reuse
        self._kept = [self._new(torch.zeros) for _ in range(5 if reuse else 0)]

    def _new(self, make: Callable[[torch.Size], torch.Tensor]) -> State:
        return {name: make(tensor.shape) for name, tensor in self._what.state.items()}

    def _zeros(self, number: int) -> State:
        if not self._reuse:
            return self._new(torch.zeros)
        for tensor in self._kept[number].values():
            tensor.zero_()
        return self._kept[number]

    def merge(self) -> State:
        """Pad, add, divide."""
        state, (sums, counts) = self._what.state, (self._zeros(0), self._zeros(1))
        for update, weight, boxes in self._what.replies():
            padded, count = self._zeros(2), self._zeros(3)
            places = extract(padded, boxes)
            for name, place in extract(count, boxes).items():
                torch.mul(update[name], weight, out=places[name])
                place.fill_(weight)
            for name in state:
                sums[name].add_(padded[name])
                counts[name].add_(count[name])
        merged = self._kept[4] if self._reuse else self._new(torch.empty)
        for name, old in state.items():
            torch.div(sums[name], counts[name], out=merged[name])
            torch.where(counts[name] == 0, old, merged[name], out=merged[name])
        return merged


class Copy:
    """The machine's own copy, between two warm arrays as large as the supernet.

    Parameters
    ----------
    size
        Numbers of the supernet.
    number
        Bytes to read and write.
    """

    def __init__(self, size: int, number: int) -> None:
        # Both are written: memory that is only zeroed is one page in the processor's cache.
        self._one, self._two = np.full(size, 1, np.float32), np.full(size, 2, np.float32)
        self._from, self._to = torch.from_numpy(self._one), torch.from_numpy(self._two)
        self._copies = number / (8 * size)

    def by_torch(self) -> float:
        """Return the seconds of torch's copy, on its threads."""
        return self._seconds(lambda: self._to.copy_(self._from))

    def by_numpy(self) -> float:
        """Return the seconds of numpy's copy, on one thread."""
        return self._seconds(lambda: np.copyto(self._two, self._one))

    def _seconds(self, copy: Callable[[], object]) -> float:
        times = math.ceil(self._copies)
        return seconds(lambda: [copy() for _ in range(times)]) * self._copies / times


class Ours:
    """The average that a run uses, with the buffers that it keeps."""

    def __init__(self, what: Round) -> None:
        self._what = what
        self._averaging = Averaging(check_settings({}))
        self._averaging.adopt(what.state)

    def merge(self) -> State:
        """Fold the replies together; the result is the next round's state."""
        average = self._averaging.open({SUPERNET: self._what.state})[SUPERNET]
        average.add_all(Given(*reply) for reply in self._what.replies())
        self._what.state = average.result()
        return self._what.state

    def merge_singly(self) -> State:
        """Fold the replies one after another, as they come; the result is the same to the bit."""
        average = self._averaging.open({SUPERNET: self._what.state})[SUPERNET]
        for reply in self._what.replies():
            average.add(*reply)
        self._what.state = average.result()
        return self._what.state


def peak_beyond(action: Callable[[], object]) -> int:
    """Return the peak rise of resident memory above its current level, in bytes.

    Linux with glibc only.
    """
    ctypes.CDLL(None).malloc_trim(0)  # else freed memory could be reused uncounted
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    action()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def page_faults(action: Callable[[], object]) -> int:
    """Return the number of page faults of a call."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    action()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def agree(dense: State, merged: State) -> None:
    """Check that both methods give the same round, up to rounding."""
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, dense[name], rtol=1e-5, atol=1e-5)


@dataclass
class Taken:
    """What one number of clients took: seconds of every turn, faults and bytes of a round.

    ``taken`` has ``copy``, ``extract``, ``merge``, ``singly``, ``dense``, ``fresh extract``,
    ``fresh dense``; ``copy`` is of as many bytes as ``must`` be moved where replies are merged
    together, ``must_singly`` is the number where they are merged one after another; ``supernet``
    are the bytes of the state.
    """

    taken: dict[str, list[float]]
    faults: int
    peak: int | None
    must: int
    must_singly: int
    supernet: int

    def copied_singly(self) -> list[float]:
        """Return the seconds of copying what must be moved one reply after another."""
        return [seconds * self.must_singly / self.must for seconds in self.taken["copy"]]

    def both(self, extract: str, merge: str) -> list[float]:
        """Return the seconds of extract and merge together."""
        return [sum(pair) for pair in zip(self.taken[extract], self.taken[merge], strict=True)]


def measure(what: Round, turns: int, allocating: int) -> Taken:
    """Let all ways take turns; the first ``allocating`` are of those that allocate, too."""
    ours = Ours(what)

    def whole() -> None:
        what.extract()
        ours.merge()

    def three() -> None:
        for _ in range(3):
            whole()

    try:
        peak = peak_beyond(three)
    except (OSError, AttributeError):
        whole()
        peak = None  # no such files, no such allocator
    faults = page_faults(whole)
    dense, must, singly = Dense(what, reuse=True), what.must_move(TOGETHER), what.must_move(1)
    copy = Copy(what.size, must)
    what.train()
    agree(dense.merge(), ours.merge())
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "extract": (what.extract, turns),
        "merge": (ours.merge, turns),
        "singly": (ours.merge_singly, turns),
        "dense": (dense.merge, turns),
        "fresh extract": (what.extract_fresh, allocating),
        "fresh dense": (Dense(what, reuse=False).merge, allocating),
    }
    taken: dict[str, list[float]] = {name: [] for name in [*ways, "copy"]}
    for turn in range(turns):
        taken["copy"].append(min(copy.by_torch(), copy.by_numpy()))
        for name, (action, times) in ways.items():
            if turn < times:
                taken[name].append(seconds(action))
    return Taken(taken, faults, peak, must, singly, 4 * what.size)


def figures(effort: Effort) -> Iterator[Figure]:
    """Measure merge and extract."""
    name = "resnet-tiny" if effort == "quick" else "resnet10-26"
    turns = {"quick": 2, "normal": 8, "full": 24}[effort]
    with torch_threads(2):
        for clients in (8, 64) if effort == "full" else (8,):
            what = Round.of(load_space(name, **OPTIONS), clients)
            found = measure(what, max(3, turns * 8 // clients), 1 if clients > 8 else 3)
            asked = effort != "quick" and clients == 8  # for this space, and 8 clients
            yield from _figures(found, f"{clients} subnets of `{name}`", asked=asked)


def _figures(found: Taken, subnets: str, *, asked: bool) -> Iterator[Figure]:
    together, singly = found.both("extract", "merge"), found.both("extract", "singly")
    what = f"cutting out and merging {subnets}"

    def speed(
        how: str, ours: list[float], against: str, others: list[float], least: float
    ) -> Figure:
        ratio = faster(ours[: len(others)], others)
        limit = least if asked and least else None
        said = milliseconds(ours), milliseconds(others)
        return Figure("merge", what + how, against, ratio, said[0], said[1], limit)

    floor = "a copy of the bytes that must move so, warm buffers"
    yield speed(", one by one as they come", singly, floor, found.copied_singly(), 0.6)
    yield speed(", all being there", together, floor, found.taken["copy"], 0)
    for how, dense, least in (
        ("on reused buffers", found.both("extract", "dense"), 4),
        ("that allocate", found.both("fresh extract", "fresh dense"), 10),
    ):
        yield speed(", all being there", together, f"zero-padded sums {how}", dense, least)
    memory = f"memory of merging {subnets}, beside replies and messages"
    if found.peak is None:
        yield Figure("merge", memory, "the supernet", None, "not measured: Linux only", "")
        return
    yield Figure(
        "merge",
        memory,
        "the supernet",
        found.peak / found.supernet,
        f"{found.peak / 1e6:,.0f} MB",
        f"{found.supernet / 1e6:,.0f} MB",
        1.2 if asked else None,
        more=False,
    )
