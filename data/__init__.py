"""Data: settings, sources, partitions among clients, and batch augmentation.

Importing this package loads none of the optional readers; each is imported when first needed.
"""

from data.augment import Augment, augmented_batch
from data.dataset import DataError, Dataset, Split, normalise
from data.partition import partition, partition_like
from data.settings import DataSettings
from data.sources import load_dataset

__all__ = [
    "Augment",
    "DataError",
    "DataSettings",
    "Dataset",
    "Split",
    "augmented_batch",
    "load_dataset",
    "normalise",
    "partition",
    "partition_like",
]
