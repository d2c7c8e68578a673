"""What a method is: a name for a few settings, and what they mean in words."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from supernet.config import Scalar


@dataclass(frozen=True)
class Method:
    """A configuration of the one strategy.

    Parameters
    ----------
    name, source
        Its name in the run-config, and where it is from.
    sends, trains, averages
        What a client gets, what it trains of it, and how the server merges, in a few words.
    settings
        What ``auto`` (and 0, for ``subnets-per-step``) stands for: keys of the run-config. What is
        not named stands for MaxNet's.
    """

    name: str
    source: str
    sends: str
    trains: str
    averages: str
    settings: Mapping[str, Scalar] = field(default_factory=dict)
