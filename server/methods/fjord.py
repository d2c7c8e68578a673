"""FjORD: ordered dropout; every step trains a width up to the client's own."""

from typing import ClassVar

from superfednas.server.methods.base import Configured, StandsFor
from superfednas.server.methods.heterofl import HeteroFL


class FjORD(Configured):
    """Everyone trains, at each step, one of the widths up to its own."""

    name = "fjord"
    source = "arXiv 2102.13451"
    sends = "as HeteroFL"
    trains = "one width a step, drawn from the levels up to its own"
    averages = "what overlaps, weighted by images"
    settings: ClassVar[StandsFor] = {
        **HeteroFL.settings,
        "weighting": "examples",
        "local-subnets": "widths",
    }
