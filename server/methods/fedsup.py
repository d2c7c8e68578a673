"""FedSup: every client trains several subnets of the whole supernet at once."""

from typing import ClassVar

from superfednas.server.methods.base import Configured, StandsFor


class FedSup(Configured):
    """Everyone trains several subnets of the whole supernet in every step."""

    name = "fedsup"
    source = "Kim and Yun, algorithm 1"
    sends = "the whole supernet to everyone"
    trains = "3 subnets a step: largest, smallest, random; the largest teaches the others"
    averages = "everything, weighted by images"
    settings: ClassVar[StandsFor] = {
        "space": "mobilenetv1-tiny",
        "assignment": "fixed",
        "averaging": "overlap",
        "weighting": "examples",
        "local-subnets": "space",
        "subnets-per-step": 3,
        "distil": "on",
    }
