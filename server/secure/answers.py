"""Answers of secure aggregation: each is read within bounds, a bad one refused with a code."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from flwr.app import ConfigRecord, Message

from superfednas.records.refusals import Refusal
from superfednas.server.round.check import BadReply, check_error, record_of
from superfednas.wire.order import CONFIG
from superfednas.wire.secure.keys import (
    KEY,
    SEALED,
    SECRET,
    KeyProblem,
    check_public,
    commitment,
    mask_public,
    restore,
)
from superfednas.wire.secure.parties import (
    COMMITMENTS,
    DISTRUSTED,
    KEYS,
    SHARES,
    SIGNATURE,
    Parties,
)

SEED = "seed"
_SIGNATURE = 1024  # hexadecimal digits
_BESIDE = 64  # characters of JSON beside each value


@dataclass(frozen=True)
class Shared:
    """What a client has given to the others, through the server.

    Parameters
    ----------
    sealed
        Its shares, sealed for each party by number, in hexadecimal digits.
    commitments
        By which its secrets of each tier can be recognised.
    """

    sealed: tuple[str, ...]
    commitments: tuple[bytes, ...]


def keys_in(message: Message) -> tuple[str, str]:
    """Return a client's public keys and their signature; ``BadReply`` if there are none."""
    config = _config(message)
    keys, signature = config.get(KEYS), config.get(SIGNATURE, "")
    try:
        check_public(_bytes(keys, 2 * KEY))
    except KeyProblem as error:
        raise _bad(str(error)) from None
    if not isinstance(signature, str) or len(signature) > _SIGNATURE:
        raise _bad("a signature that is none")
    _bytes(signature, len(signature) // 2)
    return str(keys), signature


def shares_in(message: Message, parties: Parties) -> Shared:
    """Return a client's sealed shares; ``BadReply`` if they are not one for each party."""
    config, tiers, count = _config(message), parties.tiers, len(parties.parties)
    size = SEALED + SECRET * (1 + tiers)
    sealed = _json(config, SHARES, count * (2 * size + _BESIDE))
    known = _json(config, COMMITMENTS, tiers * (64 + _BESIDE))
    if not isinstance(sealed, list) or len(sealed) != count:
        raise _bad(f"shares that are not one for each of {count} clients")
    if not isinstance(known, list) or len(known) != tiers:
        raise _bad(f"commitments that are not one for each of {tiers} tiers")
    for each in sealed:
        _bytes(each, size)
    return Shared(tuple(sealed), tuple(_bytes(each, 32) for each in known))


def distrusted_in(message: Message, parties: Parties) -> set[int]:
    """Return the parties whose keys a client does not believe, so that it gives no shares."""
    if message.has_error() or DISTRUSTED not in _config(message):
        return set()
    count = len(parties.parties)
    numbers = _json(_config(message), DISTRUSTED, count * _BESIDE)
    known = range(count)
    if not isinstance(numbers, list) or not all(type(n) is int and n in known for n in numbers):
        raise _bad("a list of clients that is none")
    return set(numbers)


class Recovery:
    """Restores the secrets that unmask a round's sum from what its survivors hand out.

    Parameters
    ----------
    parties
        The round's.
    members
        Numbers of those that have given shares, and what they gave.
    survivors
        Numbers of those whose masked changes are in the sum.
    tiers
        The tiers to unmask.

    Attributes
    ----------
    secrets
        (number, tier or ``seed``) to the secret.
    """

    def __init__(
        self,
        parties: Parties,
        members: dict[int, Shared],
        survivors: Collection[int],
        tiers: Collection[int],
    ) -> None:
        self._parties, self._members, self._survivors = parties, members, survivors
        weighty = [number for number in members if parties.parties[number].weight]
        wanted = [(n, str(tier)) for n in weighty if n in survivors for tier in sorted(tiers)]
        wanted += [(number, SEED) for number in weighty if number not in survivors]
        self._shares: dict[tuple[int, str], dict[int, bytes]] = {key: {} for key in wanted}
        self._tried: dict[tuple[int, str], int] = {}
        self._answered: set[int] = set()
        self.secrets: dict[tuple[int, str], bytes] = {}

    def take(self, message: Message, by: int) -> None:
        """Take what a survivor hands out; ``BadReply`` for what are no shares."""
        most = len(self._members) * (1 + self._parties.tiers) * (2 * SECRET + _BESIDE)
        given = _json(_config(message), SHARES, most)
        taken: dict[tuple[int, str], bytes] = {}
        try:
            for number, labels in given.items():
                for label, share in labels.items():
                    taken[int(number), label] = _bytes(share, SECRET)
        except (AttributeError, ValueError):
            raise _bad("shares that are none") from None
        self._answered.add(by)
        for key, share in taken.items():
            if key in self._shares:
                self._shares[key][by] = share

    def complete(self) -> bool:
        """Restore what can be restored; return whether that is everything."""
        for key, shares in self._shares.items():
            enough = len(shares) >= self._parties.threshold
            if key in self.secrets or not enough or self._tried.get(key) == len(shares):
                continue
            self._tried[key] = len(shares)
            secret = restore(shares, self._parties.threshold, partial(self._is, key))
            if secret is not None:
                self.secrets[key] = secret
        return len(self.secrets) == len(self._shares)

    @property
    def spoilt(self) -> set[int]:
        """Those that have not given the others shares of their secret.

        Most of those that have answered have none, or more than enough have some that do not
        restore it. Where just enough have, one of these may have told a false one instead.
        """
        found = set()
        for key, shares in self._shares.items():
            none = 2 * len(shares) < len(self._answered)
            if key not in self.secrets and (none or len(shares) > self._parties.threshold):
                found.add(key[0])
        return found

    def _is(self, key: tuple[int, str], secret: bytes) -> bool:
        number, label = key
        if label == SEED:
            return mask_public(secret) == self._parties.parties[number].public[:KEY]
        return commitment(secret) == self._members[number].commitments[int(label)]


def _config(message: Message) -> ConfigRecord:
    check_error(message)
    config: ConfigRecord = record_of(message, CONFIG, ConfigRecord)
    return config


def _json(config: ConfigRecord, key: str, most: int) -> Any:
    text = config.get(key)
    if not isinstance(text, str) or len(text) > most:
        raise _bad(f"no {key}, or more than {most:,} characters of them")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _bad(f"{key} that cannot be read") from None


def _bytes(digits: Any, size: int) -> bytes:
    """Return hexadecimal digits as so many bytes."""
    try:
        found = bytes.fromhex(digits)
    except (TypeError, ValueError):
        raise _bad("something that is not in hexadecimal digits") from None
    if len(found) != size or len(digits) != 2 * size:
        raise _bad(f"{len(found)} bytes in place of {size}")
    return found


def _bad(reason: str) -> BadReply:
    return BadReply(Refusal.PROTOCOL, f"secure aggregation: {reason}")
