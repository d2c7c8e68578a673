"""FedAvg: one architecture for everyone."""

from typing import ClassVar

from superfednas.server.methods.base import Configured, StandsFor


class FedAvg(Configured):
    """Everyone trains one architecture, and replies weigh by images."""

    name = "fedavg"
    source = "arXiv 1602.05629"
    sends = "one `architecture` (the largest) to everyone"
    trains = "what it received"
    averages = "everything, weighted by images"
    settings: ClassVar[StandsFor] = {
        "assignment": "fixed",
        "averaging": "overlap",
        "weighting": "examples",
    }
