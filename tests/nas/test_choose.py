"""Searches against enumeration, and evolution where nothing can be proven."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import superfednas.nas.front
from superfednas.nas.cost.costs import Costs, NothingFits
from superfednas.nas.engine.choose import search, search_front
from superfednas.nas.engine.evolution import EvolutionSettings, evolve
from superfednas.nas.score.regression import Regression
from superfednas.nas.score.scorer import AdditiveScorer, MacsScorer
from superfednas.nas.score.zero_cost import Fitness
from superfednas.supernet import Architecture, SearchSpace
from tests.support.searching import Additive, Dice, ToySpace, every, mlp_space, pareto_points
from tests.support.spaces import NARROW
from tests.support.strategies import seeds, space

SMALL = EvolutionSettings(population=20, generations=8)
toys = st.builds(ToySpace, seeds, st.integers(1, 4))
Spent = dict[str, np.ndarray]


def spent(costs: Costs) -> Spent:
    """Return all costs of all networks of a chain, as ``searching.every`` orders them."""
    chain = costs.space.chain
    assert chain is not None
    options = every(chain)
    found = {"memory": chain.gather(costs.table("memory"), options).max(axis=0).astype(float)}
    for name in costs.names:
        if name != "memory":
            found[name] = chain.gather(costs.table(name), options).sum(axis=0) + costs.base(name)
    return found


def keeps(values: Spent, limits: dict[str, float]) -> np.ndarray:
    """Say which networks keep limits."""
    fits = np.ones(len(values["macs"]), dtype=bool)
    for name, most in limits.items():
        fits &= values[name] <= most
    return fits


@functools.cache
def tiny() -> tuple[Costs, Regression, Spent, np.ndarray]:
    """Return resnet-tiny's costs, a score, and both of all 20,736 networks."""
    of = space()
    assert of.chain is not None
    costs = Costs(of, Dice(of), batch=2)
    rng = np.random.default_rng(0)
    drawn = [of.sample(rng) for _ in range(40)]
    regression = Regression(of, {a: np.log(of.macs(a)) + 0.1 * rng.random() for a in drawn})
    return costs, regression, spent(costs), regression.of_options(of.chain, every(of.chain))


def draw_limits(data: st.DataObject, values: Spent, low: float = 0.0) -> dict[str, float]:
    """Draw limits on some of the costs, each at what some network takes."""
    names = data.draw(st.lists(st.sampled_from(sorted(values)), unique=True, max_size=5))
    shares = {name: data.draw(st.floats(low, 1.0)) for name in names}
    limits = {n: float(np.quantile(values[n], q, method="lower")) for n, q in shares.items()}
    # Between what networks take: milliseconds are added up in another order elsewhere.
    return {name: most + 1e-7 * (name == "latency") for name, most in limits.items()}


def points(found: Sequence[tuple[Architecture, float]], costs: Costs, name: str) -> np.ndarray:
    """Return (networks, 2): scores and one cost, in a fixed order."""
    rows = [(score, costs.of(name, arch)) for arch, score in found]
    return np.array(sorted(rows))


def close(found: np.ndarray, expected: set[tuple[float, ...]]) -> bool:
    rows = np.array(sorted(expected))
    return found.shape == rows.shape and np.allclose(found, rows, rtol=1e-9, atol=1e-9)


# Exactly


