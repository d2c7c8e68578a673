"""Flower's pauses before it asks again for the bytes of a message that is still being written.

A message can be pulled as soon as its head is there; whoever asks before its arrays have come waits
a second by Flower's default, then twice as long each time up to 10 s, so that a reply from a slow
line is seen seconds after it is there; and gives up at the 500th time. These are arguments with
defaults inside Flower, which none of its callers gives and no option changes.
"""

import importlib
from typing import Any

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
_MODULE, _FUNCTION = "flwr.supercore.inflatable.inflatable_utils", "pull_objects"
_DEFAULTS = {
    "initial_backoff": FIRST_PAUSE,
    "backoff_cap": LONGEST_PAUSE,
    "max_tries_per_object": None,  # what ends it is Flower's limit of time, two hours
}


def retry_pulls_soon() -> str | None:
    """Make this process's pulls ask again after 0.02 s, then twice as long each time up to 0.5 s.

    Returns
    -------
    str or None
        Where this Flower has no such pauses: in words, what is missing. Nothing is changed then.
    """
    try:
        function: Any = getattr(importlib.import_module(_MODULE), _FUNCTION)
        defaults = function.__kwdefaults__ or {}
    except (ImportError, AttributeError):
        defaults = {}
    if missing := _DEFAULTS.keys() - defaults.keys():
        return f"this Flower has no {_MODULE}.{_FUNCTION} with {', '.join(sorted(missing))}"
    defaults.update(_DEFAULTS)
    return None
