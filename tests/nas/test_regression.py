"""The choice of subnets to measure, and what is learnt from them."""

import csv
import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

import superfednas.nas.score.regression
from superfednas.nas.score.regression import LEAST, POOR, Regression, design, stratified
from superfednas.nas.score.scorer import AdditiveScorer
from superfednas.supernet import Architecture, SearchSpace, load_space
from superfednas.supernet.families.resnet.spaces import ResNetArchitecture
from tests.support.processes import ROOT
from tests.support.searching import ToySpace, every, mlp_space
from tests.support.spaces import NARROW
from tests.support.strategies import architectures, seeds, space

PUBLISHED = ROOT.parent / "shared/data/superfednas_5000_subnets_half.csv"


def chosen(of: SearchSpace, score: np.ndarray | None = None, count: int = 40) -> Regression:
    """Return a regression on a design, of scores or of log MACs."""
    archs = design(of, count, 0)
    scores = [math.log(of.macs(arch)) for arch in archs] if score is None else score
    return Regression(of, dict(zip(archs, scores, strict=True)))


# Rows that cover a range


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(2, 60), data=st.data(), ties=st.booleans(), seed=seeds)
def test_stratified_rows(rows: int, data: st.DataObject, ties: bool, seed: int) -> None:
    count = data.draw(st.integers(2, rows))
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 5, rows) if ties else rng.permutation(rows)
    found = stratified(costs, count, np.random.default_rng(seed))
    assert len(found) == len(set(found.tolist())) == count
    assert costs[found[0]] == costs.min() and costs[found[1]] == costs.max()
    assert list(found) == list(stratified(costs, count, np.random.default_rng(seed)))
    if not ties and count > 2:  # one from each of equally full ranges, in order
        places = np.sort(costs)[1:-1]
        parts = np.array_split(places, count - 2)
        assert all(cost in part for cost, part in zip(costs[found[2:]], parts, strict=True))


@pytest.mark.parametrize("count", [-1, 0, 1, 4])
def test_counts_that_cannot_be_chosen(count: int) -> None:
    with pytest.raises(ValueError, match=f"count = {count}: must be from 2 to 3"):
        stratified(np.arange(3), count, np.random.default_rng(0))


def test_stratified_rows_are_drawn() -> None:
    costs = np.arange(100)
    first, second = (stratified(costs, 10, np.random.default_rng(seed)) for seed in (0, 1))
    assert list(first) != list(second)


# Subnets that cover a space


@pytest.mark.parametrize("name", ["resnet-tiny", NARROW, "resnet10-26"])
@pytest.mark.parametrize("count", [2, 8, 40])
def test_a_design_covers_the_space(name: str, count: int) -> None:
    of = space(name)
    archs = design(of, count, seed=3)
    assert len(archs) == len(set(archs)) == count
    assert {of.smallest, of.largest} <= set(archs)
    assert archs == design(of, count, seed=3)
    assert count == 2 or archs != design(of, count, seed=4)
    for arch in archs:
        of.validate(arch)
    if count == 40:
        macs = np.array([of.macs(arch) for arch in archs])
        rng = np.random.default_rng(0)
        edges = np.quantile([of.macs(of.sample(rng)) for _ in range(2000)], np.linspace(0, 1, 6))
        held, _ = np.histogram(macs, edges)
        assert held.min() >= 4  # of 8 in each fifth of what is drawn


def test_a_design_of_a_whole_space() -> None:
    of = mlp_space()
    networks = {of.decode([a, b]) for a in range(3) for b in range(4)}
    for count in (12, 13, 100):
        archs = design(of, count, 0)
        assert len(archs) == 12 and set(archs) == networks


# What is learnt


