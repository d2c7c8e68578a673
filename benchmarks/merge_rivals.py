"""What :mod:`merge_extract` measures: a round, the dense way to merge it, the machine's copy."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from server.aggregation import blank
from server.outgoing import gather
from supernet import Architecture, SearchSpace, State, extract
from supernet.slicing import Boxes, Cut
from supernet.wire import pack, unpack

BETA = 0.3


@dataclass
class Round:
    """What a round starts from.

    Parameters
    ----------
    state
        The supernet.
    archs, cuts
        One a client.
    flats
        One outgoing buffer a client, in which its reply will lie.
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
        """Return every reply's tensors, its weight and where they lie."""
        return [
            (unpack(flat, cut.shapes), weight, cut)
            for cut, flat, weight in zip(self.cuts, self.flats, self.weights, strict=True)
        ]

    def must_move(self) -> int:
        """Return the bytes that a round must read and write, replies merged one after another.

        Extract: each subnet read and written. Merge: each reply read, the new state written by the
        first of a cell, read and written by the others; what nobody covers is read and written.
        """
        covered = 0
        for name, tensor in self.state.items():
            seen = torch.zeros(tensor.shape, dtype=torch.bool)
            for arch in self.archs:
                boxes = self.space.boxes(arch)
                if name in boxes:
                    extract({name: seen}, {name: boxes[name]})[name].fill_(True)
            covered += int(seen.sum())
        sent = sum(flat.size for flat in self.flats)
        uncovered = self.size - covered
        return 4 * (2 * sent + sent + covered + 2 * (sent - covered) + 2 * uncovered)


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


def seconds(action: Callable[[], object]) -> float:
    """Return how long something takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


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
        # Written, both: what is only zeroed is one page that the processor's cache holds.
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
