"""Evolutionary search under limits: for any score and any space.

Defaults are those of SuperFedNAS (arXiv 2301.10879, its released search): a quarter of the
population are parents; a fifth of the children are mutations of one parent that change each gene
with probability .1, and the others cross two parents gene by gene. Unlike the original, no loop is
unbounded: a child that does not fit is drawn again a fixed number of times, then lowered gene by
gene towards the smallest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from superfednas.supernet import Architecture, SearchSpace

_TRIES = 20
Choices = tuple[int, ...]


@dataclass(frozen=True)
class EvolutionSettings:
    """Length and breadth of an evolutionary search."""

    population: int = 100
    generations: int = 50
    parents: float = 0.25
    mutations: float = 0.2
    mutation_probability: float = 0.1

    def __post_init__(self) -> None:  # noqa: D105
        for name in ("population", "generations"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 2")
        for name in ("parents", "mutations", "mutation_probability"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be above 0, at most 1")


def evolve(
    space: SearchSpace,
    score: Callable[[Sequence[Architecture]], np.ndarray],
    fits: Callable[[Architecture], bool],
    *,
    settings: EvolutionSettings | None = None,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> list[tuple[Architecture, float]]:
    """Search for the highest-scoring architectures that fit.

    Parameters
    ----------
    space
        The search space.
    score
        Returns scores of architectures; called once per architecture, a generation at a time.
    fits
        Whether an architecture is within the limits. The smallest should be; if it is not, nothing
        is searched.
    settings
        Size and rates.
    seed
        Seed of all random choices.
    progress
        Called after every generation with its number, from 1, and the best score so far.

    Returns
    -------
    list
        Every scored architecture with its score, best first; empty if even the smallest does not
        fit.
    """
    s = settings or EvolutionSettings()
    rng = np.random.default_rng(seed)
    genes = np.array(space.genes)
    if not fits(space.smallest):
        return []
    known: dict[Choices, Architecture] = {}
    refused: set[Choices] = set()  # checking whether an architecture fits may take milliseconds

    def fitting(draw: Callable[[], np.ndarray]) -> Choices:
        for _ in range(_TRIES):
            choices = _key(draw())
            if _fits(choices):
                return choices
        return shrunk(np.array(choices))

    def _fits(choices: Choices) -> bool:
        if choices not in known and choices not in refused:
            arch = space.decode(choices)
            if fits(arch):
                known[choices] = arch
            else:
                refused.add(choices)
        return choices in known

    def shrunk(choices: np.ndarray) -> Choices:
        """Lower one random gene at a time, in at most as many steps as there are choices."""
        while choices.any():
            gene = rng.choice(np.flatnonzero(choices))
            choices[gene] -= 1
            if _fits(_key(choices)):
                break
        _fits(_key(choices))
        return _key(choices)

    def pick(parents: Sequence[Choices]) -> Choices:
        return parents[int(rng.integers(len(parents)))]

    def mutant(parents: Sequence[Choices]) -> np.ndarray:
        changed = rng.random(len(genes)) < s.mutation_probability
        return np.where(changed, rng.integers(genes), pick(parents))

    def cross(parents: Sequence[Choices]) -> np.ndarray:
        return np.where(rng.random(len(genes)) < 0.5, pick(parents), pick(parents))

    everything: dict[Architecture, float] = {}
    population = [fitting(lambda: np.array(space.draw(rng))) for _ in range(s.population)]
    for generation in range(1, s.generations + 1):
        # Different choices may give the same architecture (inactive genes): it is scored once.
        new = list(dict.fromkeys(known[c] for c in population if known[c] not in everything))
        if new:
            everything |= dict(zip(new, map(float, score(new)), strict=True))
        # Copies of one good architecture would soon be the only parents.
        distinct = {known[choices]: choices for choices in reversed(population)}
        ranked = sorted(distinct, key=lambda arch: -everything[arch])
        if progress is not None:
            progress(generation, everything[ranked[0]])
        parents = [distinct[arch] for arch in ranked[: max(2, round(s.parents * s.population))]]
        children = s.population - len(parents)
        mutants = round(s.mutations * children)
        population = parents + [
            fitting(partial(mutant if child < mutants else cross, parents))
            for child in range(children)
        ]
    return sorted(everything.items(), key=lambda item: -item[1])


def _key(choices: np.ndarray) -> Choices:
    return tuple(int(choice) for choice in choices)
