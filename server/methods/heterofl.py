"""HeteroFL: every client has its own width level.

Its scaler is left out: the norm layer behind every convolution cancels a constant factor.
"""

from typing import ClassVar

from superfednas.server.methods.base import Configured, StandsFor


class HeteroFL(Configured):
    """Everyone trains its own width level."""

    name = "heterofl"
    source = "arXiv 2010.01264"
    sends = "to each client the subnet of its width level: the first channels"
    trains = "what it received"
    averages = "what overlaps, with equal weights"
    settings: ClassVar[StandsFor] = {
        "space": "mobilenetv1-tiny",
        "assignment": "width-levels",
        "averaging": "overlap",
    }
