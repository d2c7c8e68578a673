"""Who a node is and which data it holds: the only place where simulation and deployment differ."""

import dataclasses
import functools
from collections.abc import Mapping

from data import Dataset, DataSettings, Split, load_dataset, partition, partition_like
from supernet.config import Scalar, SettingsError

Config = Mapping[str, Scalar]


def node_name(node_config: Config) -> str:
    """Return the node's stable name: ``name``, else its ``partition-id``. Node ids are random.

    Raises
    ------
    SettingsError
        Where the node config has neither.
    """
    for key in ("name", "partition-id"):
        if key in node_config:
            return str(node_config[key])
    raise SettingsError(
        "this node has no name: start flower-supernode with "
        '--node-config \'name="kitchen" data-path="/path/to/data.npz"\' (or a partition-id)'
    )


def node_data(node_config: Config, settings: DataSettings, seed: int) -> Dataset:
    """Return the node's own training, validation and test images.

    With ``partition-id`` and ``num-partitions`` in the node config, a part of the run's data set:
    its training images by ``partition``, its validation images in the same proportions of classes.
    Otherwise all of ``data-path``, anything that ``dataset`` accepts.

    Raises
    ------
    SettingsError
        Where the node config has neither, or a part that does not exist.
    data.DataError
        Where the data cannot be read or divided.
    """
    if "data-path" in node_config:
        own = dataclasses.replace(settings, dataset=str(node_config["data-path"]), train_images=0)
        return load_dataset(own)
    if "partition-id" not in node_config or "num-partitions" not in node_config:
        raise SettingsError(
            "this node has no data: its node config needs data-path, "
            "or partition-id and num-partitions"
        )
    number, parts = (whole(node_config, key) for key in ("partition-id", "num-partitions"))
    if not 0 <= number < parts:
        raise SettingsError(f"partition-id = {number}: must be from 0 to {parts - 1}")
    train, validation = _parts(settings, parts, seed)
    everything = load_dataset(settings)
    return dataclasses.replace(
        everything, train=train[number], validation=validation[number], natural_ids=None
    )


@functools.lru_cache(maxsize=4)
def _parts(settings: DataSettings, parts: int, seed: int) -> tuple[list[Split], list[Split]]:
    whole = load_dataset(settings)
    rows = partition(whole, settings, parts, seed)
    held_out = partition_like(
        whole.validation.labels.numpy(), whole.train.labels.numpy(), rows, seed
    )
    return [whole.train.take(r) for r in rows], [whole.validation.take(r) for r in held_out]


def device_class(node_config: Config, classes: tuple[str, ...]) -> str:
    """Return the node's device class: its own word, else in turn by ``partition-id``."""
    if "device-class" in node_config:
        return str(node_config["device-class"])
    if classes and "partition-id" in node_config:
        return classes[whole(node_config, "partition-id") % len(classes)]
    return ""


def flag(node_config: Config, key: str) -> bool:
    """Return a yes or no of the node config, no where it is not there.

    Raises
    ------
    SettingsError
        Where it is neither.
    """
    value = node_config.get(key, False)
    if not isinstance(value, bool):
        raise SettingsError(f"{key} = {value!r} in the node config: must be true or false")
    return value


def whole(node_config: Config, key: str) -> int:
    """Return a whole number of the node config.

    Raises
    ------
    SettingsError
        Where it is none.
    """
    value = node_config[key]
    if isinstance(value, bool) or not str(value).removeprefix("-").isdecimal():
        raise SettingsError(f"{key} = {value!r} in the node config: must be a whole number")
    return int(value)
