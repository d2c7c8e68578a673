"""Meanings: what the numbers of a node's examples stand for, so short that they can be compared."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from superfednas.common.damage import loads
from superfednas.common.words import one_line
from superfednas.wire.claims import ClaimError

MEANING = "meaning"  # a key of a node's answer
_SHOWN = 300  # characters
_DIGITS = 32
_MOST = 100_000  # characters in all


@dataclass(frozen=True)
class Meaning:
    """What one kind of numbers stands for.

    Parameters
    ----------
    digest
        Of all of it, 32 hexadecimal digits: by this meanings are compared.
    shown
        Its beginning, for human readers.
    """

    digest: str
    shown: str


Meanings = Mapping[str, Meaning]


def brief(meaning: Mapping[str, str]) -> dict[str, Meaning]:
    """Shorten :attr:`superfednas.tasks.Task.meaning`."""
    return {
        what: Meaning(hashlib.sha256(text.encode()).hexdigest()[:_DIGITS], one_line(text, _SHOWN))
        for what, text in meaning.items()
    }


def told(meanings: Meanings) -> str:
    """Return meanings as they are sent."""
    return json.dumps({what: [each.digest, each.shown] for what, each in meanings.items()})


def heard(text: object) -> dict[str, Meaning]:
    """Read what :func:`told` has sent.

    Raises
    ------
    ClaimError
        For anything else, or more than 100,000 characters.
    """
    try:
        if not isinstance(text, str) or len(text) > _MOST:
            raise TypeError
        found = {}
        for what, (digest, shown) in loads(text).items():
            if not isinstance(digest, str) or not isinstance(shown, str) or len(digest) != _DIGITS:
                raise TypeError
            found[one_line(what, _SHOWN)] = Meaning(digest, one_line(shown, _SHOWN))
    except (AttributeError, TypeError, ValueError):
        raise ClaimError(f"{MEANING}: it cannot be read") from None
    return found
