"""Metrics, and the sums over examples that they are read from.

A node or a batch gives a :class:`Tally`: how many examples it saw, and sums over them. Tallies add
up, so what many nodes counted is what one would have counted on all their examples together. A
metric is a function of the sums: a mean, a share, or anything that a histogram holds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

PERCENT = "%"


@dataclass(frozen=True)
class Tally:
    """What was counted on some examples.

    Attributes
    ----------
    examples
        How many there were.
    sums
        Name to a sum over them.
    """

    examples: int
    sums: Mapping[str, float]

    def __add__(self, other: "Tally") -> "Tally":
        """Count both together; ``ValueError`` where they count different things."""
        if self.sums.keys() != other.sums.keys():
            raise ValueError(f"sums of {sorted(self.sums)} and {sorted(other.sums)} do not add up")
        return Tally.total([self, other])

    @classmethod
    def total(cls, tallies: Iterable["Tally"]) -> "Tally":
        """Add up the sums that all tallies have, at least one; their order changes no bit."""
        counted = list(tallies)
        common = [name for name in counted[0].sums if all(name in tally.sums for tally in counted)]
        return cls(
            sum(tally.examples for tally in counted),
            {name: math.fsum(tally.sums[name] for tally in counted) for name in common},
        )

    def value(self, metric: "Metric") -> float:
        """Return a metric's value over these examples."""
        return metric.of(self)

    def row(self, metrics: Sequence["Metric"]) -> dict[str, float]:
        """Return every metric's value by name, and ``examples``: as files and tables hold it."""
        return {metric.name: metric.of(self) for metric in metrics} | {"examples": self.examples}


@dataclass(frozen=True)
class Metric:
    """A number that says how good a network is: by default the mean of the sum of its name.

    Another function of the sums is a subclass that overrides :meth:`of`.

    Attributes
    ----------
    name
        Its key in rows, and its word in tables.
    better
        Whether ``more`` or ``less`` of it is better.
    unit
        What stands behind its values; may be empty. Those of ``%`` are shares of 1.
    low, high
        Values that it can have; a reply with others is refused.

    Raises
    ------
    ValueError
        If ``better`` is neither.
    """

    name: str
    better: Literal["more", "less"]
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:  # noqa: D105
        if self.better not in ("more", "less"):
            raise ValueError(
                f"metric {self.name!r}: better = {self.better!r}; must be 'more' or 'less'"
            )

    def of(self, tally: Tally) -> float:
        """Return the value over a tally's examples."""
        return tally.sums[self.name] / tally.examples

    def standard_error(self, tally: Tally) -> float | None:
        """Return how far the value may be off by the choice of examples; None is not known."""
        return None

    def allows(self, value: float) -> bool:
        """Say whether a value is finite and within the bounds."""
        return math.isfinite(value) and self.low <= value <= self.high

    @property
    def sign(self) -> int:
        """What a value is multiplied by where more must be better: 1 or -1."""
        return 1 if self.better == "more" else -1

    def say(self, value: float, digits: int = 2) -> str:
        """Return a value as text: with so many decimals of a per cent, or one more of others."""
        if self.unit == PERCENT:
            return f"{value:.{digits}%}"
        return f"{value:.{digits + 1}f} {self.unit}".rstrip()

    def described(self) -> dict[str, str]:
        """Return what files hold of a metric, so that its values can be read without the task."""
        return {"name": self.name, "better": self.better, "unit": self.unit}


@dataclass(frozen=True)
class Share(Metric):
    """A share of the examples, said in per cent."""

    better: Literal["more", "less"] = "more"
    unit: str = PERCENT
    low: float = 0.0
    high: float = 1.0

    def standard_error(self, tally: Tally) -> float:
        """Return the standard error of a share (binomial)."""
        return self.error(self.of(tally), tally.examples)

    @staticmethod
    def error(value: float, examples: float) -> float:
        """Return the binomial standard error of a share of so many examples, from 0 to 0.5."""
        return float((value * (1 - value) / examples) ** 0.5)
