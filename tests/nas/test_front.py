"""The exact engine against enumeration: undominated rows, cheapest rests, whole fronts."""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import superfednas.nas.front
from superfednas.nas.front import Front, cheapest, pareto, undominated
from superfednas.supernet.chain import Chain
from tests.support.searching import ToyChain, every, pareto_points
from tests.support.strategies import seeds

Tables = Sequence[np.ndarray]
chains = st.builds(ToyChain, seeds, st.integers(1, 4))


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def tables(chain: Chain, rng: np.random.Generator, low: int, high: int) -> list[np.ndarray]:
    """Return whole numbers for each segment (states, options)."""
    shapes = [(chain.states(s), len(segment.options)) for s, segment in enumerate(chain.segments)]
    return [rng.integers(low, high, shape).astype(float) for shape in shapes]


def sums(chain: Chain, table: Tables, options: np.ndarray) -> np.ndarray:
    """Add up a table by walking along each network."""
    found = []
    for network in options:
        state, total = 0, 0.0
        for s, option in enumerate(network):
            total += float(table[s][state, option])
            state = int(chain.segments[s].leaves[option])
        found.append(total)
    return np.array(found)


def by_hand(
    chain: Chain,
    score: Tables,
    costs: Sequence[Tables],
    limits: Sequence[float],
    allowed: Tables | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and costs of all networks within limits."""
    options = every(chain)
    spent = np.stack([sums(chain, cost, options) for cost in costs], axis=1)
    fits = np.all(spent <= np.array(limits), axis=1)
    if allowed is not None:
        banned = [~np.asarray(mask) for mask in allowed]
        fits &= sums(chain, banned, options) == 0
    return sums(chain, score, options)[fits], spent[fits]


def masks(chain: Chain, rng: np.random.Generator, share: float) -> list[np.ndarray]:
    return [
        rng.random((chain.states(s), len(segment.options))) < share
        for s, segment in enumerate(chain.segments)
    ]


# Rows


def oracle(score: np.ndarray, costs: np.ndarray) -> list[int]:
    """Look at all pairs; of equal rows the first stays."""
    kept = []
    for i in range(len(score)):
        beats = (score >= score[i]) & (costs <= costs[i]).all(axis=1)
        equals = (score == score[i]) & (costs == costs[i]).all(axis=1)
        if not (beats & ~equals).any() and not equals[:i].any():
            kept.append(i)
    return kept


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(0, 40),
    columns=st.integers(1, 3),
    values=st.sampled_from([1, 2, 4, 100]),
    seed=seeds,
)
def test_undominated_rows(rows: int, columns: int, values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = rng.integers(-values, values, rows) / 2
    costs = rng.integers(0, values, (rows, columns)) / 4
    found = undominated(score, costs)
    assert sorted(found) == oracle(score, costs)
    assert np.all(np.diff(costs[found, 0]) >= 0)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("values", [9, 10_000])
def test_undominated_rows_over_several_blocks(columns: int, values: int) -> None:
    rng = np.random.default_rng(columns)
    costs = rng.integers(0, values, (3000, columns)).astype(float)
    # A score that the costs nearly tell keeps many rows.
    score = costs.sum(axis=1).round(-1) + rng.integers(0, 3, 3000)
    found = undominated(score, costs)
    assert sorted(found) == oracle(score, costs)


def test_undominated_by_hand() -> None:
    score = np.array([1.0, 2.0, 2.0, 3.0, 0.0])
    cost = np.array([[1.0], [1.0], [2.0], [2.0], [1.0]])
    assert list(undominated(score, cost)) == [1, 3]
    equal = np.ones(3), np.ones((3, 2))
    assert list(undominated(*equal)) == [0]


# The rest of a network


@settings(max_examples=80, deadline=None)
@given(chain=chains, seed=seeds, share=st.sampled_from([None, 0.0, 0.5, 0.9]))
def test_cheapest_rest(chain: ToyChain, seed: int, share: float | None) -> None:
    rng = np.random.default_rng(seed)
    table = tables(chain, rng, -2, 6)
    allowed = None if share is None else masks(chain, rng, share)
    found = cheapest(chain, table, allowed)
    assert len(found) == len(chain.segments) + 1 and not found[-1].any()

    def least(s: int, state: int) -> float:
        if s == len(chain.segments):
            return 0.0
        return min(
            (
                float(table[s][state, option]) + least(s + 1, int(chain.segments[s].leaves[option]))
                for option in range(len(chain.segments[s].options))
                if allowed is None or allowed[s][state, option]
            ),
            default=float("inf"),
        )

    for s in range(len(chain.segments)):
        assert list(found[s]) == [least(s, state) for state in range(chain.states(s))]


# Fronts


def check(
    chain: Chain,
    score: Tables,
    costs: Sequence[Tables],
    limits: Sequence[float],
    allowed: Tables | None,
    front: Front,
) -> None:
    """Hold a front against enumeration, whole."""
    scores, spent = by_hand(chain, score, costs, limits, allowed)
    assert front.options.shape == (len(front), len(chain.segments)) or not len(front)
    if len(front):
        assert list(sums(chain, score, front.options)) == list(front.score)
        for column, cost in enumerate(costs):
            assert list(sums(chain, cost, front.options)) == list(front.costs[:, column])
    points = [(s, *c) for s, c in zip(front.score.tolist(), front.costs.tolist(), strict=True)]
    assert len(points) == len(set(points))
    assert set(points) == pareto_points(scores, spent)
    assert front.exact
    assert np.all(np.diff(front.costs[:, 0]) >= 0)
    if len(scores):
        assert front.score.max() == scores.max()


@settings(max_examples=250, deadline=None)
@given(
    chain=chains,
    seed=seeds,
    count=st.integers(1, 3),
    spread=st.sampled_from([1, 2, 5, 1000]),
    share=st.sampled_from([None, 0.4, 0.8]),
    data=st.data(),
)
def test_a_front_is_what_enumeration_finds(
    chain: ToyChain,
    seed: int,
    count: int,
    spread: int,
    share: float | None,
    data: st.DataObject,
) -> None:
    rng = np.random.default_rng(seed)
    score = tables(chain, rng, -spread, spread)
    costs = [tables(chain, rng, -1, 2 * spread) for _ in range(count)]
    allowed = None if share is None else masks(chain, rng, share)
    spent = [sums(chain, cost, every(chain)) for cost in costs]
    limits = [
        data.draw(
            st.sampled_from([np.inf, found.min() - 1, found.min(), *found.tolist(), found.max()])
        )
        for found in spent
    ]
    front = pareto(chain, score, costs, limits, allowed)
    check(chain, score, costs, limits, allowed, front)


@settings(max_examples=40, deadline=None)
@given(chain=chains, seed=seeds)
def test_scores_and_costs_of_real_numbers(chain: ToyChain, seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, cost = ([rng.normal(size=t.shape) for t in tables(chain, rng, 0, 2)] for _ in range(2))
    spent = sums(chain, cost, every(chain))
    limit = (spent.min() + spent.max()) / 2 + 1e-9
    front = pareto(chain, score, [cost], [limit])
    scores, within = by_hand(chain, score, [cost], [limit], None)
    rows = oracle(scores, within)
    found = sorted(zip(front.score, front.costs[:, 0], strict=True))
    expected = sorted(zip(scores[rows], within[rows, 0], strict=True))
    assert np.array(found) == pytest.approx(np.array(expected), rel=1e-9, abs=1e-12)


def test_nothing_fits() -> None:
    chain = ToyChain(0)
    zero = [np.zeros_like(t) for t in tables(chain, np.random.default_rng(0), 0, 2)]
    assert len(pareto(chain, zero, [zero], [-1.0])) == 0
    assert len(pareto(chain, zero, [zero], [np.inf], [t > 0 for t in zero])) == 0


# Fronts that are thinned out


@pytest.mark.parametrize(("name", "count"), [("_MOST", 1), ("_MOST_OF_SEVERAL", 2)])
def test_a_thinned_front_says_so_and_stays_within_limits(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    thinned = 0
    for seed in range(40):
        chain, rng = ToyChain(seed, 4), np.random.default_rng(seed)
        score = tables(chain, rng, 0, 50)
        # Costs that rise with the score keep every part.
        costs = [[t + rng.integers(0, 2, t.shape) for t in score] for _ in range(count)]
        limits = [float(np.median(sums(chain, cost, every(chain)))) for cost in costs]
        whole = pareto(chain, score, costs, limits)
        monkeypatch.setattr(superfednas.nas.front, name, 3)
        front = pareto(chain, score, costs, limits)
        monkeypatch.undo()
        if front.exact:
            check(chain, score, costs, limits, None, front)
            continue
        thinned += 1
        assert len(front) <= len(whole)
        for column, (cost, limit) in enumerate(zip(costs, limits, strict=True)):
            spent = sums(chain, cost, front.options)
            assert list(spent) == list(front.costs[:, column])
            assert np.all(spent <= limit)
        assert list(sums(chain, score, front.options)) == list(front.score)
    assert 10 < thinned < 40


def test_where_thinning_left_nothing_that_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superfednas.nas.front, "_MOST_OF_SEVERAL", 2)
    lost = 0
    for seed in range(200):
        chain, rng = ToyChain(seed, 4), np.random.default_rng(seed)
        networks = every(chain)
        costs = [tables(chain, rng, 0, 50) for _ in range(3)]
        tight = networks[rng.integers(len(networks))]  # some network fits, and few others
        limits = [float(sums(chain, cost, tight[None])[0]) for cost in costs]
        front = pareto(chain, costs[0], costs, limits)
        lost += not len(front)
        assert len(front) or not front.exact
    assert lost > 3
