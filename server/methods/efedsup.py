"""E-FedSup: a random subnet to each client, for less to send and to train."""

from typing import ClassVar

from superfednas.server.methods.base import Configured, StandsFor


class EFedSup(Configured):
    """Everyone trains a random subnet."""

    name = "efedsup"
    source = "Kim and Yun, eq. 6"
    sends = "a random subnet to each client"
    trains = "what it received"
    averages = "what overlaps, weighted by images"
    settings: ClassVar[StandsFor] = {
        "space": "mobilenetv1-tiny",
        "assignment": "random",
        "averaging": "overlap",
        "weighting": "examples",
    }