@settings(max_examples=120, deadline=None)
@given(of=toys, seed=seeds, data=st.data())
def test_the_best_of_a_toy_space(of: ToySpace, seed: int, data: st.DataObject) -> None:
    costs, scorer = Costs(of, Dice(of, seed)), Additive(of, seed)
    values = spent(costs)
    limits = draw_limits(data, values)
    scores = scorer.of_options(every(of.chain))[keeps(values, limits)]
    if not len(scores):
        with pytest.raises(NothingFits):
            search(scorer, costs, limits)
        assert not scorer.calls
        return
    found = search(scorer, costs, limits)
    (arch, score), *others = found.networks
    assert score == scores.max() == scorer([arch])[0]
    assert costs.fits(arch, limits) and not others
    assert found.exact and found.looked_at == of.size


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_best_of_resnet_tiny(data: st.DataObject) -> None:
    costs, scorer, values, scores = tiny()
    limits = draw_limits(data, values, low=0.05)
    fits = keeps(values, limits)
    if not fits.any():
        with pytest.raises(NothingFits):
            search(scorer, costs, limits)
        return
    found = search(scorer, costs, limits)
    arch, score = found.networks[0]
    assert score == pytest.approx(scores[fits].max(), rel=1e-12)
    assert score == scorer([arch])[0]
    assert costs.fits(arch, limits)
    assert found.exact and found.looked_at == 20_736


def test_a_limit_on_memory_is_exact() -> None:
    costs, scorer, values, scores = tiny()
    for most in np.unique(values["memory"]):
        fits = values["memory"] <= most
        (arch, score), *_ = search(scorer, costs, {"memory": float(most)}).networks
        assert costs.of("memory", arch) <= most
        assert score == pytest.approx(scores[fits].max(), rel=1e-12)


def test_a_limit_that_one_network_takes_to_the_last_bit() -> None:
    costs, scorer, values, _ = tiny()
    for name in costs.names:
        least = costs.least(name)
        arch = search(scorer, costs, {name: least}).networks[0][0]
        assert costs.of(name, arch) == pytest.approx(values[name].min(), rel=1e-9)
        assert costs.fits(arch, {name: least})


@settings(max_examples=40, deadline=None)
@given(of=toys, seed=seeds, data=st.data(), count=st.integers(2, 6))
def test_the_next_best_are_each_the_best_within_what_they_cost(
    of: ToySpace, seed: int, data: st.DataObject, count: int
) -> None:
    costs, scorer = Costs(of), Additive(of, seed)
    limits = {"macs": float(data.draw(st.sampled_from(sorted(spent(costs)["macs"]))))}
    values, scores = spent(costs)["macs"], scorer.of_options(every(of.chain))
    networks = search(scorer, costs, limits, count=count).networks
    fits = values <= limits["macs"]
    front = pareto_points(scores[fits], values[fits][:, None])
    assert len(networks) == min(count, len(front))
    assert [score for _, score in networks] == sorted({score for _, score in networks})[::-1]
    for arch, score in networks:
        assert score == scores[values <= costs.of("macs", arch)].max()


def test_without_limits_the_best_of_all() -> None:
    costs, scorer, _, scores = tiny()
    assert search(scorer, costs, {}).networks[0][1] == pytest.approx(scores.max(), rel=1e-12)
    assert search(MacsScorer(costs.space), costs, {}).networks[0][0] == costs.space.largest


def test_macs_as_a_score() -> None:
    costs, _, values, _ = tiny()
    limits = {"params": float(np.median(values["params"])), "memory": 9000.0}
    fits = keeps(values, limits)
    found = search(MacsScorer(costs.space), costs, limits)
    assert found.networks[0][1] == values["macs"][fits].max()
    assert isinstance(MacsScorer(costs.space), AdditiveScorer)


def test_a_thinned_search_is_not_called_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    costs, _, values, _ = tiny()
    scorer = MacsScorer(costs.space)
    monkeypatch.setattr(superfednas.nas.front, "_MOST", 50)
    monkeypatch.setattr(superfednas.nas.front, "_MOST_OF_SEVERAL", 50)
    limits = {"macs": float(np.median(values["macs"]))}
    found = search(scorer, costs, limits)
    assert not found.exact and costs.fits(found.networks[0][0], limits)
    assert found.networks[0][1] > 0.99 * limits["macs"]
    for against in ("macs", "memory"):
        assert not search_front(scorer, costs, against, limits).exact


# Fronts


