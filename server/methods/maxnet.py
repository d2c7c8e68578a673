"""MaxNet, the default: what ``auto`` stands for where a method says nothing else."""

from server.methods.method import Method
from supernet.wire import DEFAULT_SPACE

METHOD = Method(
    name="maxnet",
    source="SuperFedNAS, arXiv 2301.10879",
    sends="largest and smallest in turns, others at random",
    trains="what it got",
    averages="what overlaps; the largest weighs β",
    settings={
        "space": DEFAULT_SPACE,
        "assignment": "tracking-sandwich",
        "averaging": "maxnet",
        "weighting": "uniform",
        "local-subnets": "received",
        "subnets-per-step": 1,
        "distil": "off",
    },
)
