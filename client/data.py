"""A node's data and device class: the only place where simulation and deployment differ."""

import dataclasses
import functools
import re
from pathlib import Path

from superfednas.client.allow import NotAllowedError, Pins
from superfednas.client.node_config import (
    CLASSES,
    DATA_CACHE,
    NAMED_DATA,
    Config,
    has_data_path,
    part,
    whole,
)
from superfednas.data import Dataset, DataSettings, Split, load_dataset, partition, partition_like
from superfednas.data.images.classes import in_order
from superfednas.data.natural import own_rows
from superfednas.wire.claims import shown

_MODULE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def within_reach(
    node_config: Config, settings: DataSettings, pins: Pins, *, on_a_node: bool
) -> DataSettings:
    """Return a run's data settings with nothing in them that reaches into the node's files.

    A node has a folder of its own for downloads. Without data of its own it takes a part of a data
    set that has a name, or that a module gives; a path, or any set of the hub, only where its
    operator allows that very one.

    Parameters
    ----------
    node_config, settings
        The node's config, and what the run says of the data.
    pins
        What the operator allows.
    on_a_node
        False in a simulation, whose data are those of the person who started it.

    Raises
    ------
    NotAllowedError
        For a data set that this node must not look for.
    """
    if DATA_CACHE in node_config:
        settings = dataclasses.replace(settings, data_cache=str(node_config[DATA_CACHE]))
    elif on_a_node:
        settings = dataclasses.replace(settings, data_cache=DataSettings().data_cache)
    if has_data_path(node_config):
        return settings
    name = settings.dataset
    pins.hold("dataset", name)
    if on_a_node and not pins.of("dataset") and not _harmless(name):
        raise NotAllowedError(
            f"dataset = {shown(name)}: this node reads {', '.join(NAMED_DATA)}; files, folders and "
            "sets of the hub only if its operator names them in its node config, as data-path or "
            "as dataset=… in allow"
        )
    return settings


def _harmless(dataset: str) -> bool:
    if dataset in (*NAMED_DATA, "none"):
        return True
    # What looks like a module may be a folder, and would be read as one.
    return bool(_MODULE.fullmatch(dataset)) and not Path(dataset).exists()


def node_data(node_config: Config, settings: DataSettings, seed: int) -> Dataset:
    """Return the node's own training, validation and test images.

    With ``partition-id`` and ``num-partitions`` in the node config, a part of the run's data set:
    training images by ``partition``, validation and test images in the same proportions of classes
    (``natural``: the person's own).
    Otherwise all of ``data-path``, which may be anything that ``dataset`` accepts, its classes in
    the order of ``classes``.

    Raises
    ------
    superfednas.client.node_config.NodeConfigError
        If the node config has neither, or names a part that does not exist.
    superfednas.data.DataError
        If the data cannot be read or divided.
    """
    if has_data_path(node_config):
        own = dataclasses.replace(settings, dataset=str(node_config["data-path"]), train_images=0)
        data = load_dataset(own)
        return in_order(data, str(node_config[CLASSES])) if CLASSES in node_config else data
    number, parts = part(node_config)
    return _parts(settings, parts, seed)[number]


@functools.lru_cache(maxsize=4)
def _parts(settings: DataSettings, parts: int, seed: int) -> list[Dataset]:
    everything = load_dataset(settings)
    strata = everything.strata(everything.train)
    rows = partition(everything, settings, parts, seed)

    def alike(split: Split) -> list[Split]:
        drawn = partition_like(everything.strata(split), strata, rows, seed)
        return [split.take(part) for part in drawn]

    if settings.partition == "natural":
        own = own_rows(everything, rows, settings.validation_share)
    else:
        own = list(zip(rows, alike(everything.validation), alike(everything.test), strict=True))
    bare = dataclasses.replace(everything, ids=None, held_ids={})
    return [
        dataclasses.replace(
            bare, train=everything.train.take(train), validation=validation, test=test
        )
        for train, validation, test in own
    ]


def device_class(node_config: Config, classes: tuple[str, ...]) -> str:
    """Return the node's device class: the one it names, else in turn by ``partition-id``."""
    if "device-class" in node_config:
        return str(node_config["device-class"])
    if classes and "partition-id" in node_config:
        return classes[whole(node_config, "partition-id") % len(classes)]
    return ""
