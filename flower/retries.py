"""Flower's pauses before it asks again for a message that is still being written.

A message can be pulled as soon as its head has arrived. If its arrays have not, Flower waits a
second by default, then twice as long each time up to 10 s, so that a reply over a slow line is
noticed seconds late; at the 500th attempt it gives up. These are defaults of arguments inside
Flower that none of its callers passes and no option changes.
"""

import importlib
from typing import Any

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
_MODULE, _FUNCTION = "flwr.supercore.inflatable.inflatable_utils", "pull_objects"
_DEFAULTS = {
    "initial_backoff": FIRST_PAUSE,
    "backoff_cap": LONGEST_PAUSE,
    "max_tries_per_object": None,  # Flower's time limit of two hours ends it
}


def retry_pulls_soon() -> str | None:
    """Make this process's pulls retry after 0.02 s, then twice as long each time up to 0.5 s.

    Returns
    -------
    str or None
        If this Flower has no such pauses: what is missing, in words. Nothing is changed then.
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
