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

from supernet.architecture import Architecture, Shape
from supernet.config import setting
from supernet.norms import NORMS
from supernet.registry import load_space
from supernet.space import SearchSpace

PROTOCOL = 4
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
DEFAULT_SPACE = "resnet-tiny"
SANDWICH = 3  # subnets a step from which the smallest and the largest are among them


@dataclass(frozen=True)
class SpaceOptions:
    """Which search space, for which images."""

    space: str = setting(
        "auto",
        "search space: a name of `superfednas spaces`, or module:Class; auto is the method's "
        "(resnet-tiny for maxnet and fedavg, mobilenetv1-tiny for the others)",
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
            DEFAULT_SPACE if self.space == "auto" else self.space,
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
    label_smoothing: float = setting(
        0.0, "share of every label that is spread over all classes", low=0, high=0.99
    )
    proximal: float = setting(
        0.0,
        "FedProx: weight of half the squared distance to the weights received; 0 is off",
        low=0,
    )


@dataclass(frozen=True)
class LocalSubnets:
    """Which subnets a client trains of the weights that it was sent.

    Received whole, or several subnets on shared weights (FedSup: Kim and Yun, §3.3; FjORD: arXiv
    2102.13451, algorithm 1). ``auto`` and 0 stand for what the run's method says; an order holds
    what they stand for (one that says nothing means what was received).
    """

    local_subnets: str = setting(
        "auto",
        "what a client trains: received (all it was sent), space (subnets drawn inside it at every "
        "step), widths (as space, from the width levels), auto (the method's)",
        choices=("auto", "received", "space", "widths"),
    )
    subnets_per_step: int = setting(
        0, "subnets whose gradients a step adds up (FedSup's M); 0 is the method's", low=0, high=64
    )
    local_sandwich: bool = setting(
        True, "with three or more subnets a step, the smallest and the largest are among them"
    )
    distil: str = setting(
        "auto",
        "in-place distillation: a step's other subnets learn the largest's predictions in place of "
        "labels (on, off, auto: the method's)",
        choices=("auto", "on", "off"),
    )
    width_levels: str = setting(
        "", "comma list of the shares of width in use, as in '0.25,0.5,1'; empty is all of a space"
    )

    @property
    def drawn(self) -> bool:
        """Whether clients draw what they train, in place of all that they received."""
        return self.local_subnets in ("space", "widths")

    @property
    def largest_first(self) -> bool:
        """Whether every step trains the largest too: it goes first, the smallest second."""
        return self.drawn and self.local_sandwich and self.subnets_per_step >= SANDWICH

    def levels(self, space: SearchSpace) -> list[Architecture]:
        """Return the subnets of these width levels, rising.

        Raises
        ------
        ValueError
            Where the space has no elastic output widths, or not these.
        """
        try:
            asked = [float(part) for part in self.width_levels.split(",") if part.strip()]
        except ValueError:
            raise ValueError(
                f"width-levels = {self.width_levels!r}: must be a comma list of numbers"
            ) from None
        if not space.width_shares:
            raise ValueError(
                f"space = {space.name!r}: it has no elastic output widths, which methods of width "
                "levels need; mobilenetv1-tiny, mobilenetv1 and resnet10-26-wide have"
            )
        try:
            return [space.at_width(share) for share in sorted(set(asked or space.width_shares))]
        except ValueError as error:
            raise ValueError(f"width-levels = {self.width_levels!r}: {error}") from None

    def named_levels(self, space: SearchSpace) -> dict[str, Architecture]:
        """Return :meth:`levels` by name: ``width .25`` and so on, ``largest``."""
        share_of = {space.at_width(share): share for share in space.width_shares}
        return {
            "largest" if arch == space.largest else f"width {share_of[arch]:g}": arch
            for arch in self.levels(space)
        }


@dataclass(frozen=True)
class FineTuning:
    """How a client makes a subnet its own after training (Kim and Yun, §4.1)."""

    fine_tune: str = setting(
        "head",
        "what personalisation trains: head (the classifier), body (all but that), all",
        choices=("head", "body", "all"),
    )
    fine_tune_epochs: int = setting(
        5, "epochs of personalisation on a client's own training images", low=1
    )
    fine_tune_lr: float = setting(
        0.0, "learning rate of personalisation; 0 is lr. There is no momentum in it", low=0
    )


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
    subnets: LocalSubnets = field(default_factory=LocalSubnets)
    personalise: bool = setting(False, "fine-tune the subnets to evaluate, and score them again")
    keep: str = setting(
        "", "name under which the node keeps in its state-dir what it personalised; empty: not"
    )
    tuning: FineTuning = field(default_factory=FineTuning)
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
