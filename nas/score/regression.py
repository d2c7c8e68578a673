"""Predicted scores: a ridge regression on a few dozen measured subnets.

An architecture's features are, for every slot, whether it has a block, the block's expand ratio and
the ratio's logarithm (a space may define its own). The regression is linear in them, so its
prediction is a sum over the segments of a chain, and its optimum under limits can be computed
exactly.
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from superfednas.supernet import Architecture, SearchSpace
from superfednas.supernet.chain import Chain

_PENALTIES = np.logspace(-3, 3, 25)
_FOLDS = 5
_REPEATS = 4
_POOL = 50
LEAST = 8
POOR = 0.5


def stratified(costs: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Choose rows that cover a range of costs.

    Parameters
    ----------
    costs
        (rows,).
    count
        How many, at most the number of rows.

    Returns
    -------
    np.ndarray
        Row indices, (count,): the cheapest, the most expensive, and a random one from each of
        ``count - 2`` equally populated ranges between.
    """
    if not 2 <= count <= len(costs):
        raise ValueError(f"count = {count}: must be from 2 to {len(costs)}")
    order = np.argsort(costs, kind="stable")
    inner = (
        [rng.choice(part) for part in np.array_split(order[1:-1], count - 2)] if count > 2 else []
    )
    return np.array([order[0], order[-1], *inner])


def design(space: SearchSpace, count: int, seed: int) -> list[Architecture]:
    """Choose subnets to measure: smallest, largest, and random ones stratified over MACs.

    Returns fewer than ``count`` only if the space has no more.
    """
    rng = np.random.default_rng(seed)
    drawn = [space.smallest, space.largest, *(space.sample(rng) for _ in range(_POOL * count))]
    pool = list(dict.fromkeys(drawn))
    costs = np.array([space.macs(arch) for arch in pool])
    return [pool[row] for row in stratified(costs, min(count, len(pool)), rng)]


class Regression:
    """Ridge regression from architectures to scores; fitted when made.

    Features are standardised, the penalty is chosen by leave-one-out error.

    Parameters
    ----------
    space
        The search space.
    measured
        Score of each measured architecture, at least 8.
    seed
        Of the folds of :attr:`rank_correlation`.

    Attributes
    ----------
    rank_correlation
        Spearman's, between measured scores and predictions for subnets left out of the fit: 5
        folds, averaged over 4 divisions. 0 if all scores are equal.
    error
        Root of the mean squared error of the same predictions, in units of the score.
    """

    name = "regression"

    def __init__(
        self, space: SearchSpace, measured: Mapping[Architecture, float], *, seed: int = 0
    ) -> None:
        if len(measured) < LEAST:
            raise ValueError(
                f"a regression needs at least {LEAST} measured subnets, there are {len(measured)}"
            )
        self.space = space
        rows = np.stack([space.features(arch) for arch in measured])
        scores = np.array(list(measured.values()), dtype=float)
        self.rank_correlation, self.error = _cross_validated(
            rows, scores, np.random.default_rng(seed)
        )
        self._weights, self._constant = _fit(rows, scores)

    @property
    def poor(self) -> bool:
        """Whether the prediction ranks too poorly to be relied on."""
        return self.rank_correlation < POOR

    def __call__(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return the predicted score of each architecture."""
        rows = np.stack([self.space.features(arch) for arch in archs])
        predicted: np.ndarray = rows @ self._weights + self._constant
        return predicted

    def of_options(self, chain: Chain, options: np.ndarray) -> np.ndarray:
        """Return the predicted scores of (architectures, segments) option indices."""
        predicted: np.ndarray = chain.features(options) @ self._weights + self._constant
        return predicted

    def tables(self) -> list[np.ndarray]:
        """Return what each segment adds (states, options), without the constant."""
        chain = self.space.chain
        if chain is None:
            raise TypeError(f"the space {self.space.name!r} is no chain")
        tables, first = [], 0
        for s, segment in enumerate(chain.segments):
            last = first + segment.features.shape[1]
            gain = segment.features @ self._weights[first:last]
            tables.append(np.repeat(gain[None], chain.states(s), axis=0))
            first = last
        return tables


def _fit(rows: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import RidgeCV

    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    deviation[deviation == 0] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly singular, which is why there is a penalty
        model = RidgeCV(_PENALTIES).fit((rows - mean) / deviation, scores)
    weights: np.ndarray = model.coef_ / deviation
    return weights, float(model.intercept_ - mean @ weights)


def _cross_validated(
    rows: np.ndarray, scores: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Return rank correlation and root mean squared error."""
    from scipy.stats import spearmanr

    if np.ptp(scores) == 0:
        return 0.0, 0.0
    found, squares = [], []
    for _ in range(_REPEATS):
        predicted = np.empty(len(scores))
        for held_out in np.array_split(rng.permutation(len(scores)), _FOLDS):
            rest = np.setdiff1d(np.arange(len(scores)), held_out)
            weights, constant = _fit(rows[rest], scores[rest])
            # Relative to the mean of the rest, which is low if the fold's scores are high: a fit
            # that has learnt nothing would otherwise rank the folds backwards.
            predicted[held_out] = rows[held_out] @ weights + constant - scores[rest].mean()
            squares += list((rows[held_out] @ weights + constant - scores[held_out]) ** 2)
        constant_everywhere = np.ptp(predicted) == 0
        found.append(0.0 if constant_everywhere else float(spearmanr(predicted, scores)[0]))
    return float(np.mean(found)), float(np.mean(squares)) ** 0.5
