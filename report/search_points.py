"""The content of a search's plot, in the units of its axes; nothing is drawn here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from superfednas.common.words import Prefix, prefix_of
from superfednas.nas.cost.cost import Counted
from superfednas.nas.plan import Entry, Plan
from superfednas.report.searches import metric_in, standard_error
from superfednas.tasks import Metric


@dataclass(frozen=True)
class Mark:
    """An architecture in the plot.

    Parameters
    ----------
    name
        Its name; may be empty.
    x, y
        Its cost, and its score or measured value.
    error
        Standard error of a measured value; 0 where it is not known, as of a prediction.
    kept
        Whether it keeps the limits.
    """

    name: str
    x: float
    y: float
    error: float = 0.0
    kept: bool = True


@dataclass(frozen=True)
class Points:
    """Everything shown of a plan.

    Parameters
    ----------
    cost
        The cost of the horizontal axis: the plan's, or MACs if it has none.
    prefix
        The prefix of the costs, where they are counts.
    metric
        The metric whose values scores are. If they are others it is None and ``measured`` is
        empty: a metric has no place on another score's axis.
    predicted
        Whether scores are predictions.
    measured, front, ladder
        Architectures of these kinds; front and ladder at their scores.
    chosen
        The chosen subnet, at its score.
    check
        The same at its measured value; None if that is the score, or was not measured.
    limit
        The limit on the axis's cost, if there is one.
    """

    cost: str
    prefix: Prefix | None
    metric: Metric | None
    predicted: bool
    measured: tuple[Mark, ...]
    front: tuple[Mark, ...]
    ladder: tuple[Mark, ...]
    chosen: Mark
    check: Mark | None
    limit: float | None

    @classmethod
    def of(cls, plan: Plan) -> "Points":
        """Read a plan."""
        cost = plan.against or "macs"
        metric, predicted = metric_in(plan), plan.scorer["name"] == "regression"
        scored_in = score_prefix(plan)
        unit = 1.0 if scored_in is None else scored_in.size
        most, quantity, prefix = plan.limits.get(cost), plan.quantity(cost), None
        if isinstance(quantity, Counted):
            shown = (plan.chosen, *plan.measured, *plan.front, *plan.ladder)
            prefix = prefix_of(entry.costs[cost] for entry in shown)
        scale = quantity.scale if prefix is None else prefix.size

        def mark(entry: Entry, y: float, error: float = 0.0) -> Mark:
            kept = all(entry.costs[name] <= least for name, least in plan.limits.items())
            return Mark(entry.name, entry.costs[cost] / scale, y, error, kept)

        def measured(entry: Entry) -> Mark | None:
            if entry.measured is None or metric is None:
                return None
            error = standard_error(metric, entry.measured)
            return mark(entry, entry.measured[metric.name], error or 0.0)

        def scored(entry: Entry) -> Mark | None:
            if entry.score is None or (metric is not None and not predicted):
                return measured(entry)
            return mark(entry, entry.score / unit)

        chosen = scored(plan.chosen)
        if chosen is None:
            raise ValueError("the chosen subnet has no score")
        found = cls(
            cost=cost,
            prefix=prefix,
            metric=metric,
            predicted=predicted,
            measured=tuple(filter(None, map(measured, plan.measured))),
            front=tuple(filter(None, map(scored, plan.front))),
            ladder=tuple(filter(None, map(scored, plan.ladder))),
            chosen=chosen,
            check=measured(plan.chosen) if predicted else None,
            limit=None if most is None else most / scale,
        )
        numbers = [number for m in found.all for number in (m.x, m.y, m.error)]
        if not all(map(math.isfinite, [*numbers, found.limit or 0.0])):
            raise ValueError("a cost, score or limit is no number")
        return found

    @property
    def all(self) -> tuple[Mark, ...]:
        """Every mark."""
        own = (self.chosen,) if self.check is None else (self.chosen, self.check)
        return (*own, *self.measured, *self.front, *self.ladder)

    @property
    def steps(self) -> np.ndarray:
        """Corners of the front's line, which ends at the most expensive one or at the limit."""
        most = max(mark.x for mark in self.all)
        end = most if self.limit is None else min(most, self.limit)
        less = self.metric is not None and self.metric.better == "less"
        return front_steps([(mark.x, mark.y) for mark in self.front], end, less=less)


def score_prefix(plan: Plan) -> Prefix | None:
    """Return the prefix of the scores of a plan that are MACs; None where they are others."""
    if plan.scorer["name"] != "macs":
        return None
    return prefix_of(entry.score or 0.0 for entry in (plan.chosen, *plan.front, *plan.ladder))


def front_steps(
    front: Sequence[tuple[float, float]], end: float, *, less: bool = False
) -> np.ndarray:
    """Return the best score at or below each cost as the corners of a step line.

    Parameters
    ----------
    front
        (cost, score), in any order; at least one.
    end
        The cost up to which the last step runs.
    less
        Whether the best score is the least.

    Returns
    -------
    np.ndarray
        (corners, 2): cost and score, horizontal between the architectures and vertical at each.
    """
    points = np.array(sorted(front))
    best = (np.minimum if less else np.maximum).accumulate(points[:, 1])
    costs = np.append(np.repeat(points[:, 0], 2)[1:], max(end, points[-1, 0]))
    return np.stack([costs, np.repeat(best, 2)], axis=1)
