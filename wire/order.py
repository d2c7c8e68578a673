"""The order: what the server asks of a client, as the scalars of a flat config.

The weights are sent with it as one flat array (``superfednas.wire.flat``). What an architecture
implies (names, shapes, offsets) is not sent.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from superfednas.common.settings import SettingsError, setting
from superfednas.supernet.architecture import Architecture
from superfednas.supernet.norms import NORMS
from superfednas.supernet.registry import load_space
from superfednas.supernet.space import SearchSpace
from superfednas.tasks import Task
from superfednas.tasks.images import Images
from superfednas.wire.flat import WIRE_DTYPES

PROTOCOL = 5
ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
SUBNET = "subnet"
STILL_THERE = "still-there"  # a query that asks for nothing but an answer
SECURE = "secure-aggregation"  # a setting that a node is told before it is asked to train
PRECISIONS = ("float32", "bfloat16")
DEFAULT_SPACE = "resnet-tiny"
# Far above what is trained; a file that says more would only use up this machine's memory.
_MOST_CLASSES, _MOST_CHANNELS, _LONGEST_SIDE = 500_000, 4096, 4096
SANDWICH = 3  # from this many subnets a step on, the smallest and the largest are among them


_IMAGES = tuple(Images().options)
FROM_THE_DATA = tuple(key.replace("_", "-") for key in (*_IMAGES, "task", "task_options"))


@dataclass(frozen=True)
class SpaceOptions:
    """Which search space, for which task."""

    space: str = setting(
        "auto",
        "search space: a name of `superfednas spaces`, or module:Class; auto is the method's "
        "(resnet-tiny for maxnet and fedavg, mobilenetv1-tiny for the others)",
    )
    norm: str = setting(
        "group", "norm layers: group (8 channels a group), none, batch", choices=NORMS
    )
    num_classes: int = setting(0, "classes; 0 takes the data set's", low=0, high=_MOST_CLASSES)
    in_channels: int = setting(
        0, "image channels; 0 takes the data set's", low=0, high=_MOST_CHANNELS
    )
    image_size: int = setting(
        0, "image side in pixels; 0 takes the data set's", low=0, high=_LONGEST_SIDE
    )
    task: str = setting(
        "", "what is learned: images, or module:Class of your own; empty takes the data set's"
    )
    task_options: str = setting(
        "", "options of a task of your own, a JSON object; empty takes the data set's"
    )

    def load(self) -> SearchSpace:
        """Return the space; a wrong option raises a ``ValueError`` that names it."""
        options = asdict(self)
        name = options.pop("space")
        return load_space(DEFAULT_SPACE if name == "auto" else name, **options)

    def of(self, task: Task, dataset: str) -> "SpaceOptions":
        """Return these options for the task of a data set of this name.

        Raises
        ------
        SettingsError
            If what is given already is another task's.
        """
        own = dict(task.options)
        found: dict[str, Any] = {"task": task.reference, "task_options": ""}
        for key in [key for key in own if key in _IMAGES]:
            found[key] = own.pop(key)
        if own:
            found["task_options"] = json.dumps(own)
        for key, value in found.items():
            given = getattr(self, key)
            if given and given != value:
                raise SettingsError(
                    f"{key.replace('_', '-')} = {given}: the data set {dataset!r} has {value!r}"
                )
        return replace(self, **found)

    @property
    def missing(self) -> list[str]:
        """The keys without which networks that are to read images cannot be built."""
        if self.task not in ("", Images.name):
            return []
        return [key.replace("_", "-") for key in _IMAGES if not getattr(self, key)]


@dataclass(frozen=True)
class LocalTraining:
    """One client's SGD within a round (SuperFedNAS, appendix: lr .1, momentum 0, decay 0)."""

    lr: float = setting(0.1, "learning rate (of the first round, if scheduled)", above=0)
    momentum: float = setting(0.0, "SGD momentum, fresh every round", low=0, high=0.999)
    weight_decay: float = setting(0.0, "L2 weight decay", low=0)
    clip_norm: float = setting(1.0, "largest gradient norm; 0 does not clip", low=0)
    local_epochs: int = setting(3, "epochs over a client's own images a round", low=1)
    local_steps: int = setting(0, "steps a round instead of epochs; 0 uses local-epochs", low=0)
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
    """Which subnets a client trains within the weights it was sent.

    Either the received subnet as a whole, or several subnets on shared weights (FedSup: Kim and
    Yun, §3.3; FjORD: arXiv 2102.13451, algorithm 1). ``auto`` and 0 stand for the values of the
    run's method; an order holds those values (an order without them means the received subnet).
    """

    local_subnets: str = setting(
        "auto",
        "what a client trains: received (all it was sent), space (subnets drawn inside it in every "
        "step), widths (as space, from the width levels), auto (the method's)",
        choices=("auto", "received", "space", "widths"),
    )
    subnets_per_step: int = setting(
        0, "number of subnets per step (FedSup's M); 0 is the method's", low=0, high=64
    )
    local_sandwich: bool = setting(
        True, "with three or more subnets a step, include the smallest and the largest"
    )
    distil: str = setting(
        "auto",
        "in-place distillation: a step's other subnets learn the largest's predictions instead of "
        "labels (on, off, auto: the method's)",
        choices=("auto", "on", "off"),
    )
    width_levels: str = setting(
        "", "comma list of the shares of width to use, as in '0.25,0.5,1'; empty is all of a space"
    )

    @property
    def drawn(self) -> bool:
        """Whether clients draw the subnets they train, instead of training all they received."""
        return self.local_subnets in ("space", "widths")

    @property
    def largest_first(self) -> bool:
        """Whether every step also trains the largest (first) and the smallest (second)."""
        return self.drawn and self.local_sandwich and self.subnets_per_step >= SANDWICH

    def levels(self, space: SearchSpace) -> list[Architecture]:
        """Return the architectures of these width levels, in rising order.

        Raises
        ------
        ValueError
            If the space has no elastic output widths, or not these.
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
    """Personalisation: how a client fine-tunes a subnet after training (Kim and Yun, §4.1)."""

    fine_tune: str = setting(
        "head",
        "what personalisation trains: head (the classifier), body (everything else), all",
        choices=("head", "body", "all"),
    )
    fine_tune_epochs: int = setting(
        5, "epochs of personalisation on a client's own training images", low=1
    )
    fine_tune_lr: float = setting(
        0.0, "learning rate of personalisation, which has no momentum; 0 is lr", low=0
    )


@dataclass(frozen=True)
class Privacy:
    """Differential privacy of what a client sends (``client.privacy.privatise``)."""

    dp_clip: float = setting(
        0.0,
        "differential privacy: largest change (L2 norm over its whole subnet) that a client sends; "
        "larger ones are scaled down; 0 is off",
        low=0,
    )
    dp_noise: float = setting(
        0.0,
        "s.d. of the noise that a client adds to every number it sends, in units of dp-clip (the "
        "noise multiplier); a run with noise cannot be repeated to the bit",
        low=0,
    )


@dataclass(frozen=True)
class SecureAggregation:
    """Replies that the server can only read as their sum (docs/privacy.md)."""

    secure_aggregation: bool = setting(
        False,
        "clients mask what they send, so that the server learns the sum alone; bounds on single "
        "replies, robust averages, late folding and 16-bit formats are then off",
    )
    secure_clip: float = setting(
        10.0,
        "secure aggregation: largest change (L2 norm over its whole subnet) that a client sends; "
        "larger ones are scaled down, by the client itself",
        low=1e-6,
        high=1e6,
    )
    secure_few: bool = setting(
        False,
        "secure aggregation: also send parts of the supernet that fewer than three clients of a "
        "round hold, which hides little or nothing; else they stay as they are",
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
        "", "name under which the node keeps its personalised subnets in its state-dir; empty: none"
    )
    tuning: FineTuning = field(default_factory=FineTuning)
    privacy: Privacy = field(default_factory=Privacy)


def encode_list(texts: list[str]) -> str:
    """Join strings (architectures) into one scalar."""
    return json.dumps(texts)


def decode_list(text: str) -> list[str]:
    """Undo :func:`encode_list`."""
    return [str(item) for item in json.loads(text)]