@pytest.mark.parametrize("against", ["macs", "params", "bytes", "memory", "latency"])
@settings(max_examples=40, deadline=None)
@given(of=toys, seed=seeds, data=st.data())
def test_a_front_of_a_toy_space(against: str, of: ToySpace, seed: int, data: st.DataObject) -> None:
    costs, scorer = Costs(of, Dice(of, seed)), Additive(of, seed)
    values = spent(costs)
    limits = draw_limits(data, values, low=0.3)
    fits = keeps(values, limits)
    if not fits.any():
        with pytest.raises(NothingFits):
            search_front(scorer, costs, against, limits)
        return
    scores = scorer.of_options(every(of.chain))
    found = search_front(scorer, costs, against, limits)
    assert close(
        points(found.networks, costs, against),
        pareto_points(scores[fits], values[against][fits].round(9)[:, None]),
    )
    assert all(costs.fits(arch, limits) for arch, _ in found.networks)
    assert found.exact and found.looked_at == of.size


@pytest.mark.parametrize("against", ["macs", "params", "memory", "latency"])
@pytest.mark.parametrize("limited", [(), ("macs",), ("params", "memory"), ("latency", "memory")])
def test_a_front_of_resnet_tiny(against: str, limited: tuple[str, ...]) -> None:
    costs, scorer, values, scores = tiny()
    limits = {name: float(np.quantile(values[name], 0.4)) + 1e-7 for name in limited}
    fits = keeps(values, limits)
    order = np.lexsort((-scores, values[against]))
    order = order[fits[order]]
    best, expected = -np.inf, []
    for row in order:  # by rising cost: a front is where the best score rises
        if scores[row] > best:
            best = scores[row]
            expected.append((best, values[against][row]))
    found = search_front(scorer, costs, against, limits)
    assert found.exact
    rows = [(score, costs.of(against, arch)) for arch, score in found.networks]
    assert np.array(rows) == pytest.approx(np.array(expected), rel=1e-9)
    assert all(costs.fits(arch, limits) for arch, _ in found.networks)


# Engines


def test_engines_that_cannot_be_used() -> None:
    costs, scorer, *_ = tiny()
    for find in (search, functools.partial(search_front, against="macs")):
        seek: Any = find
        with pytest.raises(ValueError, match="engine = 'magic': must be one of auto, exact, evol"):
            seek(scorer, costs, limits={}, engine="magic")
        with pytest.raises(ValueError, match="the score 'zero-cost' on the space 'resnet-tiny' is"):
            seek(Fitness(space()), costs, limits={}, engine="exact")
        with pytest.raises(ValueError, match="the score 'macs' on the space 'mlp' is no sum"):
            seek(MacsScorer(mlp_space()), Costs(mlp_space()), limits={}, engine="exact")


def test_evolution_where_asked_or_where_nothing_can_be_proven() -> None:
    costs, scorer, *_ = tiny()
    assert not search(scorer, costs, {}, engine="evolution", evolution=SMALL).exact
    found = search(Fitness(space()), costs, {"macs": 1.2e6}, evolution=SMALL)
    assert not found.exact and 20 <= found.looked_at <= 160
    assert costs.fits(found.networks[0][0], {"macs": 1.2e6})


def test_evolution_comes_near_the_optimum() -> None:
    costs, scorer, values, scores = tiny()
    limits = {"macs": float(np.median(values["macs"])), "memory": 9000.0}
    best = scores[keeps(values, limits)].max()
    found = search(scorer, costs, limits, engine="evolution", count=5)
    assert len(found.networks) == 5
    near = np.sort(scores[keeps(values, limits)])[-100:]
    assert near[0] <= found.networks[0][1] <= best + 1e-12


