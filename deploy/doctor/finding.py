"""The finding of one check of `superfednas doctor`."""

from dataclasses import dataclass

OK, WARNING, FAULT = "ok", "warning", "fault"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's answer.

    Parameters
    ----------
    name
        What was checked.
    state
        ``ok``, ``warning`` (it works, but could work better) or ``fault`` (it will not work).
    found
        What the check found.
    remedy
        What to do, in one sentence; empty if nothing.
    """

    name: str
    state: str
    found: str
    remedy: str = ""


def few(items: list[str], most: int = 5) -> str:
    """Join the first few of many."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")
