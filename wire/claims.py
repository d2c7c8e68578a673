"""Claims: what a node says of itself, and the bounds of what it may say.

A node config is held to them before the node connects, an answer to the server's query when it
arrives: a node that runs other code says what it likes. Nothing here imports torch or Flower.
"""

from superfednas.common.words import beginning

LONGEST_NAME = 100  # characters, of a name and of a device class
MOST_COUNTED = 10**9  # examples, and parts of a data set
LARGEST_LIMIT = 10**18  # of a budget
MOST_CLASSES = 100_000
_SHOWN = 100  # characters


class ClaimError(ValueError):
    """A claim that cannot be; the message names it, its value and what is allowed."""


def name_of(key: str, value: object) -> str:
    """Return a name.

    Raises
    ------
    ClaimError
        If it is not a text of 1 to 100 printable characters, not all of them spaces.
    """
    fits = isinstance(value, str) and len(value) <= LONGEST_NAME and value.isprintable()
    if not isinstance(value, str) or not fits or not value.strip():
        raise ClaimError(
            f"{key} = {shown(value)}: must be a text of 1 to {LONGEST_NAME} printable characters"
        )
    return value


def count_of(key: str, value: object, least: int = 0) -> int:
    """Return a number of examples or parts; ``ClaimError`` if it is no integer, or beyond 10⁹."""
    return _integer(key, value, least, MOST_COUNTED)


def limit_of(key: str, value: object) -> float:
    """Return a limit of a budget; ``ClaimError`` if it is no number from 1 to 10¹⁸."""
    if isinstance(value, float) and 1 <= value <= LARGEST_LIMIT:
        return value
    return _integer(key, value, 1, LARGEST_LIMIT)


def flag_of(key: str, value: object) -> bool:
    """Return a Boolean; ``ClaimError`` if it is none."""
    if not isinstance(value, bool):
        raise ClaimError(f"{key} = {shown(value)}: must be true or false")
    return value


def class_counts_of(key: str, value: object, examples: int) -> tuple[int, ...]:
    """Return the numbers of examples of each class; ``ClaimError`` if they are not of these.

    At most 100,000 classes, whose numbers add up to ``examples``.
    """
    if not isinstance(value, list) or len(value) > MOST_CLASSES:
        raise ClaimError(f"{key}: must be a list of at most {MOST_CLASSES:,} numbers")
    counts = tuple(count_of(key, count) for count in value)
    if sum(counts) != examples:
        raise ClaimError(f"{key}: they do not add up to {examples} examples")
    return counts


def shown(value: object) -> str:
    """Return the beginning of any value as a text, however long it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | bytes | list):
        return beginning(value[:_SHOWN], _SHOWN, repr)
    if isinstance(value, int) and abs(value) > LARGEST_LIMIT:
        return "a number of more than 18 digits"
    return beginning(value, _SHOWN, repr)


def _integer(key: str, value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ClaimError(f"{key} = {shown(value)}: must be a whole number from {least} to {most:,}")
    return value
