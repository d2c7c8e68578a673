"""Words for human readers: amounts, durations, counts, and untrusted texts made harmless.

Texts of nodes, of downloaded models and of files that others have written may hold whatever moves a
cursor, begins a line, turns the direction of reading or never ends. Everything that this project
prints passes through :func:`one_line`; what it prints as JSON, through :func:`printable_json`.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

LONGEST = 10_000  # characters of a line: more than a path can have


def amount(size: float) -> str:
    """Return a number of bytes in a unit that fits."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


@dataclass(frozen=True)
class Prefix:
    """A prefix of a unit: its letter, empty for none, its size, and its word on an axis."""

    letter: str
    size: float
    word: str = ""

    def say(self, value: float, digits: int = 2) -> str:
        """Return a number in this unit; whole numbers where the unit has no prefix."""
        return f"{value / self.size:,.{digits if self.letter else 0}f}"


_GIGA = Prefix("G", 1e9, "billions")
_MEGA = Prefix("M", 1e6, "millions")
_KILO = Prefix("k", 1e3, "thousands")
_ONES = Prefix("", 1.0)


def prefix_of(counts: Iterable[float], most: str = "M") -> Prefix:
    """Return the prefix in which even the least of some counts can be read.

    It is the largest in which the least is a tenth or more.

    Parameters
    ----------
    counts
        At least 0; zeros do not matter. Where there are no others the prefix is ``most``.
    most
        The largest prefix that may be returned: ``G``, ``M`` or ``k``.
    """
    prefixes = (_GIGA, _MEGA, _KILO, _ONES)["GMk".index(most) :]
    least = min((count for count in counts if count > 0), default=None)
    if least is None:
        return prefixes[0]
    return next((prefix for prefix in prefixes if least >= prefix.size / 10), _ONES)


def counted(count: float, unit: str, most: str = "M") -> str:
    """Return a count with its unit, for instance ``MACs``, in a prefix that fits."""
    prefix = prefix_of([count], most)
    return f"{prefix.say(count)} {prefix.letter}{unit}"


def duration(seconds: float) -> str:
    """Return seconds as a short text."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def one_line(text: str, most: int = LONGEST) -> str:
    r"""Return a text with all that is not printable escaped (``\n``), and cut where it is long.

    Escaped are line breaks and other control characters, marks that turn the direction of reading
    or have no width, halves of surrogate pairs, and characters that Unicode does not define.

    Parameters
    ----------
    text
        Any text.
    most
        Characters of the result; a cut one ends with ``…``.
    """
    shown = text[: most + 1]
    if not shown.isprintable():
        shown = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown
        )
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def beginning(value: object, most: int, text: Callable[[object], str] = str) -> str:
    """Return the first characters of any value's text, whatever it is.

    Parameters
    ----------
    value
        What a stranger has said.
    most
        Characters of the result.
    text
        ``str`` or ``repr``.
    """
    try:
        return text(value)[:most]
    except (ValueError, RecursionError):  # Python writes no number of thousands of digits
        return "what cannot be written out"[:most]


def printable_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON in which letters of all languages stand as they are.

    What :func:`one_line` would escape is escaped as JSON does it, so that the same value is read.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text
    )