def test_a_front_by_evolution() -> None:
    costs, scorer, values, scores = tiny()
    limits = {"params": float(np.median(values["params"]))}
    evolution = EvolutionSettings(population=30, generations=10)
    found = search_front(scorer, costs, "macs", limits, engine="evolution", evolution=evolution)
    assert not found.exact
    assert found.looked_at < 8 * 300
    spent_macs = [costs.of("macs", arch) for arch, _ in found.networks]
    gained = [score for _, score in found.networks]
    assert spent_macs == sorted(set(spent_macs)) and gained == sorted(set(gained))
    assert all(costs.fits(arch, limits) for arch, _ in found.networks)
    fits = keeps(values, limits)
    for macs, score in zip(spent_macs, gained, strict=True):
        assert score <= scores[fits & (values["macs"] <= macs)].max() + 1e-12
    cheapest = values["macs"].min()
    assert spent_macs[0] < cheapest + 0.2 * (values["macs"].max() - cheapest)


def test_budgets_of_evolution_lie_below_the_limit() -> None:
    """None of the eight repeats the search under the limit itself."""
    costs, limits = Costs(space()), {"macs": 0.7e6}
    scorer = Fitness(space())
    front = search_front(scorer, costs, "macs", limits, evolution=SMALL)
    assert all(costs.fits(arch, limits) for arch, _ in front.networks)
    assert front.looked_at > 2 * search(scorer, costs, limits, evolution=SMALL).looked_at


@pytest.mark.parametrize("against", ["", "macs", "latency"])
def test_evolution_that_cannot_start_says_so(against: str) -> None:
    """Something fits, but not the smallest, where evolution starts."""
    of = space()
    costs = Costs(of, Dice(of, seed=1))
    least, smallest = costs.least("latency"), costs.of("latency", of.smallest)
    assert least < smallest
    limits = {"latency": (least + smallest) / 2}
    find: Any = functools.partial(search_front, against=against) if against else search
    with pytest.raises(NothingFits, match="evolution starts from the smallest subnet"):
        find(Fitness(of), costs, limits=limits, evolution=SMALL)


def test_nothing_is_scored_where_nothing_fits() -> None:
    costs, scorer = Costs(space()), Additive(space())
    for engine in ("exact", "evolution"):
        with pytest.raises(NothingFits):
            search(scorer, costs, {"macs": 10}, engine=engine)
        with pytest.raises(NothingFits):
            search_front(scorer, costs, "params", {"macs": 10}, engine=engine)
    assert not scorer.calls


# Evolution


class Counting:
    """Scores by MACs, modulo a prime: hard to climb; notes every call."""

    def __init__(self, of: SearchSpace) -> None:
        self.of = of
        self.calls: list[Architecture] = []

    def __call__(self, archs: Sequence[Architecture]) -> np.ndarray:
        assert len(archs)
        self.calls += archs
        return np.array([float(self.of.macs(arch) % 10_007) for arch in archs])


@pytest.mark.parametrize("name", ["resnet-tiny", NARROW])
@settings(max_examples=15, deadline=None)
@given(share=st.floats(0, 1), seed=st.integers(0, 5))
def test_laws_of_evolution(name: str, share: float, seed: int) -> None:
    of = space(name)
    low, high = of.macs(of.smallest), of.macs(of.largest)
    most = low + share * (high - low)

    def run(scorer: Counting) -> list[tuple[Architecture, float]]:
        return evolve(of, scorer, lambda a: of.macs(a) <= most, settings=SMALL, seed=seed)

    scorer = Counting(of)
    found = run(scorer)
    assert all(of.macs(arch) <= most for arch, _ in found)
    assert len(scorer.calls) == len(set(scorer.calls)) == len(found) <= 20 * 8
    assert dict(found).keys() == set(scorer.calls)
    assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)
    assert all(score == of.macs(arch) % 10_007 for arch, score in found)
    assert found == run(Counting(of))


def test_evolution_depends_on_its_seed() -> None:
    of = space()
    first, second = (
        evolve(of, Counting(of), lambda _: True, settings=SMALL, seed=seed) for seed in (0, 1)
    )
    assert first != second


