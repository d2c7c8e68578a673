"""Settings: the defaults are MaxNet's, the two lists of defaults agree, wrong values are named."""

import tomllib
from pathlib import Path

import pytest

from superfednas.common.settings import Scalar, SettingsError, flatten, settings_of
from superfednas.server.app import prepare
from superfednas.server.assign.policies import Fixed, Policy, TrackingSandwich
from superfednas.server.settings import Settings, check_settings
from superfednas.supernet import load_space

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
IN_PROCESS_ONLY = {"clients"}
TINY = load_space("resnet-tiny", in_channels=1, image_size=8)


class Own(TrackingSandwich):
    """A policy of one's own."""


def test_every_key_of_pyproject_has_the_default_of_settings_and_vice_versa() -> None:
    config = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"]
    known = settings_of(Settings).items()
    defaults = {key: known.default for key, known in known if key not in IN_PROCESS_ONLY}
    assert config.keys() == defaults.keys()
    differing = {key for key in config if config[key] != defaults[key]}
    assert not differing
    # A TOML integer in place of a float is an override that Flower would refuse later.
    assert {key for key in config if type(config[key]) is not type(defaults[key])} == set()


def test_what_pyproject_holds_is_accepted_as_a_run_config() -> None:
    config = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"]
    assert check_settings(config) == check_settings({}) == Settings()


def test_the_defaults_are_maxnet() -> None:
    settings = check_settings({})
    assert isinstance(settings.policy(TINY), TrackingSandwich)
    assert (settings.averaging, settings.weighting) == ("maxnet", "uniform")
    assert (settings.beta_schedule, settings.beta_start, settings.beta_share) == (
        "cosine",
        0.9,
        0.8,
    )
    local = settings.local
    assert (local.lr, local.momentum, local.weight_decay, local.clip_norm) == (0.1, 0, 0, 1)
    assert settings.lr_schedule == "constant"


def test_beta_ends_at_one_over_the_clients_unless_told_otherwise() -> None:
    beta = check_settings({"rounds": 100, "clients-per-round": 8}).beta()
    assert beta is not None
    assert beta(0) == 0.9
    assert beta(40) == pytest.approx((0.9 + 1 / 8) / 2)
    assert [beta(t) for t in (80, 99, 100)] == [1 / 8] * 3
    told = check_settings({"rounds": 100, "beta-end": 0.25, "beta-share": 0.5}).beta()
    assert told is not None
    assert told(25) == pytest.approx((0.9 + 0.25) / 2)
    assert told(50) == 0.25
    assert check_settings({"averaging": "overlap"}).beta() is None


def test_the_learning_rate_falls_over_all_rounds() -> None:
    values: dict[str, Scalar] = {"rounds": 10, "lr": 0.4, "lr-schedule": "linear", "lr-end": 0.2}
    lr = check_settings(values).lr()
    assert [lr(t) for t in (0, 5, 10)] == pytest.approx([0.4, 0.3, 0.2])
    assert [check_settings({"lr": 0.4}).lr()(t) for t in (0, 79)] == [0.4, 0.4]


def test_fixed_takes_its_architecture() -> None:
    policy = check_settings({"assignment": "fixed", "architecture": "smallest"}).policy(TINY)
    assert isinstance(policy, Fixed)
    assert policy.arch == TINY.smallest


def test_a_policy_of_ones_own_by_reference() -> None:
    policy: Policy = check_settings({"assignment": f"{__name__}:Own", "seed": 4}).policy(TINY)
    assert type(policy).__name__ == "Own"
    assert policy.seed == 4


