"""Who a node is and which data it holds: the only place where simulation and deployment differ."""

import dataclasses
import functools

from client.node_config import Config, has_data_path, part, whole
from data import Dataset, DataSettings, Split, load_dataset, partition, partition_like


def node_data(node_config: Config, settings: DataSettings, seed: int) -> Dataset:
    """Return the node's own training, validation and test images.

    With ``partition-id`` and ``num-partitions`` in the node config, a part of the run's data set:
    its training images by ``partition``, its validation and test images in the same proportions of
    classes.
    Otherwise all of ``data-path``, anything that ``dataset`` accepts.

    Raises
    ------
    client.node_config.NodeConfigError
        Where the node config has neither, or a part that does not exist.
    data.DataError
        Where the data cannot be read or divided.
    """
    if has_data_path(node_config):
        own = dataclasses.replace(settings, dataset=str(node_config["data-path"]), train_images=0)
        return load_dataset(own)
    number, parts = part(node_config)
    return _parts(settings, parts, seed)[number]


@functools.lru_cache(maxsize=4)
def _parts(settings: DataSettings, parts: int, seed: int) -> list[Dataset]:
    everything = load_dataset(settings)
    labels = everything.train.labels.numpy()
    rows = partition(everything, settings, parts, seed)

    def alike(split: Split) -> list[Split]:
        drawn = partition_like(split.labels.numpy(), labels, rows, seed)
        return [split.take(part) for part in drawn]

    return [
        dataclasses.replace(
            everything, train=train, validation=validation, test=test, natural_ids=None
        )
        for train, validation, test in zip(
            (everything.train.take(part) for part in rows),
            alike(everything.validation),
            alike(everything.test),
            strict=True,
        )
    ]


def device_class(node_config: Config, classes: tuple[str, ...]) -> str:
    """Return the node's device class: its own word, else in turn by ``partition-id``."""
    if "device-class" in node_config:
        return str(node_config["device-class"])
    if classes and "partition-id" in node_config:
        return classes[whole(node_config, "partition-id") % len(classes)]
    return ""
