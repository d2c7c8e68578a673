"""Clients: what the server knows of them when it assigns, and the draw for a round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from superfednas.common.streams import Purpose, name_key, stream
from superfednas.nas.cost.cost import cost
from superfednas.supernet import Architecture, SearchSpace
from superfednas.wire.claims import LONGEST_NAME
from superfednas.wire.meaning import Meanings


@dataclass(frozen=True)
class Client:
    """What the server knows of a client when it assigns.

    Parameters
    ----------
    name
        Stable name.
    limits
        Declared budget: the name of a cost to its maximum (``{"macs": 1_000_000}``).
    examples, validation
        Declared numbers of training and validation images; a reply may not report more.
    classes
        Training images by class; None if the node does not report them (``tell-classes``).
    tells_scores
        Whether it reports losses and scores of subnets (``tell-scores``); it is asked for none
        otherwise.
    meaning
        What the numbers of its examples stand for.
    """

    name: str
    limits: Mapping[str, float] = field(default_factory=dict, hash=False)
    examples: int | None = None
    validation: int | None = None
    classes: tuple[int, ...] | None = None
    tells_scores: bool = True
    meaning: Meanings = field(default_factory=dict, hash=False)

    def can_hold(self, space: SearchSpace, arch: Architecture) -> bool:
        """Return whether an architecture is within the budget."""
        return all(
            cost(name).of(space, arch) <= cost(name).most(limit)
            for name, limit in self.limits.items()
        )


def client_order(name: str) -> tuple[int, int, str]:
    """Sort key of client names: numbers by value, then other names."""
    return (0, int(name), name) if _is_number(name) else (1, 0, name)


def client_index(name: str) -> int:
    """Return an integer for policies that count clients: the client's number, else a hash."""
    return int(name) if _is_number(name) else name_key(name)


def _is_number(name: str) -> bool:
    # Python converts no text of thousands of digits.
    return len(name) <= LONGEST_NAME and name.isdecimal()


def sample_clients(names: Sequence[str], count: int, seed: int, round: int) -> list[str]:  # noqa: A002
    """Draw this round's clients, without replacement; ``names`` in :func:`client_order`."""
    rng = stream(seed, Purpose.SAMPLE_CLIENTS, round=round)
    drawn = rng.choice(len(names), min(count, len(names)), replace=False)
    return [names[index] for index in drawn]
