"""Ladders: a few subnets from the smallest to the largest that stand for the whole space."""

import numpy as np

from superfednas.supernet import Architecture, SearchSpace

_CANDIDATES = 512
_SEED = 20_301  # fixed, so that every run of a space climbs the same ladder


def ladder(space: SearchSpace, rungs: int = 5) -> dict[str, Architecture]:
    """Choose ``rungs`` subnets at even steps of MACs, and one random one.

    Parameters
    ----------
    space
        The search space.
    rungs
        At least 2. Between the smallest and the largest stand the random draws whose MACs are
        nearest to the even steps.

    Returns
    -------
    dict
        Name (``smallest``, ``25%`` of the way, …, ``largest``, ``random:0``) to architecture,
        by rising MACs except for the random one, which comes last.
    """
    if rungs < 2:
        raise ValueError(f"ladder = {rungs}: must be at least 2")
    rng = np.random.default_rng(_SEED)
    candidates = [space.sample(rng) for _ in range(_CANDIDATES if rungs > 2 else 0)]
    costs = np.array([space.macs(arch) for arch in candidates])
    least, most = space.macs(space.smallest), space.macs(space.largest)
    chosen = {"smallest": space.smallest}
    for step in range(1, rungs - 1):
        share = step / (rungs - 1)
        nearest = int(np.abs(costs - (least + share * (most - least))).argmin())
        chosen[f"{share:.0%}"] = candidates[nearest]
    chosen["largest"] = space.largest
    chosen["random:0"] = space.parse("random:0")
    return chosen
