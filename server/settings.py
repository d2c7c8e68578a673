"""Every setting of a run: one frozen dataclass, checked whole before anything starts."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from data import DataSettings
from nas.ladder import ladder
from server.assignment import POLICIES, Fixed, Policy
from server.methods import DEFAULT, METHOD_POLICIES, METHODS
from server.methods.heterofl import WidthLevels
from server.schedules import SCHEDULES, Schedule, warmed_up
from supernet import Architecture, SearchSpace
from supernet.config import Scalar, SettingsError, parse, setting
from supernet.registry import import_object
from supernet.wire import (
    PRECISIONS,
    WIRE_DTYPES,
    FineTuning,
    LocalSubnets,
    LocalTraining,
    Privacy,
    SpaceOptions,
)

SCHEDULE_NAMES = tuple(SCHEDULES)
_IN_PLACE = ("resume", "from-run", "score-run", "personalise-run")
ROBUST = ("trimmed-mean", "median", "clip", "defl")
AVERAGINGS = ("maxnet", "overlap", *ROBUST)


@dataclass(frozen=True)
class Settings:
    """A run's settings; keys are the field names in kebab-case (``flwr run --run-config``)."""

    rounds: int = setting(100, "rounds to train", low=1)
    clients_per_round: int = setting(5, "clients sampled a round (the paper's K)", low=1)
    clients: int = setting(
        10, "clients of an in-process run (`flwr run` takes num-supernodes)", low=1
    )
    seed: int = setting(0, "seed of every random choice of the run", low=0)

    method: str = setting(
        DEFAULT.name,
        "what the settings that are auto stand for; `superfednas methods` says what each does",
        choices=tuple(METHODS),
    )
    assignment: str = setting(
        "auto",
        "who trains which subnet: auto (the method's), "
        + ", ".join((*POLICIES, *METHOD_POLICIES))
        + ", or module:Class of your own",
    )
    architecture: str = setting(
        "largest",
        "the one architecture of assignment 'fixed': largest, smallest, random:SEED, JSON",
    )
    device_classes: str = setting(
        "",
        "simulated budgets, clients taking them in turn: name:share of the largest's MACs, as in "
        "'phone:0.3,tablet:0.6,hub:1'",
    )
    averaging: str = setting(
        "auto",
        "auto (the method's), maxnet (the largest weighs β), overlap (all weigh the same), or "
        "against bad replies, without β: trimmed-mean, median, clip (long updates are shortened), "
        "defl (outliers of gradient norms and directions are left out or weigh less); these four "
        "hold a round's replies in memory, clients-per-round times a subnet's bytes",
        choices=("auto", *AVERAGINGS),
    )
    trim_share: float = setting(
        0.2, "trimmed-mean: share of replies cut from either end, at least one", above=0, high=0.5
    )
    weighting: str = setting(
        "auto",
        "uniform, examples (weights are multiplied by each client's share of images), or auto (the "
        "method's)",
        choices=("auto", "uniform", "examples"),
    )
    beta_schedule: str = setting("cosine", "how β falls", choices=SCHEDULE_NAMES)
    beta_start: float = setting(0.9, "β of the first round", above=0, high=1)
    beta_end: float = setting(
        0.0, "β at the end of its schedule; 0 is 1/clients-per-round", low=0, high=1
    )
    beta_share: float = setting(0.8, "share of the rounds over which β falls", above=0, high=1)

    lr_schedule: str = setting("constant", "learning rate over rounds", choices=SCHEDULE_NAMES)
    lr_end: float = setting(0.0, "learning rate after the last round of its schedule", low=0)
    warmup_rounds: int = setting(
        0, "rounds over which the learning rate rises to lr, before its schedule begins", low=0
    )

    evaluate_every: int = setting(5, "rounds between evaluations of the ladder; 0 is never", low=0)
    evaluate_on: str = setting(
        "auto",
        "server (its validation split), clients (theirs, within the training exchange), or auto: "
        "the server where `dataset` gives it data",
        choices=("auto", "server", "clients"),
    )
    ladder: int = setting(5, "subnets on the ladder, smallest and largest included", low=2, high=50)

    wire_dtype: str = setting(
        "float32",
        "number format on the wire; 16 bits halve a round's bytes, and replies then carry what "
        "training changed, so that the server's weights stay float32",
        choices=WIRE_DTYPES,
    )
    torch_threads: int = setting(1, "threads of a client's torch", low=1)
    device: str = setting("auto", "where clients train", choices=("auto", "cpu", "cuda"))
    precision: str = setting(
        "float32",
        "number format of a client's matrix products and convolutions on a GPU (on the CPU it is "
        "float32); with bfloat16 weights, gradients and evaluation stay float32",
        choices=PRECISIONS,
    )
    fold_order: str = setting(
        "assignment",
        "assignment (repeatable to the bit) or arrival (no waiting, sums differ in the last bits)",
        choices=("assignment", "arrival"),
    )
    hold_back: int = setting(
        1_000_000_000, "bytes of replies ahead of their turn kept in memory; more go to disk", low=0
    )
    round_timeout: float = setting(
        3600.0, "seconds after which a round goes on without a reply", above=0
    )
    over_sample: int = setting(
        0, "clients asked a round beyond clients-per-round, for those that will not answer", low=0
    )
    min_replies: int = setting(
        0,
        "usable replies after which a round closes; 0 waits for all, with over-sample for "
        "clients-per-round",
        low=0,
    )
    min_weight: float = setting(
        0.0,
        "share of the round's weight after which it closes, together with min-replies",
        low=0,
        high=1,
    )
    late_replies: str = setting(
        "drop",
        "what becomes of a reply after its round has closed: drop, or fold (into the next round)",
        choices=("drop", "fold"),
    )
    staleness: float = setting(
        0.5, "factor of a late reply's weight for every round that it is late", above=0, high=1
    )
    max_failures: int = setting(
        3, "rounds in a row without a usable reply after which a node rests; 0 is never", low=0
    )
    rest_rounds: int = setting(
        10,
        "rounds that such a node is left out, and that a node still at work on an earlier round "
        "is waited for before it is asked again",
        low=1,
    )
    node_timeout: float = setting(120.0, "seconds to wait for enough nodes", above=0)
    min_nodes: int = setting(
        0, "nodes to wait for before the first round; 0 is clients-per-round", low=0
    )

    run_dir: str = setting("", "run folder; empty is ~/.superfednas/runs/<time>-<space>")
    resume: str = setting("", "run folder to go on with; its own settings then count")
    keep_going: bool = setting(
        False, "go on with run-dir where it holds an unfinished run, else start it"
    )
    from_run: str = setting("", "run folder whose weights to start from")
    score_run: str = setting(
        "",
        "run folder whose subnets the nodes score on their own validation images, in place of "
        "training; its own settings then count",
    )
    score_subnets: int = setting(40, "subnets that the nodes score", low=8)
    personalise_run: str = setting(
        "",
        "run folder whose subnets the nodes fine-tune on their own images and keep, in place of "
        "training; its own settings then count",
    )
    personal_subnets: str = setting(
        "ladder",
        "which of them: ladder, widths (the width levels), a number of random ones (nodes then "
        "only report), or one architecture",
    )
    checkpoint_every: int = setting(1, "rounds between checkpoints", low=1)
    keep_checkpoints: int = setting(3, "checkpoints kept", low=1)

    space: SpaceOptions = field(default_factory=SpaceOptions)
    local: LocalTraining = field(default_factory=LocalTraining)
    subnets: LocalSubnets = field(default_factory=LocalSubnets)
    tuning: FineTuning = field(default_factory=FineTuning)
    privacy: Privacy = field(default_factory=Privacy)
    data: DataSettings = field(default_factory=DataSettings)

    def __post_init__(self) -> None:
        """Put the method's values in place of ``auto``, so that nobody else needs to know of it."""
        of = {**DEFAULT.settings, **METHODS[self.method].settings}
        if self.averaging in ROBUST:
            of["weighting"] = "uniform"
        own, space = self.subnets, self.space
        subnets = replace(
            own,
            local_subnets=_of(own.local_subnets, of["local-subnets"]),
            subnets_per_step=own.subnets_per_step or int(of["subnets-per-step"]),
        )
        distil = of["distil"] if subnets.largest_first else "off"
        subnets = replace(subnets, distil=_of(own.distil, distil))
        for name, value in {
            "assignment": _of(self.assignment, of["assignment"]),
            "averaging": _of(self.averaging, of["averaging"]),
            "weighting": _of(self.weighting, of["weighting"]),
            "space": replace(space, space=_of(space.space, of["space"])),
            "subnets": subnets,
        }.items():
            object.__setattr__(self, name, value)

    def beta(self) -> Schedule | None:
        """β over rounds counted from 0, or None for averages that have none."""
        if self.averaging != "maxnet":
            return None
        end = self.beta_end or 1 / self.clients_per_round
        return SCHEDULES[self.beta_schedule](self.beta_start, end, self.beta_share * self.rounds)

    @property
    def enough_replies(self) -> int:
        """Usable replies after which a round may close; 0 is all of them."""
        return self.min_replies or (self.clients_per_round if self.over_sample else 0)

    def lr(self) -> Schedule:
        """Return the learning rate over rounds counted from 0."""
        rounds = max(0, self.rounds - self.warmup_rounds)
        schedule = SCHEDULES[self.lr_schedule](self.local.lr, self.lr_end, rounds)
        return warmed_up(schedule, self.local.lr, self.warmup_rounds)

    def policy(self, space: SearchSpace) -> Policy:
        """Return the assignment policy; ``ValueError`` where the space is not one for it."""
        if self.assignment == "fixed":
            return Fixed(space, self.seed, space.parse(self.architecture))
        kind = _policy_class(self.assignment)
        if issubclass(kind, WidthLevels):
            return kind(space, self.seed, self.subnets.levels(space))
        if self.subnets.local_subnets == "widths":
            self.subnets.levels(space)  # what no client could do is said before any starts
        return kind(space, self.seed)

    @property
    def only_levels(self) -> bool:
        """Whether clients get width levels alone."""
        return issubclass(_policy_class(self.assignment), WidthLevels)

    def rungs(self, space: SearchSpace) -> dict[str, Architecture]:
        """Return the subnets that evaluations look at, by rising cost: those that are trained.

        Of a method of width levels these levels, else the ladder.
        """
        if self.only_levels:
            return self.subnets.named_levels(space)
        return ladder(space, self.ladder)

    @functools.cached_property
    def device_shares(self) -> dict[str, float]:
        """Device class to share of the largest's MACs."""
        shares = {}
        for entry in filter(None, self.device_classes.split(",")):
            name, _, share = entry.strip().partition(":")
            try:
                shares[name] = float(share)
            except ValueError:
                shares[name] = 0.0
            if not name or not 0 < shares[name] <= 1:
                raise SettingsError(
                    f"device-classes: {entry!r} must be name:share with a share above 0, at most 1"
                )
        return shares