@pytest.mark.parametrize("name", ["resnet-tiny", NARROW])
def test_a_linear_law_is_learnt(name: str) -> None:
    of = space(name)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=len(of.features(of.smallest)))

    def law(arch: Architecture) -> float:
        return 0.7 + 0.01 * float(of.features(arch) @ weights)

    archs = design(of, 60, 0)
    regression = Regression(of, {arch: law(arch) for arch in archs})
    assert regression.rank_correlation > 0.95 and not regression.poor
    others = [of.sample(rng) for _ in range(300)]
    expected = [law(arch) for arch in others]
    assert spearmanr(regression(others), expected)[0] > 0.97
    assert np.mean(regression(archs)) == pytest.approx(np.mean([law(arch) for arch in archs]))
    assert np.abs(regression(others) - expected).max() < np.std(expected)


def test_noise_is_not_learnt() -> None:
    of = space()
    found = []
    for seed in range(8):
        archs = design(of, 40, seed)
        noise = np.random.default_rng(seed).normal(size=40)
        regression = Regression(of, dict(zip(archs, noise, strict=True)))
        assert regression.poor
        found.append(regression.rank_correlation)
    assert abs(np.mean(found)) < 0.15 and np.abs(found).max() < POOR


@pytest.mark.parametrize("score", [0.0, 0.1, 0.25, 1 / 3, 0.7])
@pytest.mark.filterwarnings("error")
def test_equal_scores_have_no_rank_correlation(score: float) -> None:
    regression = chosen(space(), np.full(40, score))
    assert regression.rank_correlation == 0.0 and regression.poor
    assert regression([space().smallest, space().largest]) == pytest.approx([score, score])


