"""FedAvg: one architecture for everyone."""

from server.methods.method import Method

METHOD = Method(
    name="fedavg",
    source="arXiv 1602.05629",
    sends="one `architecture` (the largest) to everyone",
    trains="what it got",
    averages="all of it, by images",
    settings={"assignment": "fixed", "averaging": "overlap", "weighting": "examples"},
)
