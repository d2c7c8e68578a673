"""Flower's pause before it asks again for the bytes of a message that is still being written.

A message can be pulled as soon as its head is there; whoever asks before its arrays have come waits
a second by Flower's default, then two, and so on. That pause is an argument with a default inside
Flower, which none of its callers gives and no option changes.
"""

import importlib
from typing import Any

FIRST_PAUSE = 0.02
_MODULE, _FUNCTION, _ARGUMENT = (
    "flwr.supercore.inflatable.inflatable_utils",
    "pull_objects",
    "initial_backoff",
)


def retry_pulls_soon() -> str | None:
    """Make this process's pulls ask again after 0.02 s, then twice as long each time.

    Returns
    -------
    str or None
        Where this Flower has no such pause: in words, what is missing. Nothing is changed then.
    """
    try:
        function: Any = getattr(importlib.import_module(_MODULE), _FUNCTION)
        defaults = function.__kwdefaults__
    except (ImportError, AttributeError):
        defaults = None
    if not defaults or _ARGUMENT not in defaults:
        return f"this Flower has no {_MODULE}.{_FUNCTION} with {_ARGUMENT}"
    defaults[_ARGUMENT] = FIRST_PAUSE
    return None
