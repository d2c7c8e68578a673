"""From a trained supernet to a plan: score a few subnets, learn from them, search, record."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from superfednas.nas.cost.cost import cost
from superfednas.nas.cost.costs import Costs
from superfednas.nas.engine.choose import ENGINES, Found, search, search_front
from superfednas.nas.engine.evolution import EvolutionSettings
from superfednas.nas.plan import Entry, Plan
from superfednas.nas.score.measured import Measured, ScoreBook
from superfednas.nas.score.regression import LEAST, POOR, Regression, design
from superfednas.nas.score.scorer import MacsScorer, Scorer
from superfednas.nas.score.zero_cost import Fitness
from superfednas.supernet import Architecture
from superfednas.tasks import Tally

SCORERS = ("regression", "measured", "zero-cost", "macs")
# Every subnet is run: a population of 100 over 50 generations would take an hour, not seconds.
_MEASURED_EVOLUTION = EvolutionSettings(population=20, generations=10)


class SearchProgress(Protocol):
    """Where a search reports its progress."""

    def measuring(self, done: int, todo: int, why: str) -> None:
        """Report ``done`` of ``todo`` steps of a slow task."""

    def note(self, text: str) -> None:
        """Report one sentence."""


class Silence:
    """Says nothing."""

    def measuring(self, done: int, todo: int, why: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Request:
    """A request for a search.

    Parameters
    ----------
    limits
        Cost name (:data:`superfednas.nas.cost.cost.COSTS`) to the most that it may be.
    against
        The cost of the Pareto front; empty for the best subnet only.
    score
        One of :data:`SCORERS`.
    subnets
        Number of subnets to measure for a regression.
    refine
        How many times to measure the regression's winners and fit it again.
    winners
        Number of subnets that each refinement measures.
    engine
        ``auto``, ``exact`` or ``evolution``.
    evolution
        Settings of that engine; None for its defaults.
    seed
        Seed of the choice of measured subnets and of evolution.
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
            cost(name)
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
    """Score, search and record.

    Parameters
    ----------
    request
        The request.
    costs
        The space and the costs of its architectures.
    measured
        Measures subnets; needed for ``regression`` and ``measured`` if no ``book`` is given.
    book
        Existing scores to use instead of measuring (those of the nodes).
    ladder
        Further architectures to record in the plan.
    origin
        Fields of the plan that give the origin of weights and images: ``run``, ``weights``,
        ``rounds``, ``space``, ``data``, ``latency``.
    progress
        Where the search reports.

    Raises
    ------
    superfednas.nas.cost.costs.NothingFits
        If no subnet keeps the limits; raised before anything is measured.
    """
    costs.check(request.limits)
    if request.engine == "exact" and costs.space.chain is None:
        raise ValueError(
            f"engine = 'exact': the space {costs.space.name!r} is no chain of blocks; use evolution"
        )
    if request.against:
        costs.least(request.against)  # fails now if a cost is not available
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
        costs=costs.own(),
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
    """Makes the scorer of a request and keeps the measurements for it."""

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
        self.known: dict[Architecture, Tally] = {}
        self.metric = costs.space.task.metrics[0]

    def scorer(self) -> Scorer:
        """Return the scorer, after making all measurements it needs."""
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
        """Return the choice: the optimum of the score, or a measured subnet that did better.

        A prediction misses what is peculiar to a single subnet, and a measurement has the noise of
        few images, so subnets within the limits are compared by the mean of the two. If predictions
        are refined by measuring, the optimum is measured for this. If it cannot be measured, it
        must be ahead by more than the error of predictions, because it is the highest of very many
        predictions.
        """
        if not isinstance(scorer, Regression):
            return optimum
        if self._measured is not None and self._book is None and self.request.refine:
            self._measure(self._measured, [optimum[0]], "optimum measured")
        within = [arch for arch in self.known if self.costs.fits(arch, self.request.limits)]
        if not within:
            return optimum
        predicted = scorer(within)
        means = (predicted + np.array([self._score(self.known[arch]) for arch in within])) / 2
        taken = int(means.argmax())
        if optimum[0] not in self.known and optimum[1] - scorer.error >= means[taken]:
            return optimum
        if within[taken] != optimum[0]:
            self.progress.note(
                "the chosen subnet is not the optimum of the prediction but one that "
                "measured better (compared by the mean of prediction and measurement)"
            )
        return within[taken], float(predicted[taken])

    def cheaply(self, scorer: Scorer, arch: Architecture) -> float | None:
        """Return an architecture's score if that needs no measurement."""
        return None if isinstance(scorer, _Noting) else float(scorer([arch])[0])

    def entry(self, arch: Architecture, score: float | None, *, name: str = "") -> Entry:
        """Describe an architecture for the plan."""
        measured = self.known.get(arch)
        if score is not None and self.by_metric:
            score *= self.metric.sign
        return Entry.of(arch, self.costs, name=name, score=score, measured=measured)

    def about(self, scorer: Scorer) -> dict[str, Any]:
        """Describe the scorer for the plan."""
        about: dict[str, Any] = {"name": scorer.name, "measured": len(self.known)}
        if isinstance(scorer, Regression):
            about["rank_correlation"] = scorer.rank_correlation
        if self.by_metric:
            about["metric"] = self.metric.described()
        return about

    @property
    def by_metric(self) -> bool:
        """Whether scores are values of the task's first metric, measured or predicted."""
        return self.request.score in ("regression", "measured")

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
        """Return the best predicted subnets that were not measured yet, spread over a front."""
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
        scores = {arch: self._score(found) for arch, found in self.known.items()}
        return Regression(self.costs.space, scores, seed=self.request.seed)

    def _score(self, found: Tally) -> float:
        """Return the metric so that more is better."""
        return self.metric.sign * found.value(self.metric)

    def _judged(self, regression: Regression) -> Regression:
        """Warn if predictions are poor."""
        if regression.poor:
            values = [found.value(self.metric) for found in self.known.values()]
            images = min(found.examples for found in self.known.values())
            self.progress.note(
                f"warning: predictions rank subnets poorly (rank correlation "
                f"{regression.rank_correlation:.2f}, below {POOR:g}): measured values run from "
                f"{self.metric.say(min(values), 1)} to {self.metric.say(max(values), 1)} on "
                f"{images} examples. Measure more subnets (--subnets), or on more examples; or "
                "the subnets may hardly differ"
            )
        return regression


class _Noting:
    """The measured score, which records what it measures."""

    name = "measured"

    def __init__(
        self, measured: Measured, known: dict[Architecture, Tally], progress: SearchProgress
    ) -> None:
        self._measured, self._known, self._progress = measured, known, progress

    def __call__(self, archs: Sequence[Architecture]) -> Any:
        def report(done: int, todo: int) -> None:
            self._progress.measuring(done, todo, "candidates measured")

        scores = self._measured.measure(archs, report)
        self._known |= dict(zip(archs, scores, strict=True))
        return self._measured(archs)
