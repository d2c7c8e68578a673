"""The best architecture of a chain under limits, computed rather than searched for.

For a score that is a sum over segments (a linear regression, MACs) and costs that are sums too, a
part of an architecture is dominated if another part of the same length, ending in the same state,
has at least its score and at most its costs: whatever follows, exchanging the two never hurts. So
parts grow segment by segment and only undominated ones are kept (multi-objective dynamic
programming; for a single cost, a sort and a running maximum). A peak is not a sum, but a limit on
it simply rules options out. The parts that remain at the end contain the optimum for every limit at
once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from superfednas.supernet.chain import Chain

Tables = Sequence[np.ndarray]
_BLOCK = 1024
_MOST, _MOST_OF_SEVERAL = 30_000, 3_000


@dataclass(frozen=True, eq=False)
class Front:
    """Architectures none of which is better than another in score and all costs.

    Parameters
    ----------
    options
        (architectures, segments) option indices, by rising first cost.
    score
        (architectures,).
    costs
        (architectures, costs).
    exact
        Whether nothing was dropped. Parts beyond 30,000 (3,000 with several costs) over all states
        are thinned out; it takes a wide space and several limits to get there, or a score that
        rises with the costs themselves, as MACs do.
    """

    options: np.ndarray
    score: np.ndarray
    costs: np.ndarray
    exact: bool = True

    def __len__(self) -> int:
        """Return the number of architectures."""
        return len(self.score)

    def take(self, rows: np.ndarray) -> "Front":
        """Keep these rows."""
        return replace(
            self, options=self.options[rows], score=self.score[rows], costs=self.costs[rows]
        )


def undominated(score: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Return the rows that no other row equals or beats in score and every cost.

    Parameters
    ----------
    score
        (rows,), more is better.
    costs
        (rows, costs), at least one; less is better.

    Returns
    -------
    np.ndarray
        Indices by rising first cost; of equal rows the first.
    """
    if costs.shape[1] == 1:
        order = np.lexsort((-score, costs[:, 0]))
        sorted_score = score[order]
        best_before = np.maximum.accumulate(sorted_score)
        keep = np.ones(len(order), dtype=bool)
        keep[1:] = sorted_score[1:] > best_before[:-1]
        return order[keep]
    order = np.lexsort((*costs.T[::-1], -score))  # only earlier rows can dominate a row
    sorted_costs = costs[order]
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, len(order), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(order)))
        block = block[~_beaten(sorted_costs[block], sorted_costs[kept])]
        among = np.all(sorted_costs[block][:, None] >= sorted_costs[block][None, :], axis=2)
        block = block[~np.tril(among, -1).any(axis=1)]
        kept = np.concatenate([kept, block])
    found = order[kept]
    return found[np.argsort(costs[found, 0], kind="stable")]


def _beaten(costs: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Return which rows of ``costs`` some row of ``by`` equals or undercuts in every column."""
    beaten = np.zeros(len(costs), dtype=bool)
    for start in range(0, len(by), _BLOCK):
        rest = np.flatnonzero(~beaten)
        part = by[start : start + _BLOCK]
        below = np.ones((len(rest), len(part)), dtype=bool)
        for column in range(costs.shape[1]):
            below &= part[:, column] <= costs[rest, column, None]
        beaten[rest] = below.any(axis=1)
    return beaten


def cheapest(chain: Chain, table: Tables, allowed: Tables | None = None) -> list[np.ndarray]:
    """Return the lowest cost of the rest of an architecture, from each segment and state on.

    Returns
    -------
    list
        For each segment (states,), and one more entry of zeros after the last.
    """
    last = 1 + int(chain.segments[-1].leaves.max())
    rest = [np.zeros(last)]
    for s in reversed(range(len(chain.segments))):
        cost = table[s] + rest[0][chain.segments[s].leaves]
        if allowed is not None:
            cost = np.where(allowed[s], cost, np.inf)
        rest.insert(0, cost.min(axis=1))
    return rest


def pareto(
    chain: Chain,
    score: Tables,
    costs: Sequence[Tables],
    limits: Sequence[float],
    allowed: Tables | None = None,
) -> Front:
    """Return every architecture that is undominated in score and costs, within limits.

    Parameters
    ----------
    chain
        The space.
    score
        For each segment (states, options): what it adds to the score.
    costs
        At least one cost, each in the form of the score.
    limits
        The maximum of each cost's sum; ``inf`` for none.
    allowed
        For each segment (states, options), bool: the options that may be used.

    Returns
    -------
    Front
        Empty if nothing fits.
    """
    rest = [cheapest(chain, table, allowed) for table in costs]
    bounds = np.asarray(limits, dtype=float)
    nothing = Front(np.empty((1, 0), dtype=np.int32), np.zeros(1), np.zeros((1, len(costs))))
    parts = {0: nothing}
    exact = True
    for s, segment in enumerate(chain.segments):
        grown: dict[int, Front] = {}
        most = (_MOST if len(costs) == 1 else _MOST_OF_SEVERAL) // (1 + int(segment.leaves.max()))
        for state, part in parts.items():
            added = np.stack([table[s][state] for table in costs], axis=1)
            for leaves in map(int, np.unique(segment.leaves)):
                usable = segment.leaves == leaves
                if allowed is not None:
                    usable &= allowed[s][state]
                options = np.flatnonzero(usable)
                if not len(options):
                    continue
                gain = score[s][state, options]
                kept = undominated(gain, added[options])
                options, gain = options[kept], gain[kept]
                after = np.array([table[s + 1][leaves] for table in rest])
                if np.isinf(after).any():  # no allowed option continues from here
                    continue
                longer = _extend(part, options, gain, added[options], bounds - after)
                if leaves in grown:
                    longer = _join([grown[leaves], longer])
                if len(longer):
                    longer = longer.take(undominated(longer.score, longer.costs))
                    exact &= len(longer) <= most
                    grown[leaves] = _thin(longer, most)
        parts = grown
    if not parts:
        return replace(nothing.take(np.empty(0, dtype=np.int64)), exact=exact)
    whole = _join(list(parts.values()))
    whole = whole.take(undominated(whole.score, whole.costs))
    return replace(whole, exact=exact)


def _thin(front: Front, most: int) -> Front:
    """Keep at most this many rows, evenly over the first cost, including the best score."""
    if len(front) <= most:
        return front
    rows = np.linspace(0, len(front) - 1, most).round().astype(np.int64)
    return front.take(np.union1d(rows, front.score.argmax()))


def _extend(
    part: Front, options: np.ndarray, gain: np.ndarray, added: np.ndarray, room: np.ndarray
) -> Front:
    """Return every part extended by every option, if the costs leave room for the rest."""
    costs = part.costs[:, None] + added[None]
    fits = np.all(costs <= room, axis=2)
    before, option = np.nonzero(fits)
    return Front(
        np.column_stack([part.options[before], options[option].astype(np.int32)]),
        part.score[before] + gain[option],
        costs[fits],
    )


def _join(fronts: Sequence[Front]) -> Front:
    return Front(
        np.concatenate([front.options for front in fronts]),
        np.concatenate([front.score for front in fronts]),
        np.concatenate([front.costs for front in fronts]),
    )
