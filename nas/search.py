"""The best subnets under limits, or the whole front: exactly where that is possible."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nas.costs import Costs, NothingFits
from nas.evolution import EvolutionSettings, evolve
from nas.exact import pareto, undominated
from nas.scoring import AdditiveScorer, Scorer
from supernet import Architecture

ENGINES = ("auto", "exact", "evolution")
_BUDGETS = 8  # at which evolution looks for a front
_ALL = 1 << 30


@dataclass(frozen=True)
class Found:
    """What a search found.

    Parameters
    ----------
    networks
        Architectures with their scores: under limits the best first, a front by rising cost.
    exact
        Whether they are proven to be the best for the score.
    looked_at
        How many networks were decided upon: the whole space where the search was exact, else those
        that were scored.
    seconds
        Time of the search; scores that had to be measured in it count.
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
        What is maximised.
    costs
        The space and what its networks cost.
    limits
        Cost name to the most that it may be; may be empty.
    engine
        ``exact`` (an additive scorer on a chain), ``evolution``, or ``auto``: exact where possible.
    count
        How many. Beyond the best, the exact engine gives undominated ones: each is the best within
        what it costs.
    seed, evolution, progress
        For evolution.

    Raises
    ------
    nas.costs.NothingFits
        Where no subnet keeps the limits.
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
        if not len(front):  # where parts were thinned out
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

    Parameters are those of :func:`search`; ``against`` names the cost. A front against ``memory``,
    which is no sum, is made of one exact search for each value that a peak can take. Evolution is
    run at 8 budgets, and what is undominated in all that it scored is returned.
    """
    costs.check(limits)
    started = time.perf_counter()
    space = costs.space
    if _exactly(engine, scorer, costs) and against != "memory":
        assert isinstance(scorer, AdditiveScorer) and space.chain is not None
        tables, room = costs.sums(limits)
        front = pareto(
            space.chain,
            scorer.tables(),
            [costs.table(against), *tables],
            [np.inf, *room],
            costs.allowed(limits),
        )
        # Undominated in all limited costs; only score and the one cost count for the front.
        rows = undominated(front.score, front.costs[:, :1])
        archs = [space.chain.assemble(options) for options in front.options[rows]]
        networks = tuple(zip(archs, map(float, scorer(archs)), strict=True))
        return Found(networks, front.exact, space.size, time.perf_counter() - started)
    exactly = exact = _exactly(engine, scorer, costs)
    least, most = costs.least(against), limits.get(against, np.inf)
    if exactly:
        budgets = np.unique(np.concatenate([table.ravel() for table in costs.peaks()]))
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
    """Decide on the engine; ``ValueError`` where the one that was asked for cannot be used."""
    if engine not in ENGINES:
        raise ValueError(f"engine = {engine!r}: must be one of {', '.join(ENGINES)}")
    possible = costs.space.chain is not None and isinstance(scorer, AdditiveScorer)
    if engine == "exact" and not possible:
        raise ValueError(
            f"engine = 'exact': the score {scorer.name!r} on the space {costs.space.name!r} is no "
            "sum over segments; use evolution"
        )
    return possible and engine != "evolution"
