"""FedSup: every client trains several subnets of the whole supernet at once."""

from server.methods.method import Method

METHOD = Method(
    name="fedsup",
    source="Kim and Yun, algorithm 1",
    sends="the whole supernet to everyone",
    trains="3 subnets a step: largest, smallest, random; the largest teaches the others",
    averages="all of it, by images",
    settings={
        "space": "mobilenetv1-tiny",
        "assignment": "fixed",
        "averaging": "overlap",
        "weighting": "examples",
        "local-subnets": "space",
        "subnets-per-step": 3,
        "distil": "on",
    },
)