def _of(given: str, stands_for: Scalar) -> Any:
    return stands_for if given == "auto" else given


def _policy_class(name: str) -> type[Policy]:
    known = {**POLICIES, **METHOD_POLICIES}
    if name in known:
        return known[name]
    if ":" not in name:
        raise SettingsError(
            f"assignment = {name!r}: must be one of {', '.join(known)}, or module:Class"
        )
    try:
        found = import_object(name, "assignment")
    except ValueError as error:
        raise SettingsError(str(error)) from error
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise SettingsError(f"assignment {name!r} is no subclass of server.assignment.Policy")
    return found


def check_settings(values: Mapping[str, Scalar]) -> Settings:
    """Parse a run-config and check what one key alone cannot show.

    Raises
    ------
    SettingsError
        One sentence that names the key, its value and what is allowed.
    """
    settings = parse(Settings, values)
    _policy_class(settings.assignment)
    _ = settings.device_shares
    exclusive = [key for key in _IN_PLACE if values.get(key)]
    if len(exclusive) > 1:
        given = " and ".join(f"{key} = {values[key]!r}" for key in exclusive)
        raise SettingsError(f"{given}: only one of them can be given")
    if settings.keep_going and not settings.run_dir:
        raise SettingsError("keep-going needs a run-dir to go on with")
    asked = settings.clients_per_round + settings.over_sample
    if settings.min_replies > asked:
        raise SettingsError(
            f"min-replies = {settings.min_replies}: only {asked} clients are asked a round "
            "(clients-per-round and over-sample)"
        )
    if settings.averaging in ROBUST and settings.late_replies == "fold":
        raise SettingsError(
            f"late-replies = 'fold': averaging = {settings.averaging!r} counts every reply once, "
            "so late ones can only be dropped"
        )
    if settings.averaging in ROBUST and settings.weighting != "uniform":
        raise SettingsError(
            f"weighting = {settings.weighting!r}: averaging = {settings.averaging!r} counts every "
            "reply once, so weighting must be 'uniform'"
        )
    widths = settings.only_levels or settings.subnets.local_subnets == "widths"
    if settings.subnets.width_levels and not widths:
        raise SettingsError(
            f"width-levels = {settings.subnets.width_levels!r}: only methods of width levels have "
            "them (heterofl, fjord, fedrolex), or local-subnets = 'widths'"
        )
    if settings.subnets.distil == "on" and not settings.subnets.largest_first:
        raise SettingsError(
            "distil = 'on': the largest must be among a step's subnets, which takes local-subnets "
            "'space' or 'widths', subnets-per-step of at least 3 and local-sandwich"
        )
    if settings.privacy.dp_noise and not settings.privacy.dp_clip:
        raise SettingsError(
            f"dp-noise = {settings.privacy.dp_noise}: noise is counted in units of dp-clip, which "
            "is 0 (off); dp-clip must be above 0"
        )
    if settings.data.dataset == "none" and settings.evaluate_on == "server":
        raise SettingsError("evaluate-on = 'server' needs data on the server; dataset is 'none'")
    return settings
