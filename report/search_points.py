"""What the plot of a search shows, in the units of its axes; nothing is drawn here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas.costs import COSTS
from nas.plan import Entry, Plan
from report.searches import is_accuracy, standard_error


@dataclass(frozen=True)
class Mark:
    """A network in the plot.

    Parameters
    ----------
    name
        Its name; may be empty.
    x, y
        Its cost, and its score or measured accuracy.
    error
        Standard error of a measured accuracy; 0 for a score that was not measured.
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
    """All that is shown of a plan.

    Parameters
    ----------
    cost
        The cost of the horizontal axis: the plan's, or MACs where it has none.
    accuracy
        Whether scores are accuracies. Where they are not, ``measured`` is empty: an accuracy has no
        place on another score's axis.
    predicted
        Whether scores are predictions.
    measured, front, ladder
        Networks of these kinds; front and ladder at their scores.
    chosen
        The chosen subnet, at its score.
    check
        The same at its measured accuracy; None where that is the score, or was not measured.
    limit
        The limit on the axis' cost, where there is one.
    """

    cost: str
    accuracy: bool
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
        accuracy, predicted = is_accuracy(plan), plan.scorer["name"] == "regression"
        unit = COSTS["macs"].scale if plan.scorer["name"] == "macs" else 1.0
        most = plan.limits.get(cost)

        def mark(entry: Entry, y: float, error: float = 0.0) -> Mark:
            kept = all(entry.costs[name] <= least for name, least in plan.limits.items())
            return Mark(entry.name, entry.costs[cost] / COSTS[cost].scale, y, error, kept)

        def measured(entry: Entry) -> Mark | None:
            if entry.measured is None or not accuracy:
                return None
            return mark(entry, entry.measured["accuracy"], standard_error(entry.measured))

        def scored(entry: Entry) -> Mark | None:
            if entry.score is None or (accuracy and not predicted):
                return measured(entry)
            return mark(entry, entry.score / unit)

        chosen = scored(plan.chosen)
        if chosen is None:
            raise ValueError("the chosen subnet has no score")
        found = cls(
            cost=cost,
            accuracy=accuracy,
            predicted=predicted,
            measured=tuple(filter(None, map(measured, plan.measured))),
            front=tuple(filter(None, map(scored, plan.front))),
            ladder=tuple(filter(None, map(scored, plan.ladder))),
            chosen=chosen,
            check=measured(plan.chosen) if predicted else None,
            limit=None if most is None else most / COSTS[cost].scale,
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
        """Corners of the front's line: it ends at the dearest network, or at the limit."""
        most = max(mark.x for mark in self.all)
        end = most if self.limit is None else min(most, self.limit)
        return front_steps([(mark.x, mark.y) for mark in self.front], end)


def front_steps(front: Sequence[tuple[float, float]], end: float) -> np.ndarray:
    """Return the best score at or below each cost as the corners of a step line.

    Parameters
    ----------
    front
        (cost, score), in any order; at least one.
    end
        The cost up to which the last step runs.

    Returns
    -------
    np.ndarray
        (corners, 2): cost and score, level between the networks and upright at each.
    """
    points = np.array(sorted(front))
    best = np.maximum.accumulate(points[:, 1])
    costs = np.append(np.repeat(points[:, 0], 2)[1:], max(end, points[-1, 0]))
    return np.stack([costs, np.repeat(best, 2)], axis=1)
