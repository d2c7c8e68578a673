"""All settings of a run: one frozen dataclass, fully checked before anything starts."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from superfednas.common.settings import Scalar, SettingsError, flatten, parse, setting
from superfednas.data import DataSettings
from superfednas.server.assign.policies import Policy
from superfednas.server.assign.schedules import SCHEDULES, Schedule, warmed_up
from superfednas.server.average.rules import Rule, rule_of
from superfednas.server.methods import ASSIGNMENTS, DEFAULT, METHODS
from superfednas.server.methods.base import Method, Setup
from superfednas.server.named import named_class
from superfednas.supernet import Architecture, SearchSpace
from superfednas.supernet.ladder import ladder
from superfednas.wire.flat import WIRE_DTYPES
from superfednas.wire.order import (
    PRECISIONS,
    FineTuning,
    LocalSubnets,
    LocalTraining,
    Privacy,
    SecureAggregation,
    SpaceOptions,
)
from superfednas.wire.secure.cells import FEW

SCHEDULE_NAMES = tuple(SCHEDULES)
_IN_PLACE = ("resume", "from-run", "score-run", "personalise-run")


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
        "what the settings that are auto stand for: "
        + ", ".join(METHODS)
        + " (`superfednas methods` says what each does), or module:Class of your own",
    )
    assignment: str = setting(
        "auto",
        "who trains which subnet: auto (the method's), "
        + ", ".join(ASSIGNMENTS)
        + ", or module:Class of your own",
    )
    architecture: str = setting(
        "largest",
        "the one architecture of assignment 'fixed': largest, smallest, random:SEED, JSON",
    )
    device_classes: str = setting(
        "",
        "simulated budgets, assigned to clients in turn: name:share of the largest's MACs, as in "
        "'phone:0.3,tablet:0.6,hub:1'",
    )
    averaging: str = setting(
        "auto",
        "auto (the method's), maxnet (the largest weighs β), overlap (all weigh the same), or "
        "against bad replies, without β: trimmed-mean, median, clip (long updates are shortened), "
        "defl (outliers in gradient norms and directions are left out or weigh less), history "
        "(clients whose changes over the rounds agree or stand out are left out: collusion); these "
        "five hold a round's replies in memory, and history the supernet once for each client of "
        "the last ten rounds; or module:Name of your own",
    )
    trim_share: float = setting(
        0.2, "trimmed-mean: share of replies cut from either end, at least one", above=0, high=0.5
    )
    max_change: float = setting(
        0.0,
        "largest change of weights (L2 norm) that is accepted in a reply; 0: what the order's "
        "steps, lr and clip-norm allow, and no more than ten times the weights' own norm",
        low=0,
    )
    weighting: str = setting(
        "auto",
        "uniform, examples (weights are multiplied by each client's share of images), or auto (the "
        "method's)",
        choices=("auto", "uniform", "examples"),
    )
    max_share: float = setting(
        0.0,
        "weighting examples: the largest share of a round's images that counts for one client, "
        "which declares their number itself; 0 is no bound",
        low=0,
        high=1,
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
        "number format on the wire; 16 bits halve a round's bytes, and replies then carry the "
        "change, so that the server's weights stay float32",
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
        1_000_000_000, "bytes of early replies kept in memory; more go to disk", low=0
    )
    round_timeout: float = setting(
        3600.0, "seconds after which a round ends without the missing replies", above=0
    )
    over_sample: int = setting(
        0, "clients asked beyond clients-per-round, in place of those that will not answer", low=0
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
        "what to do with replies after their round has closed: drop, or fold (into the next round)",
        choices=("drop", "fold"),
    )
    staleness: float = setting(
        0.5, "factor of a late reply's weight for every round of delay", above=0, high=1
    )
    max_failures: int = setting(
        3, "rounds in a row without a usable reply after which a node is rested; 0 is never", low=0
    )
    rest_rounds: int = setting(
        10,
        "rounds that such a node is left out, and that a node still busy with an earlier round "
        "is waited for before it is asked again",
        low=1,
    )
    node_timeout: float = setting(120.0, "seconds to wait for enough nodes", above=0)
    min_nodes: int = setting(
        0, "nodes to wait for before the first round; 0 is clients-per-round", low=0
    )

    run_dir: str = setting("", "run folder; empty is ~/.superfednas/runs/<time>-<space>")
    resume: str = setting("", "run folder to resume; its own settings then apply")
    keep_going: bool = setting(False, "resume run-dir if it holds an unfinished run, else start it")
    app_signature: str = setting(
        "", "who signed this app, for nodes that run no other: made by `superfednas run`"
    )
    from_run: str = setting("", "run folder whose weights to start from")
    score_run: str = setting(
        "",
        "run folder whose subnets the nodes score on their own validation images, instead of "
        "training; its own settings then apply",
    )
    score_subnets: int = setting(40, "subnets that the nodes score", low=8)
    personalise_run: str = setting(
        "",
        "run folder whose subnets the nodes fine-tune on their own images and keep, instead of "
        "training; its own settings then apply",
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
    secure: SecureAggregation = field(default_factory=SecureAggregation)
    data: DataSettings = field(default_factory=DataSettings)

    def __post_init__(self) -> None:
        """Replace ``auto`` by the method's values, so that no other code needs to know it."""
        method: type[Method] = named_class("method", self.method, METHODS, Method)
        of = {**DEFAULT.settings, **method.settings}
        if rule_of(_of(self.averaging, of["averaging"])).alike:
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
        """β over rounds counted from 0, or None for averages without it."""
        if not self.rule.beta:
            return None
        end = self.beta_end or 1 / self.clients_per_round
        return SCHEDULES[self.beta_schedule](self.beta_start, end, self.beta_share * self.rounds)

    @property
    def enough_replies(self) -> int:
        """Usable replies after which a round may close; 0 waits for all."""
        return self.min_replies or (self.clients_per_round if self.over_sample else 0)

    def lr(self) -> Schedule:
        """Return the learning rate over rounds counted from 0."""
        rounds = max(0, self.rounds - self.warmup_rounds)
        schedule = SCHEDULES[self.lr_schedule](self.local.lr, self.lr_end, rounds)
        return warmed_up(schedule, self.local.lr, self.warmup_rounds)

    @property
    def rule(self) -> Rule:
        """The rule of averaging."""
        return rule_of(self.averaging)

    @property
    def assigns(self) -> type[Policy]:
        """The kind of assignment policy."""
        kind: type[Policy] = named_class("assignment", self.assignment, ASSIGNMENTS, Policy)
        return kind

    def policy(self, space: SearchSpace) -> Policy:
        """Return the assignment policy; ``ValueError`` if the space does not suit it."""
        policy = self.assigns.configured(space, self.seed, self.architecture, self.subnets)
        if self.subnets.local_subnets == "widths":
            self.subnets.levels(space)  # refuse what no client could do before any starts
        return policy

    def for_space(self, space: SearchSpace) -> Method:
        """Return the method, ready to give orders; ``ValueError`` as :meth:`policy`."""
        if self.subnets.distil == "on" and not space.task.distils:
            raise SettingsError(
                f"distil = 'on' (of method {self.method!r}, unless given): task "
                f"{space.task.reference} has no distillation; distil = 'off' trains without"
            )
        by_examples = self.weighting == "examples"
        kind: type[Method] = named_class("method", self.method, METHODS, Method)
        method = kind(Setup(space, self.policy(space), by_examples, flatten(self)))
        if not isinstance(getattr(method, "setup", None), Setup):
            raise SettingsError(
                f"method {self.method!r}: its __init__ must call super().__init__(setup)"
            )
        return method

    @property
    def only_levels(self) -> bool:
        """Whether clients get width levels alone."""
        return self.assigns.levels

    def rungs(self, space: SearchSpace) -> dict[str, Architecture]:
        """Return the architectures to evaluate, by rising cost: those that are trained.

        For a method of width levels these are its levels, else the ladder.
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


def check_settings(values: Mapping[str, Scalar]) -> Settings:
    """Parse a run-config and check its keys against one another.

    Raises
    ------
    SettingsError
        One sentence that names the key, its value and what is allowed.
    """
    settings = parse(Settings, values)
    _ = settings.assigns
    _ = settings.device_shares
    exclusive = [key for key in _IN_PLACE if values.get(key)]
    if len(exclusive) > 1:
        given = " and ".join(f"{key} = {values[key]!r}" for key in exclusive)
        raise SettingsError(f"{given}: only one of them can be given")
    if settings.keep_going and not settings.run_dir:
        raise SettingsError("keep-going needs a run-dir to resume")
    asked = settings.clients_per_round + settings.over_sample
    if settings.min_replies > asked:
        raise SettingsError(
            f"min-replies = {settings.min_replies}: only {asked} clients are asked a round "
            "(clients-per-round and over-sample)"
        )
    if settings.rule.alike and settings.late_replies == "fold":
        raise SettingsError(
            f"late-replies = 'fold': averaging = {settings.averaging!r} counts every reply once, "
            "so late ones can only be dropped"
        )
    if settings.rule.alike and settings.weighting != "uniform":
        raise SettingsError(
            f"weighting = {settings.weighting!r}: averaging = {settings.averaging!r} counts every "
            "reply once, so weighting must be 'uniform'"
        )
    if settings.max_share and settings.weighting != "examples":
        raise SettingsError(
            f"max-share = {settings.max_share:g}: only weighting = 'examples' weighs by images"
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
    if settings.secure.secure_aggregation:
        _check_secure(settings)
    if settings.data.dataset == "none" and settings.evaluate_on == "server":
        raise SettingsError("evaluate-on = 'server' needs data on the server; dataset is 'none'")
    return settings


def _check_secure(s: Settings) -> None:
    """Refuse what needs single replies, which secure aggregation hides."""
    for key, value, allowed in (
        ("averaging", s.averaging, ("maxnet", "overlap")),
        ("wire-dtype", s.wire_dtype, ("float32",)),
        ("late-replies", s.late_replies, ("drop",)),
        ("max-change", s.max_change, (0.0,)),
    ):
        if value not in allowed:
            only = " or ".join(map(repr, allowed))
            raise SettingsError(f"{key} = {value!r}: secure-aggregation allows only {only}")
    if s.clients_per_round < FEW:
        raise SettingsError(
            f"clients-per-round = {s.clients_per_round}: secure-aggregation needs at least {FEW}, "
            "since a sum of fewer hides nobody"
        )
