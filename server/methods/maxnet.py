"""MaxNet, the default: the values of ``auto`` unless a method sets others."""

from typing import ClassVar

from superfednas.server.methods.base import Configured, StandsFor
from superfednas.wire.order import DEFAULT_SPACE


class MaxNet(Configured):
    """The paper's method; the default."""

    name = "maxnet"
    source = "SuperFedNAS, arXiv 2301.10879"
    sends = "largest and smallest in turn, others at random"
    trains = "what it received"
    averages = "what overlaps; the largest has weight β"
    settings: ClassVar[StandsFor] = {
        "space": DEFAULT_SPACE,
        "assignment": "tracking-sandwich",
        "averaging": "maxnet",
        "weighting": "uniform",
        "local-subnets": "received",
        "subnets-per-step": 1,
        "distil": "off",
    }
