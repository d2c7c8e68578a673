"""The node config: its keys and their values. Nothing here imports torch or Flower.

``superfednas node`` checks it before it connects; the ClientApp reads it again with every message,
because a plain ``flower-supernode`` checks nothing.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

from superfednas.client.allow import NotAllowedError, PinError, Pins
from superfednas.nas.cost.cost import COSTS
from superfednas.wire.claims import ClaimError, count_of, limit_of, name_of, shown

Value = bool | int | float | str
Config = Mapping[str, Value]
LIMITS = {f"max-{name}": cost.title for name, cost in COSTS.items() if cost.told}
"""Keys of a node's budget: a limit for every cost that an architecture alone tells."""
ALLOW_MODULES = "allow-modules"
_PROBED = ("max-macs", "max-params")
DATA_CACHE, TELL_SCORES, CLASSES = "data-cache", "tell-scores", "classes"
PEER_KEYS = "peer-keys"
KEYS = {
    "name": "the node's stable name; by default its partition-id",
    "data-path": "its data: FILE.npz, a folder of images, or what dataset takes",
    CLASSES: "the run's classes in order: NAME, or NAME=its own name",
    "partition-id": "without data-path: its part of the run's own data, from 0,",
    "num-partitions": "and the number of parts",
    "max-macs": "its budget: it gets no subnet with more multiply-accumulates,",
    "max-params": "nor with more parameters (superfednas probe measures both)",
    **{key: f"a limit: {title}" for key, title in LIMITS.items() if key not in _PROBED},
    "device-class": "a budget by name, from the run's device-classes",
    "state-dir": "folder for what stays on the node: its personalised subnets",
    "tell-classes": "true: it reports its number of training images of each class",
    TELL_SCORES: "false: it reports no loss and no score of any subnet",
    "allow": "what a run may ask of it, in pins (below); the rest is refused",
    DATA_CACHE: "folder for data sets that it downloads (~/.superfednas/data)",
    "node-key": "secure aggregation: file of the key that signs for it",
    PEER_KEYS: "it trains only masked: folder of NAME.pub that it believes",
    ALLOW_MODULES: "modules of its own that a run may name (several: comma)",
}
EXAMPLE = 'name="kitchen" data-path="/data/kitchen.npz"'
_DIGITS = 20
NAMED_DATA = ("digits", "cifar10", "cifar100", "pathmnist", "pneumoniamnist")


class NodeConfigError(ValueError):
    """An invalid key or value in a node config; the message says what is allowed."""


def check_node_config(config: Config) -> None:
    """Check everything about a node config that can be checked without a run.

    Raises
    ------
    NodeConfigError
        For the first invalid key or value.
    """
    for problem in unknown_keys(config):
        raise NodeConfigError(problem)
    node_name(config)
    texts = ("name", "data-path", "device-class", "state-dir", "allow")
    for key in (*texts, CLASSES, DATA_CACHE, ALLOW_MODULES, "node-key", PEER_KEYS):
        value = config.get(key, "-")
        text = isinstance(value, str) or (key == "name" and type(value) is int)
        if not text or not str(value).strip():
            raise NodeConfigError(f'{key} = {shown(value)}: must be a text, as in {key}="…"')
    for key in ("state-dir", DATA_CACHE):
        if key in config:
            _check_folder(key, str(config[key]))
    flag(config, "tell-classes")
    tells_scores(config)
    pins_of(config)
    for key in {"node-key", PEER_KEYS} & config.keys():
        _check_there(config, key)
    try:
        if "device-class" in config:
            name_of("device-class", config["device-class"])
        if "num-partitions" in config:
            count_of("num-partitions", whole(config, "num-partitions"), 1)
        for key in LIMITS.keys() & config.keys():
            limit_of(key, whole(config, key))
    except ClaimError as error:
        raise NodeConfigError(str(error)) from None
    if "partition-id" in config:
        whole(config, "partition-id")
    if has_data_path(config):
        _check_data_path(str(config["data-path"]))
    else:
        if CLASSES in config:
            raise NodeConfigError(f"{CLASSES}: without data-path the classes are the run's own")
        part(config)


def unknown_keys(config: Config) -> list[str]:
    """Return a sentence for every key that this app does not know."""
    found = []
    for key, value in config.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(KEYS)}"
            found.append(f"unknown key {key!r} (= {shown(value)}) in the node config: {hint}")
    return found


