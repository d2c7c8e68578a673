"""Untrusted texts, as a terminal shows them.

A downloaded model names its own classes and outputs. These are the functions of
``superfednas.common.words``, for a device that has this folder alone.
"""

import json
from typing import Any

LONGEST = 10_000  # characters of a line


def one_line(text: str, most: int = LONGEST) -> str:
    r"""Return a text with all that is not printable escaped (``\n``), and cut where it is long."""
    shown = text[: most + 1]
    if not shown.isprintable():
        shown = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown
        )
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def printable_json(value: Any) -> str:
    """Return a value as JSON on one line, in which letters of all languages stand as they are."""
    text = json.dumps(value, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)
