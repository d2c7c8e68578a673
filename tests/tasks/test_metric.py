"""Tallies add up as their examples do; metrics read them; by law, and by hand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superfednas.tasks import Metric, Share, Tally

RIGHT, LOST = Share("right"), Metric("lost", "less", low=0.0)
BINS = 8
answers = st.tuples(st.booleans(), st.floats(0, 20))
nodes = st.lists(st.lists(answers, min_size=1, max_size=9), min_size=1, max_size=6)


class Perplexity(Metric):
    """No mean of anything: what a mean is taken to the power of."""

    def of(self, tally: Tally) -> float:
        return math.exp(tally.sums["lost"] / tally.examples)


@dataclass(frozen=True)
class AreaUnderCurve(Metric):
    """Read from two histograms of scores."""

    def of(self, tally: Tally) -> float:
        yes, no = (
            np.array([tally.sums[f"{side} {k}"] for k in range(BINS)]) for side in ("yes", "no")
        )
        below = np.cumsum(no) - no
        return float((yes * (below + no / 2)).sum() / (yes.sum() * no.sum()))


def counted(rows: Sequence[tuple[bool, float]]) -> Tally:
    sums = {"right": sum(right for right, _ in rows), "lost": sum(lost for _, lost in rows)}
    return Tally(len(rows), sums)


def histograms(scores: Sequence[tuple[bool, float]]) -> Tally:
    sums = {f"{side} {k}": 0.0 for side in ("yes", "no") for k in range(BINS)}
    for yes, score in scores:
        sums[f"{'yes' if yes else 'no'} {min(BINS - 1, int(score * BINS))}"] += 1
    return Tally(len(scores), sums)


@given(nodes)
def test_what_nodes_count_is_what_one_counts_on_all(parts: list[list[tuple[bool, float]]]) -> None:
    pooled = counted([row for part in parts for row in part])
    total = Tally.total(map(counted, parts))
    assert total.examples == pooled.examples and total.sums["right"] == pooled.sums["right"]
    assert total.value(RIGHT) == pooled.value(RIGHT)
    for metric in (LOST, Perplexity("perplexity", "less")):
        assert total.value(metric) == pytest.approx(pooled.value(metric), rel=1e-12)


@given(nodes, st.randoms())
def test_the_order_of_nodes_changes_no_bit(
    parts: list[list[tuple[bool, float]]], random: object
) -> None:
    tallies = [counted(part) for part in parts]
    shuffled = list(tallies)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert Tally.total(tallies) == Tally.total(shuffled)


@given(*[st.lists(answers, min_size=1, max_size=5).map(counted)] * 3)
def test_adding_is_commutative_and_associative(a: Tally, b: Tally, c: Tally) -> None:
    assert a + b == b + a
    left, right = (a + b) + c, a + (b + c)
    assert left.examples == right.examples and left.sums["right"] == right.sums["right"]
    assert left.sums["lost"] == pytest.approx(right.sums["lost"], rel=1e-12)


@given(
    st.lists(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1), min_size=1).filter(
        lambda parts: {True, False} == {yes for part in parts for yes, _ in part}
    )
)
def test_the_area_under_a_curve_is_read_from_added_histograms(
    parts: list[list[tuple[bool, float]]],
) -> None:
    metric = AreaUnderCurve("auc", "more", low=0, high=1)
    found = Tally.total(map(histograms, parts)).value(metric)
    rows = [(yes, min(BINS - 1, int(score * BINS))) for part in parts for yes, score in part]
    pairs = [
        (score > other) + (score == other) / 2
        for yes, score in rows
        if yes
        for no, other in rows
        if not no
    ]
    assert found == pytest.approx(sum(pairs) / len(pairs))
    assert metric.allows(found)


def test_tallies_of_different_things_are_not_added() -> None:
    with pytest.raises(ValueError, match="do not add up"):
        Tally(1, {"right": 1}) + Tally(1, {"lost": 1.0})


def test_a_row_names_every_metric_and_the_examples() -> None:
    row = Tally(4, {"right": 3, "lost": 2.0}).row((RIGHT, LOST))
    assert row == {"right": 0.75, "lost": 0.5, "examples": 4}


@pytest.mark.parametrize(
    ("metric", "value", "allowed"),
    [
        (RIGHT, 0.0, True),
        (RIGHT, 1.0, True),
        (RIGHT, 1.01, False),
        (RIGHT, -0.01, False),
        (LOST, 1e9, True),
        (LOST, -1.0, False),
        (LOST, math.inf, False),
        (LOST, math.nan, False),
    ],
)
def test_bounds(metric: Metric, value: float, allowed: bool) -> None:
    assert metric.allows(value) is allowed


def test_a_metric_says_its_values_and_their_direction() -> None:
    assert RIGHT.say(0.12345) == "12.35%" and RIGHT.say(0.12345, 1) == "12.3%"
    assert Metric("time", "less", "ms").say(1.5) == "1.500 ms"
    assert (RIGHT.sign, LOST.sign) == (1, -1)
    assert RIGHT.standard_error(Tally(100, {"right": 50})) == pytest.approx(0.05)
    assert LOST.standard_error(Tally(100, {"lost": 50.0})) is None
