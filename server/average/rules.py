"""Rules of averaging: their names and properties."""

from collections.abc import Callable
from dataclasses import dataclass

from superfednas.server.average.overlap import Aggregation
from superfednas.server.named import named
from superfednas.supernet import State


@dataclass(frozen=True)
class Rule:
    """How replies merge.

    Parameters
    ----------
    beta
        Whether the clients that hold the largest subnet share β.
    alike
        Whether every reply counts once, whatever its weight.
    own
        Opens a round's average of a state, for a user's own rule.
    """

    beta: bool = False
    alike: bool = False
    own: Callable[[State], Aggregation] | None = None


ROBUST = ("trimmed-mean", "median", "clip", "defl", "history")
RULES: dict[str, Rule] = {
    "maxnet": Rule(beta=True),
    "overlap": Rule(),
    **dict.fromkeys(ROBUST, Rule(alike=True)),
}


def rule_of(name: str) -> Rule:
    """Return a rule by its name, or by ``module:Name``, a callable that takes a target's state.

    Raises
    ------
    SettingsError
        For an unknown name, or something that cannot be imported or called.
    """
    found = named("averaging", name, RULES, "module:Name")
    return found if isinstance(found, Rule) else Rule(own=found)