def test_rank_correlation_is_of_subnets_that_were_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every subnet is predicted by fits that have not seen it: 5 folds, 4 divisions."""
    of, fitted = space(), list[tuple[np.ndarray, np.ndarray]]()

    def by_heart(rows: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, float]:
        fitted.append((rows, scores))
        return np.zeros(rows.shape[1]), 0.0

    monkeypatch.setattr(superfednas.nas.score.regression, "_fit", by_heart)
    scores = np.arange(20.0)
    regression = chosen(of, scores, count=20)
    assert len(fitted) == 4 * 5 + 1
    for division in np.array_split(np.arange(20), 4):
        left_out = [set(scores) - set(fitted[fold][1]) for fold in division]
        assert sorted(map(len, left_out)) == [4] * 5
        assert set.union(*left_out) == set(scores)
    assert len(fitted[-1][0]) == 20
    assert regression.rank_correlation < 0.5
    assert regression.error == pytest.approx(np.sqrt(np.mean(scores**2)))  # all are predicted as 0


def test_the_seed_is_of_the_folds_alone() -> None:
    of = space()
    rng = np.random.default_rng(0)
    scores = {arch: math.log(of.macs(arch)) + 0.2 * rng.normal() for arch in design(of, 20, 0)}
    first, again, other = (Regression(of, scores, seed=seed) for seed in (0, 0, 1))
    assert first.rank_correlation == again.rank_correlation != other.rank_correlation
    assert first([of.largest])[0] == other([of.largest])[0]


def test_a_feature_that_no_measured_subnet_varies_has_no_say() -> None:
    """Also where the deviation of equal numbers is rounded to some 1e-17."""
    of = space()
    rng = np.random.default_rng(0)
    depth, fixed = 0, 4  # of the first stage, and the ratio of its first block
    archs = []
    while len(archs) < 11:
        genes = of.draw(rng)
        genes[depth] = genes[fixed] = 0
        archs.append(of.decode(genes))
    measured = {arch: float(rng.random()) for arch in archs}
    rows = np.stack([of.features(arch) for arch in measured])
    deviations = rows.std(axis=0)[np.ptp(rows, axis=0) == 0]
    assert (deviations > 0).any() and (deviations == 0).any()
    regression = Regression(of, measured)
    genes, scores = of.draw(rng), []
    for choice in range(3):
        genes[fixed] = choice
        scores.append(float(regression([of.decode(genes)])[0]))
    assert scores == pytest.approx(scores[:1] * 3, abs=1e-6)


@pytest.mark.parametrize("count", [0, 7])
def test_too_few_subnets(count: int) -> None:
    archs = design(space(), 8, 0)[:count]
    with pytest.raises(ValueError, match=f"at least 8 measured subnets, there are {count}"):
        Regression(space(), dict.fromkeys(archs, 0.5))
    assert LEAST == 8


def test_the_fewest_are_enough() -> None:
    regression = chosen(space(), count=LEAST)
    assert regression([space().largest]) > regression([space().smallest])


# Ways to ask


@functools.cache
def learnt(name: str) -> Regression:
    return chosen(space(name))


@pytest.mark.parametrize("name", ["resnet-tiny", NARROW])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_calls_options_and_tables_agree(name: str, data: st.DataObject) -> None:
    of, regression = space(name), learnt(name)
    assert of.chain is not None
    archs = data.draw(st.lists(architectures(of), min_size=2, max_size=5))
    options = np.array([of.chain.locate(arch) for arch in archs])
    called = regression(archs)
    assert called.shape == (len(archs),)
    assert regression.of_options(of.chain, options) == pytest.approx(called, rel=1e-12)
    tables = regression.tables()
    for s, (table, segment) in enumerate(zip(tables, of.chain.segments, strict=True)):
        assert table.shape == (of.chain.states(s), len(segment.options))
    sums = of.chain.gather(tables, options).sum(axis=0)
    assert called - sums == pytest.approx(np.full(len(archs), called[0] - sums[0]), abs=1e-9)


def test_a_toy_chains_tables_are_its_regressions() -> None:
    of = ToySpace(3, 4)
    networks = every(of.chain)
    assert len(networks) > LEAST
    archs = [of.chain.assemble(options) for options in networks]
    rng = np.random.default_rng(0)
    regression = Regression(of, {arch: rng.random() for arch in archs})
    sums = of.chain.gather(regression.tables(), networks).sum(axis=0)
    called = regression(archs)
    assert called - sums == pytest.approx(np.full(len(archs), called[0] - sums[0]))


def test_it_is_a_sum_over_segments() -> None:
    regression = learnt("resnet-tiny")
    assert isinstance(regression, AdditiveScorer) and regression.name == "regression"


def test_a_space_without_a_chain() -> None:
    of = mlp_space()
    networks = design(of, 12, 0)
    regression = Regression(of, {arch: math.log(of.params(arch)) for arch in networks})
    params = [of.params(arch) for arch in networks]
    assert regression.rank_correlation > 0.8
    assert spearmanr(regression(networks), params)[0] > 0.97
    with pytest.raises(TypeError, match="the space 'mlp' is no chain"):
        regression.tables()


# Published subnets


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"{PUBLISHED.name} is not there")
def test_published_subnets_are_ranked() -> None:
    """2,500 subnets of a trained SuperFedNAS supernet; 100 rows rank the other 2,400."""
    of = load_space("resnet10-26", norm="none")
    with PUBLISHED.open() as file:
        rows = list(csv.DictReader(file))
    accuracy = {}
    for row in rows:
        depth = tuple(int(row[f"d{stage}"]) for stage in range(4))
        slots: tuple[float, ...] = tuple(float(row[f"e{slot}"]) for slot in range(12))
        arch = ResNetArchitecture(depth, slots)  # type: ignore[arg-type]
        of.validate(arch)
        accuracy[arch] = float(row["test_accuracy"])
    archs = list(accuracy)
    macs = np.array([of.macs(arch) for arch in archs])
    measured = stratified(macs, 100, np.random.default_rng(0))
    regression = Regression(of, {archs[row]: accuracy[archs[row]] for row in measured})
    others = [arch for row, arch in enumerate(archs) if row not in set(measured.tolist())]
    found = spearmanr(regression(others), [accuracy[arch] for arch in others])[0]
    assert found > 0.9
    assert regression.rank_correlation == pytest.approx(found, abs=0.05)
    assert found > spearmanr([of.macs(a) for a in others], [accuracy[a] for a in others])[0]