def test_device_classes_are_read() -> None:
    settings = check_settings({"device-classes": "phone:0.3, tablet:0.6,hub:1"})
    assert settings.device_shares == {"phone": 0.3, "tablet": 0.6, "hub": 1.0}
    assert check_settings({}).device_shares == {}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"clients-per-rund": 4}, ["'clients-per-rund'", "4", "clients-per-round"]),
        ({"nonsense": "x"}, ["'nonsense'", "'x'", "rounds"]),
        ({"rounds": 0}, ["rounds = 0", "at least 1"]),
        ({"rounds": 2.5}, ["rounds = 2.5", "an integer"]),
        ({"rounds": True}, ["rounds = True", "an integer"]),
        ({"beta-start": 0.0}, ["beta-start = 0.0", "above 0", "at most 1"]),
        ({"beta-end": 1.01}, ["beta-end = 1.01", "at least 0", "at most 1"]),
        ({"beta-share": float("nan")}, ["beta-share = nan", "above 0"]),
        ({"momentum": 1.0}, ["momentum = 1.0", "at most 0.999"]),
        ({"lr": float("inf")}, ["lr = inf", "above 0"]),
        ({"ladder": 51}, ["ladder = 51", "at most 50"]),
        ({"seed": -1}, ["seed = -1", "at least 0"]),
        ({"round-timeout": 0}, ["round-timeout = 0", "above 0"]),
        ({"averaging": "fedavg"}, ["averaging = 'fedavg'", "maxnet", "overlap"]),
        ({"wire-dtype": "float64"}, ["wire-dtype = 'float64'", "float16", "bfloat16"]),
        ({"beta-schedule": "step"}, ["beta-schedule = 'step'", "cosine", "linear", "constant"]),
        ({"norm": "layer"}, ["norm = 'layer'", "group", "none", "batch"]),
        ({"assignment": "roundrobin"}, ["assignment", "'roundrobin'", "tracking-sandwich"]),
        ({"assignment": "nowhere:Policy"}, ["assignment", "'nowhere:Policy'"]),
        (
            {"assignment": "superfednas.server.settings:Settings"},
            ["'superfednas.server.settings:Settings'", "Policy"],
        ),
        ({"device-classes": "phone"}, ["device-classes", "'phone'", "name:share"]),
        ({"device-classes": "phone:x"}, ["device-classes", "'phone:x'", "above 0, at most 1"]),
        ({"device-classes": "hub:1,phone:0"}, ["device-classes", "'phone:0'", "above 0"]),
        ({"device-classes": "phone:1.5"}, ["device-classes", "'phone:1.5'", "at most 1"]),
        ({"device-classes": "phone:nan"}, ["device-classes", "'phone:nan'"]),
        ({"device-classes": ":0.5"}, ["device-classes", "':0.5'"]),
        ({"resume": "/a", "from-run": "/b"}, ["resume", "from-run", "only one"]),
        ({"dp-clip": -0.1}, ["dp-clip = -0.1", "at least 0"]),
        ({"dp-noise": -1.0, "dp-clip": 1.0}, ["dp-noise = -1.0", "at least 0"]),
        ({"dp-noise": 0.5}, ["dp-noise = 0.5", "dp-clip must be above 0"]),
        (
            {"dataset": "none", "evaluate-on": "server"},
            ["evaluate-on", "'server'", "dataset", "'none'"],
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    values: dict[str, Scalar], said: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        check_settings(values)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert [part for part in said if part not in sentence] == []


def test_every_bounded_key_refuses_a_value_just_outside() -> None:
    known = settings_of(Settings)
    assert len(known) > 50
    for key, known_setting in known.items():
        # (bound, step out, step in or onto)
        for bound, outside in (
            (known_setting.low, -1),
            (known_setting.high, 1),
            (known_setting.above, 0),
        ):
            if bound is None:
                continue
            value = known_setting.kind(bound + outside)
            with pytest.raises(SettingsError, match=rf"^{key} = "):
                check_settings({key: value})
        assert flatten(check_settings({key: known_setting.default})) == flatten(Settings())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dataset": "none"}, ["'none'", "num-classes", "in-channels", "image-size"]),
        ({"dataset": "none", "num-classes": 4, "in-channels": 1}, ["'none'", "image-size"]),
        ({"num-classes": 7}, ["num-classes = 7", "'digits'", "10"]),
        ({"space": "resnet-huge"}, ["space = 'resnet-huge'", "resnet-tiny"]),
        ({"assignment": "fixed", "architecture": "biggest"}, ["'biggest'", "largest, smallest"]),
    ],
)
def test_what_the_data_contradict_is_named_before_anything_starts(
    values: dict[str, Scalar], said: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        prepare(values)
    assert [part for part in said if part not in str(caught.value)] == []


def test_a_server_without_data_starts_where_the_sizes_are_given() -> None:
    sizes: dict[str, Scalar] = {"num-classes": 4, "in-channels": 1, "image-size": 8}
    prepared = prepare({"dataset": "none"} | sizes)
    assert prepared.data is None
    assert prepared.state["head.weight"].shape[0] == 4
