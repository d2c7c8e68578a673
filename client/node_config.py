"""The node config: its keys, and what each may hold. Nothing here imports torch or Flower.

``superfednas node`` checks it before it connects to anything; the ClientApp reads it again in every
message, since a plain ``flower-supernode`` checks nothing.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

Value = bool | int | float | str
Config = Mapping[str, Value]
KEYS = {
    "name": "the node's stable name; without it its partition-id",
    "data-path": "its data: FILE.npz, a folder of images, or what dataset takes",
    "partition-id": "without data-path: its part of the run's own data, from 0,",
    "num-partitions": "and into how many parts these are divided",
    "max-macs": "its budget: it gets no subnet of more multiply-accumulates,",
    "max-params": "nor of more parameters (superfednas probe measures both)",
    "device-class": "a budget by name, of the run's device-classes",
    "state-dir": "folder for what stays on the node: its personalised subnets",
    "tell-classes": "true: it tells how many training images of each class it has",
}
EXAMPLE = 'name="kitchen" data-path="/data/kitchen.npz"'
NAMED_DATA = ("digits", "cifar10", "cifar100", "pathmnist", "pneumoniamnist")
_COUNTS = ("num-partitions", "max-macs", "max-params")


class NodeConfigError(ValueError):
    """A key or value of a node config that cannot be used; the message says what is allowed."""


def check_node_config(config: Config) -> None:
    """Check all that can be known of a node config before there is a run.

    Raises
    ------
    NodeConfigError
        For the first key or value that cannot be used.
    """
    for problem in unknown_keys(config):
        raise NodeConfigError(problem)
    node_name(config)
    for key in ("name", "data-path", "device-class", "state-dir"):
        value = config.get(key, "-")
        text = isinstance(value, str) or (key == "name" and type(value) is int)
        if not text or not str(value).strip():
            raise NodeConfigError(f'{key} = {_shown(value)}: must be a text, as in {key}="…"')
    if "state-dir" in config:
        _check_state_dir(str(config["state-dir"]))
    flag(config, "tell-classes")
    for key in _COUNTS:
        if key in config and whole(config, key) < 1:
            raise NodeConfigError(f"{key} = {_shown(config[key])}: must be at least 1")
    if "partition-id" in config:
        whole(config, "partition-id")
    if has_data_path(config):
        _check_data_path(str(config["data-path"]))
    else:
        part(config)


def unknown_keys(config: Config) -> list[str]:
    """Return a sentence for every key that is none of this app's."""
    found = []
    for key, value in config.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(KEYS)}"
            found.append(f"unknown key {key!r} (= {_shown(value)}) in the node config: {hint}")
    return found


def node_name(config: Config) -> str:
    """Return the node's stable name: ``name``, else its ``partition-id``. Node ids are random.

    Raises
    ------
    NodeConfigError
        Where the node config has neither.
    """
    for key in ("name", "partition-id"):
        if key in config:
            return str(config[key])
    raise NodeConfigError(
        f"this node has no name: start it with --node-config '{EXAMPLE}' (or a partition-id)"
    )


def has_data_path(config: Config) -> bool:
    """Say whether a node has data of its own, or else a part of the run's data set.

    Raises
    ------
    NodeConfigError
        Where it has neither.
    """
    if "data-path" in config:
        return True
    if "partition-id" in config and "num-partitions" in config:
        return False
    raise NodeConfigError(
        "this node has no data: its node config needs data-path, or partition-id and num-partitions"
    )


def part(config: Config) -> tuple[int, int]:
    """Return which part of the run's data set is the node's, and of how many.

    Raises
    ------
    NodeConfigError
        Where there is no such part.
    """
    number, parts = whole(config, "partition-id"), whole(config, "num-partitions")
    if not 0 <= number < parts:
        raise NodeConfigError(f"partition-id = {number}: must be from 0 to {parts - 1}")
    return number, parts


def flag(config: Config, key: str) -> bool:
    """Return a yes or no of the node config, no where it is not there.

    Raises
    ------
    NodeConfigError
        Where it is neither.
    """
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise NodeConfigError(f"{key} = {_shown(value)} in the node config: must be true or false")
    return value


def whole(config: Config, key: str) -> int:
    """Return a whole number of the node config.

    Raises
    ------
    NodeConfigError
        Where it is none.
    """
    value = config[key]
    if isinstance(value, bool) or not str(value).removeprefix("-").isdecimal():
        raise NodeConfigError(f"{key} = {_shown(value)} in the node config: must be a whole number")
    return int(value)


def _check_state_dir(text: str) -> None:
    """Check that the folder is there or can be made."""
    path = Path(text).expanduser()
    # Who works for a node may have another current folder.
    if not path.is_absolute():
        raise NodeConfigError(
            f"state-dir = {_shown(text)}: must be an absolute path, or begin with ~"
        )
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise NodeConfigError(
            f"state-dir = {_shown(text)}: it is no folder that this node can write to"
        )


def _check_data_path(text: str) -> None:
    """Check that what ``dataset`` would read is there, as far as that costs nothing."""
    path = Path(text).expanduser()
    if text in NAMED_DATA or text.startswith("hf:"):
        return
    if text.endswith(".npz"):
        there, what = path.is_file(), "no such file on this machine"
    else:
        there = path.is_dir() or (":" in text and "/" not in text)
        what = "no such folder on this machine; a file's name must end with .npz"
    if not there:
        allowed = f"{', '.join(NAMED_DATA)}, hf:NAME and module:function"
        raise NodeConfigError(f"data-path = {_shown(text)}: {what} (also allowed: {allowed})")


def _shown(value: Value) -> str:
    """Return a value as it stands in a node config."""
    return str(value).lower() if isinstance(value, bool) else f"{value!r:.100}"
