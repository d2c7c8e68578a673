"""Named random streams: each random choice of a run has its own, so none disturbs another.

A stream is ``SeedSequence(seed, spawn_key=(purpose, round, client))``. It depends on what is drawn,
never on when or where, so a run is the same in one process, under Ray, on real machines, and after
a resume. The global generators are never touched.
"""

import enum
import hashlib

import numpy as np
import torch


class Purpose(enum.IntEnum):
    """Purposes of streams. The numbers are part of a run's identity: append, never renumber."""

    INIT = 0
    SAMPLE_CLIENTS = 1
    ASSIGN = 2
    LOCAL_ORDER = 3
    AUGMENT = 4
    PARTITION = 5
    SPLIT = 6
    LOCAL_SUBNETS = 7


def name_key(name: str) -> int:
    """Hash a stable name to 63 bits (Python's own ``hash`` differs from process to process)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def stream(seed: int, purpose: Purpose, *, round: int = 0, name: str = "") -> np.random.Generator:  # noqa: A002
    """Return the generator for one purpose, round and name (of a client or a tensor)."""
    key = (int(purpose), round, name_key(name))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def torch_stream(
    seed: int,
    purpose: Purpose,
    *,
    round: int = 0,  # noqa: A002
    name: str = "",
) -> torch.Generator:
    """Return the same stream as :func:`stream`, as a torch CPU generator."""
    draw = stream(seed, purpose, round=round, name=name).integers(2**63)
    return torch.Generator().manual_seed(int(draw))
