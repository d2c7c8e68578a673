"""Search spaces small enough to enumerate, and a device that times by the die."""

import itertools
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from superfednas.supernet import Architecture, SearchSpace, load_space
from superfednas.supernet.chain import Block, Chain, Segment
from superfednas.tasks.images import Images
from tests.extend.test_examples import EXAMPLES


@dataclass(frozen=True)
class Picks(Architecture):
    """One option a segment."""

    picks: tuple[int, ...]


class ToyChain(Chain):
    """Options, states and blocks by the die: small whole numbers, so that ties are common.

    Some states are never left behind, and what is small in one cost may be large in another.
    """

    def __init__(self, seed: int, segments: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.blocks_of: dict[tuple[int, int, int], tuple[Block, ...]] = {}
        found, states = [], 1
        for s in range(segments):
            options = int(rng.integers(1, 5))
            leaves = rng.integers(0, 3, options)
            features = rng.normal(size=(options, 2))
            found.append(Segment(f"segment{s}", tuple(range(options)), leaves, features))
            for state, option in itertools.product(range(states), range(options)):
                self.blocks_of[s, state, option] = tuple(
                    Block(f"{s} {state} {option} {b}", (1,), *map(int, numbers), nn.Identity)
                    for b, numbers in enumerate(rng.integers(0, 6, (rng.integers(1, 3), 3)))
                )
            states = 1 + int(leaves.max())
        self._segments = tuple(found)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self._segments

    def blocks(self, segment: int, state: int, option: int) -> tuple[Block, ...]:
        return self.blocks_of[segment, state, option]

    def assemble(self, options: Sequence[int]) -> Picks:
        return Picks(tuple(int(option) for option in options))

    def locate(self, arch: Architecture) -> tuple[int, ...]:
        assert isinstance(arch, Picks)
        return arch.picks

    def links(self, options: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Give (segment, state, option) of every link of a network."""
        state = 0
        for s, option in enumerate(options):
            yield s, state, option
            state = int(self.segments[s].leaves[option])


class ToySpace(SearchSpace):
    """A :class:`ToyChain` as a space; its networks cannot be built."""

    name = "toy"
    architecture = Picks

    def __init__(self, seed: int, segments: int = 3) -> None:
        super().__init__(Images())
        self._chain = ToyChain(seed, segments)

    @property
    def chain(self) -> ToyChain:
        return self._chain

    @property
    def genes(self) -> tuple[int, ...]:
        return tuple(len(segment.options) for segment in self.chain.segments)

    def decode(self, choices: Sequence[int]) -> Picks:
        return self.chain.assemble(choices)

    def module(self, arch: Architecture) -> nn.Module:
        raise AssertionError("a toy network was built")

    def blocks(self, arch: Architecture) -> tuple[Block, ...]:
        links = self.chain.links(self.chain.locate(arch))
        return tuple(block for link in links for block in self.chain.blocks(*link))

    def macs(self, arch: Architecture) -> int:
        return sum(block.macs for block in self.blocks(arch))

    def params(self, arch: Architecture) -> int:
        return sum(block.params for block in self.blocks(arch))

    def activations(self, arch: Architecture) -> int:
        return max(block.activations for block in self.blocks(arch))


class Dice:
    """A latency model: every block takes some tenths of milliseconds, whatever it is."""

    def __init__(self, space: SearchSpace, seed: int = 0, overhead: float = 0.7) -> None:
        assert space.chain is not None
        self._space = space
        self._overhead = overhead
        rng = np.random.default_rng(seed)
        self._ms = {block.name: 0.1 + rng.random() for block in space.chain.inventory.blocks}

    def predict(self, arch: Architecture, batch: int) -> float:
        return self._overhead + batch * sum(self._ms[b.name] for b in self._space.blocks(arch))

    def tables(self, chain: Chain, batch: int) -> list[np.ndarray]:
        inventory = chain.inventory
        return inventory.totals([batch * self._ms[block.name] for block in inventory.blocks])

    def overhead(self, batch: int) -> float:
        return self._overhead


class Additive:
    """A score by the die that is a sum over segments; whole numbers, so that ties are common."""

    name = "additive"

    def __init__(self, space: SearchSpace, seed: int = 0, spread: int = 4) -> None:
        assert space.chain is not None
        self._chain = space.chain
        rng = np.random.default_rng(seed)
        shapes = [
            (self._chain.states(s), len(segment.options))
            for s, segment in enumerate(self._chain.segments)
        ]
        self._tables = [rng.integers(-spread, spread, shape).astype(float) for shape in shapes]
        self.calls: list[Architecture] = []

    def tables(self) -> list[np.ndarray]:
        return self._tables

    def of_options(self, options: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._chain.gather(self._tables, options).sum(axis=0)
        return found

    def __call__(self, archs: Sequence[Architecture]) -> np.ndarray:
        self.calls += archs
        return self.of_options(np.array([self._chain.locate(arch) for arch in archs]))


def mlp_space() -> SearchSpace:
    """Return docs/extend.md's space for 8×8 grey images of 3 classes: 12 networks, no chain."""
    if "my_space" not in sys.modules:
        module = sys.modules["my_space"] = types.ModuleType("my_space")
        exec(EXAMPLES["my_space.py"], module.__dict__)
    return load_space("my_space:MLPSpace", num_classes=3, in_channels=1, image_size=8, norm="none")


def every(chain: Chain) -> np.ndarray:
    """Return all networks of a small chain, (networks, segments) option indices."""
    ranges = [range(len(segment.options)) for segment in chain.segments]
    return np.array(list(itertools.product(*ranges)))


def pareto_points(scores: np.ndarray, costs: np.ndarray) -> set[tuple[float, ...]]:
    """Return the undominated (score, *costs), by looking at all pairs of distinct points."""
    points = {(float(score), *map(float, cost)) for score, cost in zip(scores, costs, strict=True)}
    return {
        point
        for point in points
        if not any(
            other != point
            and other[0] >= point[0]
            and all(a <= b for a, b in zip(other[1:], point[1:], strict=True))
            for other in points
        )
    }
