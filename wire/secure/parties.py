"""Parties: the clients of one round of secure aggregation, and what all of them agree on.

The server sends the same text to all. Every mask depends on its digest: clients that were told
different things have masks that do not cancel, so a server that tells them learns nothing.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from superfednas.common.settings import flatten, parse
from superfednas.supernet import SearchSpace
from superfednas.supernet.boxes import Boxes
from superfednas.wire.order import SpaceOptions
from superfednas.wire.secure.cells import FEW, Cell, Rule, cells_of
from superfednas.wire.secure.fixed import scale_of

# Keys of a message's config, and the stages of a query.
STAGE, KEYS, SHARES, UNMASK = "secure-stage", "keys", "shares", "unmask"
SESSION, PARTIES, MEMBERS, SURVIVORS = (
    "secure-session",
    "secure-parties",
    "secure-members",
    "secure-survivors",
)
SIGNATURE, COMMITMENTS, DISTRUSTED = "signature", "commitments", "distrusted"


@dataclass(frozen=True)
class Party:
    """One client of a round.

    Parameters
    ----------
    name
        The client's.
    architecture, shift
        Its subnet as JSON, and the channels by which its windows are shifted.
    weight
        Of its change in the sum, at most 1; with 0 it holds nothing.
    keys, signature
        Its public keys, and its node's signature of them, in hexadecimal digits.
    """

    name: str
    architecture: str
    shift: int
    weight: float
    keys: str
    signature: str = ""

    @property
    def public(self) -> bytes:
        """Its public keys."""
        return bytes.fromhex(self.keys)


@dataclass(frozen=True)
class Parties:
    """A round's parties; a party's number is its position.

    Parameters
    ----------
    session
        Number of the round's exchanges, which only rises.
    clip
        Largest L2 norm of a change.
    few
        Whether cells of fewer than three holders are sent, too.
    space
        Of the subnets: from it follows who holds which cell.
    parties
        The clients that have told their keys.
    """

    session: int
    clip: float
    few: bool
    space: SpaceOptions
    parties: tuple[Party, ...]

    def text(self) -> str:
        """Return all of it as a text."""
        return json.dumps({**asdict(self), "space": flatten(self.space)})

    @classmethod
    def read(cls, text: str) -> "Parties":
        """Read :meth:`text`; one of the exceptions of Python's readers for any other."""
        values: dict[str, Any] = json.loads(text)
        parties = tuple(Party(**party) for party in values.pop("parties"))
        space = parse(SpaceOptions, values.pop("space"))
        return cls(**values, space=space, parties=parties)

    @cached_property
    def digest(self) -> bytes:
        """What all agree on: 32 bytes."""
        return hashlib.sha256(self.text().encode()).digest()

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Name to number."""
        return {party.name: number for number, party in enumerate(self.parties)}

    @property
    def threshold(self) -> int:
        """Clients that must stay to the end: more than two thirds, and three.

        So a server that tells some that a client has dropped out, and others that it has not, does
        not get enough shares of both of its secrets.
        """
        return max(FEW, 2 * len(self.parties) // 3 + 1)

    @property
    def tiers(self) -> int:
        """How many tiers there can be; see :class:`superfednas.wire.secure.cells.Rule`."""
        return (len(self.parties) - self.threshold).bit_length() + 1

    @property
    def scale(self) -> float:
        """By how much numbers are multiplied before they are rounded."""
        return scale_of(self.clip, len(self.parties))

    def rule(self, members: Iterable[int]) -> Rule:
        """Return which cells are sent if so many have given shares."""
        return Rule(1 if self.few else FEW, len(list(members)) - self.threshold)

    def boxes(self, space: SearchSpace, number: int) -> Boxes:
        """Return where the subnet of a party lies; nowhere if it has no weight."""
        party = self.parties[number]
        if not party.weight:
            return {}
        arch = space.parse(party.architecture)
        return space.rolled(arch, party.shift) if party.shift else space.boxes(arch)

    def cells(self, space: SearchSpace, members: Iterable[int]) -> list[Cell]:
        """Return the cells of those that have given shares."""
        held: Mapping[int, Boxes] = {number: self.boxes(space, number) for number in members}
        return cells_of(space.shapes(space.largest), held)

    def about(self, sender: int, receiver: int) -> bytes:
        """Return what a sealed text is bound to."""
        return self.digest + f"shares {sender} {receiver}".encode()

    def pair(self, one: int, other: int) -> bytes:
        """Return what the mask of two parties is bound to."""
        return self.digest + f"mask {min(one, other)} {max(one, other)}".encode()


def statement(session: int, name: str, keys: str) -> bytes:
    """Return what a node signs: that these are its client's keys in this session."""
    return json.dumps(["superfednas secure aggregation", session, name, keys]).encode()
