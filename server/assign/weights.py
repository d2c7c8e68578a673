"""Weights of a round's clients in the average, fixed before anyone replies."""

from collections.abc import Mapping, Sequence

from superfednas.supernet import Architecture


def round_weights(
    assignment: Mapping[str, Architecture],
    favoured: Sequence[str],
    beta: float | None,
    examples: Mapping[str, int] | None = None,
    max_share: float = 0.0,
) -> dict[str, float]:
    """Fix every client's weight a_k at assignment, before anyone replies (SuperFedNAS, eq. 3).

    Parameters
    ----------
    assignment
        This round's clients and architectures.
    favoured
        The L of K clients that share β.
    beta
        This round's β, or None for plain overlap averaging (all weights 1).
    examples
        If given, each weight is multiplied by the client's share of these.
    max_share
        The largest such share that a client can have; 0 sets no bound. See :func:`bounded`.

    Returns
    -------
    dict
        β/L for each favoured client, (1 − β)/(K − L) for the others; K = L: 1/K.
    """
    total, top = len(assignment), len(favoured)
    weights: dict[str, float] = {}
    for name in assignment:
        if beta is None:
            weights[name] = 1.0
        elif total == top:
            weights[name] = 1 / total
        else:
            weights[name] = beta / top if name in favoured else (1 - beta) / (total - top)
    if examples is not None:
        counts: Mapping[str, float] = {name: examples[name] for name in assignment}
        if max_share:
            counts = bounded(counts, max_share)
        everything = sum(counts.values())
        if not everything:
            raise ValueError("weighting = 'examples': no client of this round declares examples")
        weights = {name: w * counts[name] / everything for name, w in weights.items()}
    return weights


def bounded(counts: Mapping[str, float], share: float) -> dict[str, float]:
    """Lower the largest counts to one bound, so that none is more than ``share`` of their sum.

    Where too few are above 0 for that (two clients, a share of .4), these count the same.
    """
    largest_first = sorted(counts.values(), reverse=True)
    rest = sum(largest_first)
    for lowered, count in enumerate(largest_first):
        # With so many lowered to it, the bound is its share of itself that often, and of the rest.
        left = 1 - share * lowered
        if left <= 0 or not count:
            break
        bound = share * rest / left
        if count <= bound:
            return {name: min(count, bound) for name, count in counts.items()}
        rest -= count
    return {name: float(count > 0) for name, count in counts.items()}
