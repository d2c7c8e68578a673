"""From a trained supernet to a plan: score a few subnets, learn from them, search, note it all."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from nas.accuracy import Score
from nas.costs import COSTS, Costs
from nas.evolution import EvolutionSettings
from nas.fitness import Fitness
from nas.measuring import Measured, ScoreBook
from nas.plan import Entry, Plan
from nas.regression import LEAST, POOR, Regression, design
from nas.scoring import MacsScorer, Scorer
from nas.search import ENGINES, Found, search, search_front
from supernet import Architecture

SCORERS = ("regression", "measured", "zero-cost", "macs")
# Every network is run: a population of 100 over 50 generations would be an hour, not seconds.
_MEASURED_EVOLUTION = EvolutionSettings(population=20, generations=10)


class SearchProgress(Protocol):
    """What a search says while it runs."""

    def measuring(self, done: int, todo: int, why: str) -> None:
        """Report ``done`` of ``todo`` things that take their time."""

    def note(self, text: str) -> None:
        """Say one sentence."""


class Silence:
    """Says nothing."""

    def measuring(self, done: int, todo: int, why: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Request:
    """What is wanted of a search.

    Parameters
    ----------
    limits
        Cost name (:data:`nas.costs.COSTS`) to the most that it may be.
    against
        A cost for the whole Pareto front; empty for the best subnet only.
    score
        One of :data:`SCORERS`.
    subnets
        Subnets to measure for a regression.
    refine
        Times that the regression's winners are measured and it is fitted again.
    winners
        Subnets that each refinement measures.
    engine
        ``auto``, ``exact`` or ``evolution``.
    evolution
        Settings of that engine; None takes its defaults.
    seed
        Of the measured subnets and of evolution.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    against: str = ""
    score: str = "regression"
    subnets: int = 40
    refine: int = 2
    winners: int = 8
    engine: str = "auto"
    evolution: EvolutionSettings | None = None
    seed: int = 0

    def __post_init__(self) -> None:  # noqa: D105
        if self.score not in SCORERS:
            raise ValueError(f"score = {self.score!r}: must be one of {', '.join(SCORERS)}")
        if self.engine not in ENGINES:
            raise ValueError(f"engine = {self.engine!r}: must be one of {', '.join(ENGINES)}")
        for name, least in (("subnets", LEAST), ("refine", 0), ("winners", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {least}")
        for name in (*self.limits, *filter(None, [self.against])):
            if name not in COSTS:
                raise ValueError(f"cost {name!r}: must be one of {', '.join(COSTS)}")
        for name, most in self.limits.items():
            if not most > 0:
                raise ValueError(f"max-{name} = {most:g}: must be above 0")


def make_plan(
    request: Request,
    costs: Costs,
    *,
    measured: Measured | None = None,
    book: ScoreBook | None = None,
    ladder: Mapping[str, Architecture] | None = None,
    origin: Mapping[str, Any] | None = None,
    progress: SearchProgress | None = None,
) -> Plan:
    """Score, search and note.

    Parameters
    ----------
    request
        What is wanted.
    costs
        The space and what its networks cost.
    measured
        Measures subnets; needed for ``regression`` and ``measured`` where no ``book`` is given.
    book
        Scores that are there already and stand in place of measuring (those of the nodes).
    ladder
        Further networks to note in the plan.
    origin
        Fields of the plan that say where the weights and images are from: ``run``, ``weights``,
        ``rounds``, ``space``, ``data``, ``latency``.
    progress
        Where the search reports.

    Raises
    ------
    nas.costs.NothingFits
        Where no subnet keeps the limits: said before anything is measured.
    """
    costs.check(request.limits)
    if request.engine == "exact" and costs.space.chain is None:
        raise ValueError(
            f"engine = 'exact': the space {costs.space.name!r} is no chain of blocks; use evolution"
        )
    if request.against:
        costs.least(request.against)  # says now if it cannot be told
    progress = progress or Silence()
    started = time.perf_counter()
    source = _Scores(request, costs, measured, book, progress)
    scorer = source.scorer()
    scoring = time.perf_counter() - started

    found = _look(request, scorer, costs)
    best, score = source.choose(scorer, max(found.networks, key=lambda network: network[1]))
    ladder = ladder or {}
    entries = {
        "chosen": source.entry(best, score, name="chosen"),
        "front": tuple(source.entry(*network) for network in found.networks if request.against),
        "ladder": tuple(
            source.entry(arch, source.cheaply(scorer, arch), name=name)
            for name, arch in ladder.items()
        ),
        "measured": tuple(source.entry(arch, None) for arch in source.known),
    }
    return Plan(
        **{"run": "", "weights": "", "rounds": 0, "space": {}, "data": {}, **(origin or {})},
        limits={name: float(most) for name, most in request.limits.items()},
        against=request.against,
        scorer=source.about(scorer),
        engine=found.engine,
        exact=found.exact,
        looked_at=found.looked_at,
        seed=request.seed,
        seconds={"scoring": scoring, "search": found.seconds},
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **entries,  # type: ignore[arg-type]
    )


def _look(request: Request, scorer: Scorer, costs: Costs, count: int = 1) -> Found:
    evolution = request.evolution
    if evolution is None and request.score == "measured":
        evolution = _MEASURED_EVOLUTION
    if request.against:
        return search_front(
            scorer,
            costs,
            request.against,
            request.limits,
            engine=request.engine,
            seed=request.seed,
            evolution=evolution,
        )
    return search(
        scorer,
        costs,
        request.limits,
        engine=request.engine,
        count=count,
        seed=request.seed,
        evolution=evolution,
    )


class _Scores:
    """Makes the scorer of a request and keeps what was measured for it."""

    def __init__(
        self,
        request: Request,
        costs: Costs,
        measured: Measured | None,
        book: ScoreBook | None,
        progress: SearchProgress,
    ) -> None:
        self.request, self.costs, self.progress = request, costs, progress
        self._measured, self._book = measured, book
        self.known: dict[Architecture, Score] = {}

    def scorer(self) -> Scorer:
        """Return the scorer, after all measuring that it needs."""
        if self.request.score == "macs":
            return MacsScorer(self.costs.space)
        if self.request.score == "zero-cost":
            return Fitness(self.costs.space)
        if self._book is not None:
            self.known = dict(self._book.items())
            return self._judged(self._fit())
        if self._measured is None:
            raise ValueError(f"score = {self.request.score!r} needs a trained supernet and images")
        if self.request.score == "measured":
            return _Noting(self._measured, self.known, self.progress)
        return self._learned(self._measured)

    def choose(
        self, scorer: Scorer, optimum: tuple[Architecture, float]
    ) -> tuple[Architecture, float]:
        """Return what to take: the optimum of the score, or a measured subnet that did better.

        A prediction knows nothing of what is peculiar to one subnet, a measurement has the noise of
        few images: subnets within the limits are compared by the mean of the two. Where predictions
        are refined by measuring, the optimum is measured for that. Where it cannot be, it must be
        ahead by more than predictions are off: it is the highest of very many of them.
        """
        if not isinstance(scorer, Regression):
            return optimum
        if self._measured is not None and self._book is None and self.request.refine:
            self._measure(self._measured, [optimum[0]], "optimum measured")
        within = [arch for arch in self.known if self.costs.fits(arch, self.request.limits)]
        if not within:
            return optimum
        predicted = scorer(within)
        accuracy = np.array([self.known[arch].accuracy for arch in within])
        means = (predicted + accuracy) / 2
        taken = int(means.argmax())
        if optimum[0] not in self.known and optimum[1] - scorer.error >= means[taken]:
            return optimum
        if within[taken] != optimum[0]:
            self.progress.note(
                "the subnet that is taken is not the optimum of the prediction, but one that "
                "measured better (compared by the mean of prediction and measurement)"
            )
        return within[taken], float(predicted[taken])

    def cheaply(self, scorer: Scorer, arch: Architecture) -> float | None:
        """Return a network's score where that needs no measuring."""
        return None if isinstance(scorer, _Noting) else float(scorer([arch])[0])

    def entry(self, arch: Architecture, score: float | None, *, name: str = "") -> Entry:
        """Describe a network for the plan."""
        measured = self.known.get(arch)
        return Entry.of(arch, self.costs, name=name, score=score, measured=measured)

    def about(self, scorer: Scorer) -> dict[str, Any]:
        """Describe the scorer for the plan."""
        about: dict[str, Any] = {"name": scorer.name, "measured": len(self.known)}
        if isinstance(scorer, Regression):
            about["rank_correlation"] = scorer.rank_correlation
        return about

    def _learned(self, measured: Measured) -> Regression:
        request, space = self.request, self.costs.space
        self._measure(measured, design(space, request.subnets, request.seed), "subnets measured")
        regression = self._fit()
        for number in range(1, request.refine + 1):
            winners = self._winners(regression)
            if not winners:
                break
            self._measure(measured, winners, f"winners measured, refinement {number}")
            regression = self._fit()
        return self._judged(regression)

    def _winners(self, regression: Regression) -> list[Architecture]:
        """Return the best predicted subnets that are not measured, spread over a front."""
        request = self.request
        found = _look(request, regression, self.costs, count=4 * request.winners).networks
        new = [arch for arch, _ in found if arch not in self.known]
        if request.against and len(new) > request.winners:
            step = (len(new) - 1) / max(1, request.winners - 1)
            return [new[round(index * step)] for index in range(request.winners)]
        return new[: request.winners]

    def _measure(self, measured: Measured, archs: Sequence[Architecture], why: str) -> None:
        def report(done: int, todo: int) -> None:
            self.progress.measuring(done, todo, why)

        self.known |= dict(zip(archs, measured.measure(archs, report), strict=True))

    def _fit(self) -> Regression:
        accuracies = {arch: found.accuracy for arch, found in self.known.items()}
        return Regression(self.costs.space, accuracies, seed=self.request.seed)

    def _judged(self, regression: Regression) -> Regression:
        """Say it where predictions are poor."""
        if regression.poor:
            accuracies = [found.accuracy for found in self.known.values()]
            images = min(found.examples for found in self.known.values())
            self.progress.note(
                f"warning: predictions rank subnets poorly (rank correlation "
                f"{regression.rank_correlation:.2f}, below {POOR:g}): measured accuracies run from "
                f"{min(accuracies):.1%} to {max(accuracies):.1%} on {images} images. Measure more "
                "subnets (--subnets), or on more images; or the subnets may hardly differ"
            )
        return regression


class _Noting:
    """The measured score, noting what it measures."""

    name = "measured"

    def __init__(
        self, measured: Measured, known: dict[Architecture, Score], progress: SearchProgress
    ) -> None:
        self._measured, self._known, self._progress = measured, known, progress

    def __call__(self, archs: Sequence[Architecture]) -> Any:
        def report(done: int, todo: int) -> None:
            self._progress.measuring(done, todo, "candidates measured")

        scores = self._measured.measure(archs, report)
        self._known |= dict(zip(archs, scores, strict=True))
        return self._measured(archs)
