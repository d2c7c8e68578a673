"""The best subnets under limits, or the whole front, found exactly if possible."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from superfednas.nas.cost.costs import Costs, NothingFits
from superfednas.nas.engine.evolution import EvolutionSettings, evolve
from superfednas.nas.front import pareto, undominated
from superfednas.nas.score.scorer import AdditiveScorer, Scorer
from superfednas.supernet import Architecture

ENGINES = ("auto", "exact", "evolution")
_BUDGETS = 8  # at which evolution looks for a front
_ALL = 1 << 30


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Parameters
    ----------
    networks
        Architectures with their scores: best first under limits; by rising cost for a front.
    exact
        Whether they are proven to be the best for the score.
    looked_at
        The number of architectures covered: the whole space if the search was exact, else those
        that were scored.
    seconds
        Duration of the search, including scores measured during it.
    engine
        ``exact`` or ``evolution``.
    """

    networks: tuple[tuple[Architecture, float], ...]
    exact: bool
    looked_at: int
    seconds: float
    engine: str = "exact"


def search(
    scorer: Scorer,
    costs: Costs,
    limits: Mapping[str, float],
    *,
    engine: str = "auto",
    count: int = 1,
    seed: int = 0,
    evolution: EvolutionSettings | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Found:
    """Return the ``count`` best subnets that keep all limits.

    Parameters
    ----------
    scorer
        The score to maximise.
    costs
        The space and the costs of its architectures.
    limits
        Cost name to its maximum; may be empty.
    engine
        ``exact`` (an additive scorer on a chain), ``evolution``, or ``auto``: exact if possible.
    count
        How many to return. Beyond the best, the exact engine returns undominated ones: each is the
        best within its own cost.
    seed, evolution, progress
        For evolution.

    Raises
    ------
    superfednas.nas.cost.costs.NothingFits
        If no subnet keeps the limits.
    ValueError
        For an engine that cannot be used here.
    """
    costs.check(limits)
    started = time.perf_counter()
    space = costs.space
    if _exactly(engine, scorer, costs):
        assert isinstance(scorer, AdditiveScorer) and space.chain is not None
        tables, room = costs.sums(limits)
        if not tables:
            tables, room = [costs.table("macs")], [np.inf]
        front = pareto(space.chain, scorer.tables(), tables, room, costs.allowed(limits))
        if not len(front):  # if partial architectures were dropped
            raise NothingFits(f"no subnet of {space.name} was found that keeps all limits", {})
        best = np.argsort(-front.score, kind="stable")[:count]
        archs = [space.chain.assemble(options) for options in front.options[best]]
        scores = scorer(archs)
        networks = tuple(zip(archs, map(float, scores), strict=True))
        return Found(networks, front.exact, space.size, time.perf_counter() - started)
    ranked = evolve(
        space,
        scorer,
        lambda arch: costs.fits(arch, limits),
        settings=evolution,
        seed=seed,
        progress=progress,
    )
    if not ranked:
        raise NothingFits(
            f"evolution starts from the smallest subnet of {space.name}, which does not keep all "
            "limits, though others do",
            {},
        )
    seconds = time.perf_counter() - started
    return Found(tuple(ranked[:count]), False, len(ranked), seconds, "evolution")


def search_front(
    scorer: Scorer,
    costs: Costs,
    against: str,
    limits: Mapping[str, float],
    *,
    engine: str = "auto",
    seed: int = 0,
    evolution: EvolutionSettings | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Found:
    """Return the Pareto front of the score against one cost, within limits, by rising cost.

    Parameters are those of :func:`search`; ``against`` names the cost. A front against a peak
    (``memory``), which is no sum, is made of one exact search for each value that it can take.
    Evolution is run at 8 budgets, and what is undominated in all that it scored is returned.
    """
    costs.check(limits)
    started = time.perf_counter()
    space = costs.space
    if _exactly(engine, scorer, costs) and not costs.kind(against).peak:
        assert isinstance(scorer, AdditiveScorer) and space.chain is not None
        tables, room = costs.sums(limits)
        front = pareto(
            space.chain,
            scorer.tables(),
            [costs.table(against), *tables],
            [np.inf, *room],
            costs.allowed(limits),
        )
        # These are undominated in all limited costs; the front considers only score and one cost.
        rows = undominated(front.score, front.costs[:, :1])
        archs = [space.chain.assemble(options) for options in front.options[rows]]
        networks = tuple(zip(archs, map(float, scorer(archs)), strict=True))
        return Found(networks, front.exact, space.size, time.perf_counter() - started)
    exactly = exact = _exactly(engine, scorer, costs)
    least, most = costs.least(against), limits.get(against, np.inf)
    if exactly:
        peaks = [table.ravel() for table in costs.table(against)]
        budgets = costs.base(against) + np.unique(np.concatenate(peaks))
        budgets = budgets[(budgets >= least) & (budgets <= most)]
    else:
        highest = min(most, costs.most(against))
        budgets = np.append(np.linspace(least, highest, _BUDGETS + 1)[1:-1], most)
    known: dict[Architecture, float] = {}
    for budget in budgets:
        within = {**limits, against: float(budget)}
        try:
            found = search(
                scorer,
                costs,
                within,
                engine="exact" if exactly else "evolution",
                count=1 if exactly else _ALL,
                seed=seed,
                evolution=evolution,
                progress=progress,
            )
        except NothingFits as error:  # the other limits leave nothing at this budget
            nothing = error
            continue
        known |= dict(found.networks)
        exact &= found.exact
    if not known:
        raise nothing
    archs = list(known)
    scores = np.array([known[arch] for arch in archs])
    spent = np.array([[costs.of(against, arch)] for arch in archs])
    rows = undominated(scores, spent)
    return Found(
        tuple((archs[row], float(scores[row])) for row in rows),
        exact,
        space.size if exactly else len(archs),
        time.perf_counter() - started,
        "exact" if exactly else "evolution",
    )


def _exactly(engine: str, scorer: Scorer, costs: Costs) -> bool:
    """Choose the engine; ``ValueError`` if the requested one cannot be used."""
    if engine not in ENGINES:
        raise ValueError(f"engine = {engine!r}: must be one of {', '.join(ENGINES)}")
    possible = costs.space.chain is not None and isinstance(scorer, AdditiveScorer)
    if engine == "exact" and not possible:
        raise ValueError(
            f"engine = 'exact': the score {scorer.name!r} on the space {costs.space.name!r} is no "
            "sum over segments; use evolution"
        )
    return possible and engine != "evolution"