def node_name(config: Config) -> str:
    """Return the node's stable name: ``name``, else its ``partition-id``. Node ids are random.

    Raises
    ------
    NodeConfigError
        If the node config has neither, or the name is not one that a server takes.
    """
    for key in ("name", "partition-id"):
        if key in config:
            try:
                return name_of(key, str(config[key]))
            except ClaimError as error:
                raise NodeConfigError(str(error)) from None
    raise NodeConfigError(
        f"this node has no name: start it with --node-config '{EXAMPLE}' (or a partition-id)"
    )


def has_data_path(config: Config) -> bool:
    """Return whether a node has its own data rather than a part of the run's data set.

    Raises
    ------
    NodeConfigError
        If it has neither.
    """
    if "data-path" in config:
        return True
    if "partition-id" in config and "num-partitions" in config:
        return False
    raise NodeConfigError(
        "this node has no data: its node config needs data-path, or partition-id and num-partitions"
    )


def part(config: Config) -> tuple[int, int]:
    """Return the number of the node's part of the run's data set, and the number of parts.

    Raises
    ------
    NodeConfigError
        If there is no such part.
    """
    number, parts = whole(config, "partition-id"), whole(config, "num-partitions")
    if not 0 <= number < parts:
        raise NodeConfigError(f"partition-id = {number}: must be from 0 to {parts - 1}")
    return number, parts


def limits_of(config: Config) -> dict[str, int]:
    """Return the node's budget, cost to limit.

    Raises
    ------
    NodeConfigError
        If a limit is no whole number.
    """
    return {key.removeprefix("max-"): whole(config, key) for key in LIMITS.keys() & config.keys()}


def pins_of(config: Config) -> Pins:
    """Return what the node's operator lets a run ask.

    Raises
    ------
    NodeConfigError
        If ``allow`` is not made of pins.
    """
    try:
        return Pins.parse(str(config.get("allow", "")))
    except PinError as error:
        raise NodeConfigError(str(error)) from None


def check_masked(config: Config, *, masked: bool) -> None:
    """Refuse to send weights in plain for an operator who believes the peers, not the server.

    Raises
    ------
    NotAllowedError
        If the node has ``peer-keys`` and what it sends would not be masked.
    """
    if PEER_KEYS in config and not masked:
        raise NotAllowedError(
            "secure-aggregation = false: this node has peer-keys in its node config, and trains "
            "only where the server learns nothing but sums"
        )


def tells_scores(config: Config) -> bool:
    """Return whether the node reports what it measures of subnets on its own examples.

    Raises
    ------
    NodeConfigError
        If ``tell-scores`` is no Boolean.
    """
    return flag(config, TELL_SCORES, missing=True)


def flag(config: Config, key: str, *, missing: bool = False) -> bool:
    """Return a Boolean of the node config, or what stands for a missing one.

    Raises
    ------
    NodeConfigError
        If it is neither.
    """
    value = config.get(key, missing)
    if not isinstance(value, bool):
        raise NodeConfigError(f"{key} = {shown(value)} in the node config: must be true or false")
    return value


def whole(config: Config, key: str) -> int:
    """Return an integer of the node config.

    Raises
    ------
    NodeConfigError
        If it is not one.
    """
    value = config[key]
    if type(value) is int:
        return value
    # Python converts no text of thousands of digits.
    fits = isinstance(value, str) and len(value) <= _DIGITS
    if not fits or not str(value).removeprefix("-").isdecimal():
        raise NodeConfigError(f"{key} = {shown(value)} in the node config: must be a whole number")
    return int(value)


def _check_folder(key: str, text: str) -> None:
    """Check that the folder exists or can be created."""
    path = Path(text).expanduser()
    # A node's worker may have a different current folder.
    if not path.is_absolute():
        raise NodeConfigError(f"{key} = {shown(text)}: must be an absolute path, or begin with ~")
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise NodeConfigError(f"{key} = {shown(text)}: it is no folder that this node can write to")


def _check_there(config: Config, key: str) -> None:
    """Check that a file or folder is there, by a path that means the same in a node's worker."""
    path = Path(str(config[key])).expanduser()
    if not path.is_absolute() or not path.exists():
        raise NodeConfigError(
            f"{key} = {shown(config[key])}: must be the absolute path of what is on this machine"
        )


def _check_data_path(text: str) -> None:
    """Check that the data that ``dataset`` would read exist, as far as that costs nothing."""
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
        raise NodeConfigError(f"data-path = {shown(text)}: {what} (also allowed: {allowed})")