@pytest.mark.parametrize("name", ["resnet-tiny", "resnet10-26"])
def test_evolution_ends_where_only_the_smallest_fits(name: str) -> None:
    of = space(name)
    asked: list[Architecture] = []

    def fits(arch: Architecture) -> bool:
        asked.append(arch)
        return arch == of.smallest

    scorer = Counting(of)
    found = evolve(of, scorer, fits, settings=SMALL)
    assert found == [(of.smallest, of.macs(of.smallest) % 10_007)]
    steps = 20 + sum(choices - 1 for choices in of.genes) + 2  # tries, then one gene at a time
    assert len(asked) <= 1 + steps * SMALL.population * (SMALL.generations + 1)


def test_evolution_asks_once_whether_a_network_fits() -> None:
    """Without closed forms the answer takes milliseconds."""
    of, asked = mlp_space(), list[Architecture]()

    def fits(arch: Architecture) -> bool:
        asked.append(arch)
        return arch == of.smallest

    evolve(of, Counting(of), fits, settings=SMALL)
    assert len(asked) <= 1 + 12


def test_evolution_without_a_start() -> None:
    of = space()
    scorer = Counting(of)
    assert evolve(of, scorer, lambda arch: arch != of.smallest, settings=SMALL) == []
    assert not scorer.calls


def test_evolution_reports_every_generation() -> None:
    of, said = space(), list[tuple[int, float]]()
    found = evolve(
        of,
        Counting(of),
        lambda _: True,
        settings=SMALL,
        progress=lambda generation, best: said.append((generation, best)),
    )
    assert [generation for generation, _ in said] == list(range(1, 9))
    best = [score for _, score in said]
    assert best == sorted(best) and best[-1] == found[0][1]


@pytest.mark.parametrize("seed", range(3))
def test_evolution_finds_the_optimum_of_a_tiny_space(seed: int) -> None:
    of = space(NARROW)
    assert of.chain is not None and len(every(of.chain)) == of.size
    archs = [of.chain.assemble(options) for options in every(of.chain)]
    scores = Fitness(of)(archs)
    macs = np.array([of.macs(arch) for arch in archs])
    most = np.median(macs)
    found = evolve(of, Fitness(of), lambda arch: of.macs(arch) <= most, seed=seed)
    assert found[0][1] == scores[macs <= most].max()


def test_evolution_without_a_chain() -> None:
    of = mlp_space()
    every_network = {of.decode([a, b]) for a in range(3) for b in range(4)}
    most = sorted(map(of.macs, every_network))[8]
    costs = Costs(of)
    found = search(MacsScorer(of), costs, {"macs": most}, evolution=SMALL)
    assert found.networks[0][1] == most
    assert not found.exact and found.looked_at == 9
    front = search_front(MacsScorer(of), costs, "params", {"macs": most}, evolution=SMALL)
    assert len(front.networks) > 3
    assert all(of.macs(arch) <= most for arch, _ in front.networks)


def test_all_may_be_parents() -> None:
    of = space()
    found = evolve(of, Counting(of), lambda _: True, settings=EvolutionSettings(6, 4, parents=1.0))
    assert len(found) == 6  # nothing but the first generation


def test_two_are_enough() -> None:
    of = space()
    assert evolve(of, Counting(of), lambda _: True, settings=EvolutionSettings(2, 2))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"population": 1}, "population = 1: must be at least 2"),
        ({"generations": 0}, "generations = 0: must be at least 2"),
        ({"parents": 0.0}, "parents = 0.0: must be above 0, at most 1"),
        ({"mutations": 1.5}, "mutations = 1.5: must be above 0, at most 1"),
        ({"mutation_probability": float("nan")}, "mutation_probability = nan: must be above 0"),
    ],
)
def test_wrong_settings_of_evolution(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EvolutionSettings(**wrong)
