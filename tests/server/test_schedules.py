"""Schedules: laws, and the β table that the authors' own functions gave."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superfednas.server.assign.schedules import SCHEDULES, constant, cosine, linear

ENDS = st.floats(0, 1)
ROUNDS = st.integers(1, 5000)
TIMES = (0, 1, 300, 600, 900, 1199, 1200, 1500)

# β at K = 8, .9 → 1/8, T = 1200, to the printed digits.
TABLE = {
    "cosine": "0.9 0.89999867 0.78650388 0.5125 0.23849612 0.12500133 0.125 0.125",
    "linear": "0.9 0.89935417 0.70625 0.5125 0.31875 0.12564583 0.125 0.125",
    "constant": " ".join(["0.9"] * 8),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_table_to_its_printed_digits(name: str) -> None:
    beta = SCHEDULES[name](0.9, 1 / 8, 1200)
    for t, printed in zip(TIMES, TABLE[name].split(), strict=True):
        digits = len(printed.partition(".")[2])
        assert f"{beta(t):.{digits}f}" == printed


@given(name=st.sampled_from(["cosine", "linear"]), start=ENDS, end=ENDS, rounds=ROUNDS)
def test_falls_from_start_to_end_and_stays(
    name: str, start: float, end: float, rounds: int
) -> None:
    schedule = SCHEDULES[name](start, end, rounds)
    assert schedule(0) == pytest.approx(start, abs=1e-15)
    for t in (rounds, rounds + 1, 10 * rounds):
        assert schedule(t) == pytest.approx(end, abs=1e-15)
    values = [schedule(rounds * k / 20) for k in range(21)]
    way = 1 if end >= start else -1
    assert all(way * (b - a) >= -1e-15 for a, b in itertools.pairwise(values))
    # Both are point-symmetric about the middle.
    for early, late in zip(values, reversed(values), strict=True):
        assert early + late == pytest.approx(start + end, abs=1e-12)


def test_a_cosine_is_slow_fast_slow() -> None:
    curve, line = cosine(1, 0, 100), linear(1, 0, 100)
    assert line(25) == 1 - 25 / 100
    assert curve(25) == pytest.approx((1 + 2**-0.5) / 2)
    assert curve(25) > line(25) and curve(75) < line(75)


@given(start=ENDS, t=st.integers(0, 10**6))
def test_constant_is_constant(start: float, t: int) -> None:
    assert constant(start)(t) == start
    assert constant(start, 0.5, 10)(t) == start


@pytest.mark.parametrize("kind", [cosine, linear])
@pytest.mark.parametrize("t", [0, 1, 100])
def test_no_rounds_is_the_end_at_once(kind: type, t: int) -> None:
    assert kind(0.9, 0.125, 0)(t) == pytest.approx(0.125, abs=1e-15)
