"""The wire contract: what the server orders, what a client answers, and the one flat array of both.

A message carries one flat array: the subnet's tensors in ``state_dict`` order at ``wire-dtype``; a
reply in 16 bits what training changed of them (:func:`sends_change`).
Names, shapes and offsets are rebuilt on both sides from the architecture, so nothing else travels
and nothing is pickled. Everything beside the array is a scalar of a flat config.
"""

import functools
import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from supernet.architecture import Shape
from supernet.config import setting
from supernet.norms import NORMS
from supernet.registry import load_space
from supernet.space import SearchSpace

PROTOCOL = 3
ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
SUBNET = "subnet"
STILL_THERE = "still-there"  # a query that asks for nothing but an answer
ROOMS = ("supernet", "data", "nas", "client", "server")

# Only float32 travels as numbers. What has 16 bits is opaque to numpy, so that nothing can compute
# with it on its way: a mod would take bfloat16's bits for integers, a reply's change for weights.
_WIRE: dict[str, tuple[torch.dtype, np.dtype]] = {
    "float32": (torch.float32, np.dtype(np.float32)),
    "float16": (torch.float16, np.dtype("V2")),
    "bfloat16": (torch.bfloat16, np.dtype("V2")),
}
WIRE_DTYPES = tuple(_WIRE)
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class SpaceOptions:
    """Which search space, for which images."""

    space: str = setting(
        "resnet-tiny", "search space: a name of `superfednas spaces`, or module:Class"
    )
    norm: str = setting(
        "group", "norm layers: group (8 channels a group), none, batch", choices=NORMS
    )
    num_classes: int = setting(0, "classes; 0 takes the data set's", low=0)
    in_channels: int = setting(0, "image channels; 0 takes the data set's", low=0)
    image_size: int = setting(0, "image side in pixels; 0 takes the data set's", low=0)

    def load(self) -> SearchSpace:
        """Return the space; raises ``ValueError`` naming a wrong option."""
        return load_space(
            self.space,
            num_classes=self.num_classes,
            in_channels=self.in_channels,
            image_size=self.image_size,
            norm=self.norm,
        )


@dataclass(frozen=True)
class LocalTraining:
    """One client's SGD within a round (SuperFedNAS, appendix: lr .1, momentum 0, decay 0)."""

    lr: float = setting(0.1, "learning rate (of the first round, where it is scheduled)", above=0)
    momentum: float = setting(0.0, "SGD momentum, fresh every round", low=0, high=0.999)
    weight_decay: float = setting(0.0, "L2 weight decay", low=0)
    clip_norm: float = setting(1.0, "largest gradient norm; 0 does not clip", low=0)
    local_epochs: int = setting(3, "epochs over a client's own images a round", low=1)
    local_steps: int = setting(0, "steps a round in place of epochs; 0 uses local-epochs", low=0)
    batch_size: int = setting(16, "images a step", low=1)


@dataclass(frozen=True)
class Privacy:
    """Differential privacy of what a client sends (:func:`client.privacy.privatise`)."""

    dp_clip: float = setting(
        0.0,
        "differential privacy: longest change (L2 norm over its whole subnet) that a client sends; "
        "longer ones are shortened; 0 is off",
        low=0,
    )
    dp_noise: float = setting(
        0.0,
        "s.d. of the noise that a client adds to every number it sends, in units of dp-clip (the "
        "noise multiplier); a run with noise cannot be repeated to the bit",
        low=0,
    )


@dataclass(frozen=True)
class TrainOrder:
    """What the server asks of a client: the config of a message to train, or only to score."""

    protocol: int = setting(PROTOCOL, "version of this contract")
    round: int = setting(0, "the round, from 1", low=0)
    seed: int = setting(0, "the run's seed", low=0)
    architecture: str = setting("", "the assigned architecture, JSON")
    evaluate: str = setting("[]", "architectures to evaluate as received, JSON list of JSON")
    wire_dtype: str = setting("float32", "number format of the flat array", choices=WIRE_DTYPES)
    torch_threads: int = setting(1, "threads of a client's torch", low=1)
    device: str = setting("auto", "where clients train", choices=("auto", "cpu", "cuda"))
    precision: str = setting("float32", "of a client's matrix products", choices=PRECISIONS)
    space: SpaceOptions = field(default_factory=SpaceOptions)
    local: LocalTraining = field(default_factory=LocalTraining)
    privacy: Privacy = field(default_factory=Privacy)


def numel(shapes: Mapping[str, Shape]) -> int:
    """Return how many numbers a flat array of these tensors holds."""
    return sum(map(math.prod, shapes.values()))


def numpy_dtype(wire_dtype: str) -> np.dtype:
    """Return the dtype that a flat array has at ``wire_dtype``."""
    return _WIRE[wire_dtype][1]


def sends_change(wire_dtype: str) -> bool:
    """Say whether a reply holds what training changed, in place of the new weights.

    In 16 bits it does: rounding is then relative to the change, and the server's own float32
    weights, which the change is added to, are never rounded. Whole weights in bfloat16 lose every
    change below half a step (.2 to .4% of the weight).
    """
    return wire_dtype != "float32"


def pack(
    tensors: Mapping[str, torch.Tensor],
    wire_dtype: str = "float32",
    into: np.ndarray | None = None,
) -> np.ndarray:
    """Lay tensors one behind the other, in their order, into one flat array.

    Parameters
    ----------
    tensors
        The tensors.
    wire_dtype
        The number format of the array.
    into
        A flat array of the right length that becomes the result; by default a new one.

    Raises
    ------
    ValueError
        As :func:`unpack`, for ``into``, and where it cannot be written to.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if into is None:
        into = np.empty(numel(shapes), numpy_dtype(wire_dtype))
    if not into.flags.writeable:
        raise ValueError("an array that cannot be written to holds no result")
    for name, view in unpack(into, shapes, wire_dtype).items():
        view.copy_(tensors[name].detach())
    return into


def unpack(
    flat: np.ndarray, shapes: Mapping[str, Shape], wire_dtype: str = "float32"
) -> dict[str, torch.Tensor]:
    """Return the tensors of a flat array as views into it.

    torch knows no tensors that are not to be written to: the views of an array that cannot be are.

    Raises
    ------
    ValueError
        Where dtype, dimensions or length are not those of ``shapes`` at ``wire_dtype``.
    """
    number, expected = _WIRE[wire_dtype]
    if flat.ndim != 1 or flat.size != numel(shapes):
        raise ValueError(f"shape {flat.shape} in place of ({numel(shapes)},)")
    if flat.dtype != expected:
        raise ValueError(f"dtype {flat.dtype} in place of {expected} for wire-dtype {wire_dtype}")
    whole = _tensor(flat.view(np.uint8)).view(number)
    parts = torch.split_with_sizes(whole, list(map(math.prod, shapes.values())))
    return {
        name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor, without torch's warning about one that cannot be written to."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def encode_list(texts: list[str]) -> str:
    """Join texts (architectures) to one scalar."""
    return json.dumps(texts)


def decode_list(text: str) -> list[str]:
    """Undo :func:`encode_list`."""
    return [str(item) for item in json.loads(text)]


def source_root() -> Path:
    """Return the folder whose rooms this process runs."""
    return Path(__file__).resolve().parent.parent


@functools.cache
def source_fingerprint() -> str:
    """Hash the code of the rooms that a round runs through.

    Rooms have common names (``client``, ``server``), which another app's packages can shadow, and a
    simulation can pick up a stale checkout: server and client compare fingerprints.
    """
    digest = hashlib.sha256()
    root = source_root()
    for room in ROOMS:
        for path in sorted((root / room).glob("**/*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
