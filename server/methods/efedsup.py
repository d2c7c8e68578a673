"""E-FedSup: a random subnet to each client, for less to send and to train."""

from server.methods.method import Method

METHOD = Method(
    name="efedsup",
    source="Kim and Yun, eq. 6",
    sends="a random subnet to each",
    trains="what it got",
    averages="what overlaps, by images",
    settings={
        "space": "mobilenetv1-tiny",
        "assignment": "random",
        "averaging": "overlap",
        "weighting": "examples",
    },
)
