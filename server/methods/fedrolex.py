"""FedRolex: as HeteroFL, with windows that roll over all channels from round to round."""

from typing import ClassVar

from superfednas.server.methods.base import Configured, StandsFor
from superfednas.server.methods.heterofl import HeteroFL


class FedRolex(Configured):
    """Everyone trains its own width level, in windows that roll."""

    name = "fedrolex"
    source = "arXiv 2212.01548"
    sends = "as HeteroFL, but windows roll on by 8 channels every round"
    trains = "what it received"
    averages = "what overlaps, with equal weights"
    settings: ClassVar[StandsFor] = {**HeteroFL.settings, "assignment": "rolling-width-levels"}
