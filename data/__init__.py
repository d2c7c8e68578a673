"""Data: settings, sources, and partitions among clients.

Importing this package loads none of the optional readers; each is imported on first use.
"""

from superfednas.data.dataset import DataError, Dataset, Split
from superfednas.data.partition import partition, partition_like
from superfednas.data.settings import DataSettings
from superfednas.data.sources import load_dataset

__all__ = [
    "DataError",
    "DataSettings",
    "Dataset",
    "Split",
    "load_dataset",
    "partition",
    "partition_like",
]
