"""The methods: what `auto` stands for, what is refused, and each one's averaging by hand."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from superfednas.common.settings import Scalar, SettingsError, flatten, parse
from superfednas.flower.local_grid import LocalGrid
from superfednas.server.app import prepare
from superfednas.server.assign.widths import RollingWidthLevels, WidthLevels
from superfednas.server.methods import METHODS
from superfednas.server.settings import Settings, check_settings
from superfednas.server.strategy import SupernetStrategy
from superfednas.supernet import SPACES, load_space
from superfednas.supernet.families.mobilenet.spaces import MobileNetSpace
from superfednas.tasks.images import Images
from superfednas.wire.order import PROTOCOL
from tests.support.processes import ROOT
from tests.support.training import Quiet, node_configs, order_of, ready, rounds_of

torch.set_num_threads(1)

AUTO = (
    "assignment",
    "averaging",
    "weighting",
    "space",
    "local-subnets",
    "subnets-per-step",
    "distil",
)
LEVELS = "the space 'mobilenetv1-tiny': 0.25, 0.5, 0.75, 1"
MOBILE, RESNET = "mobilenetv1-tiny", "resnet-tiny"
MEANT: dict[str, tuple[Scalar, ...]] = {
    "maxnet": ("tracking-sandwich", "maxnet", "uniform", RESNET, "received", 1, "off"),
    "fedavg": ("fixed", "overlap", "examples", RESNET, "received", 1, "off"),
    "fedsup": ("fixed", "overlap", "examples", MOBILE, "space", 3, "on"),
    "efedsup": ("random", "overlap", "examples", MOBILE, "received", 1, "off"),
    "heterofl": ("width-levels", "overlap", "uniform", MOBILE, "received", 1, "off"),
    "fjord": ("width-levels", "overlap", "examples", MOBILE, "widths", 1, "off"),
    "fedrolex": ("rolling-width-levels", "overlap", "uniform", MOBILE, "received", 1, "off"),
}
# For every key two values, so that one of them is not the method's.
OTHER: dict[str, tuple[Scalar, Scalar]] = {
    "assignment": ("sandwich", "most-data"),
    "averaging": ("maxnet", "overlap"),
    "weighting": ("uniform", "examples"),
    "space": (RESNET, "resnet10-26"),
    "local-subnets": ("received", "space"),
    "subnets-per-step": (2, 1),
    "distil": ("off", "on"),
}
ROBUST = ("trimmed-mean", "median", "clip", "defl", "history")


def of_auto(settings: Settings) -> tuple[Scalar, ...]:
    flat = flatten(settings)
    return tuple(flat[key] for key in AUTO)


# What auto stands for


def test_there_are_seven() -> None:
    assert list(METHODS) == list(MEANT)
    assert {name: method.name for name, method in METHODS.items()} == {n: n for n in METHODS}
    assert check_settings({}).method == "maxnet"
    words = [
        (method.sends, method.trains, method.averages, method.source) for method in METHODS.values()
    ]
    assert len(set(words)) == 7 and all(all(row) for row in words)


@pytest.mark.parametrize("method", MEANT)
def test_auto_is_what_the_method_says(method: str) -> None:
    assert of_auto(Settings(method=method)) == MEANT[method]
    autos: dict[str, Scalar] = dict.fromkeys(AUTO, "auto") | {"subnets-per-step": 0}
    assert check_settings({"method": method, **autos}) == Settings(method=method)


@pytest.mark.parametrize("key", AUTO)
@pytest.mark.parametrize("method", MEANT)
def test_a_value_that_is_given_wins(method: str, key: str) -> None:
    for value in OTHER[key]:
        given: dict[str, Scalar] = {"method": method, key: value}
        expected = dict(zip(AUTO, MEANT[method], strict=True)) | {key: value}
        if key != "distil" and (
            expected["local-subnets"] == "received" or int(expected["subnets-per-step"]) < 3
        ):
            expected["distil"] = "off"
        # Parsed, not checked: two of them contradict each other (below).
        assert of_auto(parse(Settings, given)) == tuple(expected.values())


@pytest.mark.parametrize("averaging", ROBUST)
@pytest.mark.parametrize("method", MEANT)
def test_robust_averaging_weighs_all_alike_unless_told_otherwise(
    method: str, averaging: str
) -> None:
    given: dict[str, Scalar] = {"method": method, "averaging": averaging}
    settings = check_settings(given)
    assert (settings.averaging, settings.weighting) == (averaging, "uniform")
    with pytest.raises(SettingsError, match=r"weighting = 'examples'.* must be 'uniform'"):
        check_settings(given | {"weighting": "examples"})


@pytest.mark.parametrize("method", MEANT)
def test_settings_come_back_as_they_went(method: str) -> None:
    for more in ({}, {"averaging": "median"}, {"subnets-per-step": 2, "rounds": 7}):
        settings = check_settings({"method": method, **more})
        assert "auto" not in of_auto(settings) and settings.subnets.subnets_per_step > 0
        assert parse(Settings, flatten(settings)) == settings
        assert check_settings(flatten(settings)) == settings
        assert flatten(parse(Settings, flatten(settings))) == flatten(settings)
        changed = dataclasses.replace(settings, seed=9)
        assert of_auto(changed) == of_auto(settings)


# What is refused


@pytest.mark.parametrize(
    "values",
    [
        {"method": "maxnet"},
        {"method": "fjord"},
        {"method": "fedsup", "subnets-per-step": 2},
        {"method": "fedsup", "local-sandwich": False},
        {"method": "fedsup", "local-subnets": "received"},
    ],
)
def test_distillation_needs_the_largest_in_every_step(values: dict[str, Scalar]) -> None:
    assert check_settings(values).subnets.distil == "off"
    with pytest.raises(SettingsError) as caught:
        check_settings(values | {"distil": "on"})
    assert str(caught.value) == (
        "distil = 'on': the largest must be among a step's subnets, which takes local-subnets "
        "'space' or 'widths', subnets-per-step of at least 3 and local-sandwich"
    )


@pytest.mark.parametrize("space", [RESNET, "mobilenetv1-tiny-depth", "mobilenetv1-tiny-kernel"])
@pytest.mark.parametrize("method", ["heterofl", "fjord", "fedrolex"])
def test_a_space_without_elastic_widths_is_named(method: str, space: str) -> None:
    with pytest.raises(ValueError) as caught:
        prepare({"method": method, "space": space})
    said = f"space = '{space}': it has no elastic output widths, which methods of width levels need"
    assert str(caught.value).startswith(f"{said}; ")


@pytest.mark.parametrize("method", ["maxnet", "fedavg", "fedsup", "efedsup"])
def test_width_levels_are_refused_where_nobody_has_them(method: str) -> None:
    with pytest.raises(SettingsError, match=r"width-levels = '0.5': only methods of width levels"):
        check_settings({"method": method, "width-levels": "0.5"})


@pytest.mark.parametrize("method", ["heterofl", "fjord", "fedrolex"])
@pytest.mark.parametrize(
    ("levels", "sentence"),
    [
        ("0.25,half", "width-levels = '0.25,half': must be a comma list of numbers"),
        ("0.25;1", "width-levels = '0.25;1': must be a comma list of numbers"),
        (
            "0.3",
            "width-levels = '0.3': width 0.3 is none of " + LEVELS,
        ),
        (
            "1, 2",
            "width-levels = '1, 2': width 2 is none of " + LEVELS,
        ),
        (
            "nan",
            "width-levels = 'nan': width nan is none of " + LEVELS,
        ),
    ],
)
def test_wrong_width_levels(method: str, levels: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        prepare({"method": method, "width-levels": levels})
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("levels", "shares"),
    [("", [0.25, 0.5, 0.75, 1.0]), ("1, .5,0.5,", [0.5, 1.0]), ("0.75", [0.75])],
)
def test_width_levels_are_the_policys_rungs(levels: str, shares: list[float]) -> None:
    space = load_space(MOBILE, in_channels=1, image_size=8)
    for method, kind in (("heterofl", WidthLevels), ("fedrolex", RollingWidthLevels)):
        policy = check_settings({"method": method, "width-levels": levels}).policy(space)
        assert type(policy) is kind
        names = [str(number) for number in range(6)]
        for number in (1, 2, 9):
            assigned = policy.assign(number, names)
            expected = [space.at_width(shares[n % len(shares)]) for n in range(6)]
            assert list(assigned.values()) == expected
        shifts = [policy.shift(number) for number in (1, 2, 9)]
        assert shifts == ([0, 0, 0] if method == "heterofl" else [0, 8, 64])


# The learning rate


def test_the_warm_up_rises_to_lr_and_the_schedule_starts_there() -> None:
    values: dict[str, Scalar] = {"rounds": 100, "warmup-rounds": 20, "lr-schedule": "cosine"}
    lr = check_settings(values | {"lr": 0.1}).lr()
    rising = [0.005 * (t + 1) for t in range(20)]
    assert [lr(t) for t in range(20)] == pytest.approx(rising) and rising[-1] == 0.1
    falling = [lr(20), lr(20 + 80 / 3), lr(60), lr(20 + 160 / 3), lr(100)]
    assert falling == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0], abs=1e-12)
    short = check_settings({"rounds": 5, "warmup-rounds": 10, "lr": 0.1}).lr()
    assert [short(t) for t in (0, 4, 9, 10)] == pytest.approx([0.01, 0.05, 0.1, 0.1])
    without = check_settings({"rounds": 4, "lr-schedule": "linear", "lr": 0.1}).lr()
    assert [without(t) for t in range(5)] == pytest.approx([0.1, 0.075, 0.05, 0.025, 0])


# Averaging by hand


class Pair(MobileNetSpace):
    """Two layers of 8 or 16, and of 12 or 24 channels."""

    name = "pair"
    stem = 8
    widths = (16, 24)
    layers = ((1, 1), (1, 1))
    strides = (1, 1)
    shares = (0.5, 1.0)
    kernels = (3,)


PAIR = Pair(Images(3, 1, 8), "none")
ADDS = {"0": 1.0, "1": 3.0}  # what a client adds to all that it was sent
EXAMPLES = {"0": 1, "1": 3}


class Stub:
    """A ClientApp that trains nothing: it adds a constant of its own to what it was sent."""

    def __init__(self) -> None:
        self.orders: list[dict[str, Any]] = []

    def __call__(self, message: Message, context: Context) -> Message:
        name = str(context.node_config["partition-id"])
        if message.metadata.message_type == "query":
            answer = {"protocol": PROTOCOL, "name": name, "examples": EXAMPLES[name]}
            return Message(RecordDict({"config": ConfigRecord(answer)}), reply_to=message)
        order = dict(message.content.config_records["config"])
        self.orders.append(order)
        flat = message.content.array_records["arrays"]["subnet"].numpy()
        numbers = {"num-examples": EXAMPLES[name], "round": order_of(message), "loss": 0.0}
        content = {
            "arrays": ArrayRecord({"subnet": Array(flat + np.float32(ADDS[name]))}),
            "metrics": MetricRecord(numbers | {"seconds": 0.0, "images": 1, "mac-images": 1}),
            "config": ConfigRecord({"architecture": order["architecture"]}),
        }
        return Message(RecordDict(content), reply_to=message)


def run_stubs(values: Mapping[str, Scalar]) -> tuple[dict[str, np.ndarray], SupernetStrategy, Stub]:
    """Train from nought and return the supernet."""
    sizes: dict[str, Scalar] = {"num-classes": 3, "in-channels": 1, "image-size": 8}
    given = {"dataset": "none", "space": f"{__name__}:Pair", "norm": "none", "rounds": 1}
    given["max-change"] = 1e6  # stubs do not train
    prepared = ready({**sizes, **given, "clients-per-round": 2, **values})
    strategy, stub = SupernetStrategy(prepared.settings, progress=Quiet()), Stub()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in prepared.state.items()}
    grid = LocalGrid(stub, node_configs(2), {}, 1)
    try:
        state = strategy.train(grid, zeros)
    finally:
        grid.close()
    assert all(c["accepted"] for row in rounds_of(strategy) for c in row["clients"])
    return {name: tensor.numpy() for name, tensor in state.items()}, strategy, stub


def weights_of(strategy: SupernetStrategy) -> dict[str, float]:
    return {c["client"]: c["weight"] for c in rounds_of(strategy)[-1]["clients"]}


def check_prefix(state: Mapping[str, np.ndarray], shared: float, rest: float) -> None:
    """Check a state of which the one client held half of all widths, the other all."""
    assert {name: tensor.shape for name, tensor in state.items()} == {
        "stem.conv.weight": (8, 1, 3, 3),
        "stages.0.0.depthwise.weight": (8, 1, 3, 3),
        "stages.0.0.pointwise.weight": (16, 8, 1, 1),
        "stages.1.0.depthwise.weight": (16, 1, 3, 3),
        "stages.1.0.pointwise.weight": (24, 16, 1, 1),
        "head.weight": (3, 24),
        "head.bias": (3,),
    }
    halves: dict[str, tuple[slice, ...]] = {
        "stem.conv.weight": (slice(8),),
        "stages.0.0.depthwise.weight": (slice(8),),
        "stages.0.0.pointwise.weight": (slice(8),),
        "stages.1.0.depthwise.weight": (slice(8),),
        "stages.1.0.pointwise.weight": (slice(12), slice(8)),
        "head.weight": (slice(3), slice(12)),
        "head.bias": (slice(3),),
    }
    for name, tensor in state.items():
        expected = np.full(tensor.shape, float(rest))
        expected[halves[name]] = shared
        np.testing.assert_allclose(tensor, expected, rtol=1e-6, err_msg=name)


def test_heterofl_averages_the_shared_prefix_plainly() -> None:
    state, strategy, _ = run_stubs({"method": "heterofl"})
    check_prefix(state, shared=(1 + 3) / 2, rest=3)
    assert weights_of(strategy) == {"0": 1, "1": 1}


def test_fjord_weighs_the_shared_prefix_by_images() -> None:
    state, strategy, stub = run_stubs({"method": "fjord"})
    check_prefix(state, shared=(1 * 1 + 3 * 3) / 4, rest=3)
    assert weights_of(strategy) == {"0": 0.25, "1": 0.75}
    assert {order["local-subnets"] for order in stub.orders} == {"widths"}


@pytest.mark.parametrize("method", ["fedavg", "fedsup"])
def test_everyone_gets_all_and_counts_by_images(method: str) -> None:
    state, strategy, stub = run_stubs({"method": method})
    for tensor in state.values():
        np.testing.assert_allclose(tensor, np.full(tensor.shape, 2.5), rtol=1e-6)
    assert weights_of(strategy) == {"0": 0.25, "1": 0.75}
    keys = ("local-subnets", "subnets-per-step", "distil", "architecture")
    told = {tuple(order[key] for key in keys) for order in stub.orders}
    how = ("space", 3, "on") if method == "fedsup" else ("received", 1, "off")
    assert told == {(*how, PAIR.largest.to_json())}


def test_efedsup_weighs_the_overlap_of_random_subnets_by_images() -> None:
    seen = set()
    for seed in range(8):
        state, strategy, _ = run_stubs({"method": "efedsup", "seed": seed})
        width = {
            c["client"]: PAIR.parse(c["architecture"]).width  # type: ignore[attr-defined]
            for c in rounds_of(strategy)[0]["clients"]
        }
        held = []
        for name in ("0", "1"):
            (first,), (second,) = width[name]
            held.append(np.zeros((24, 16, 1, 1)))
            held[-1][:second, :first] = 1
        zero, one = held
        mean = np.select(
            [(zero > 0) & (one > 0), zero > 0, one > 0], [(1 * 1 + 3 * 3) / 4, 1.0, 3.0], 0.0
        )
        np.testing.assert_allclose(state["stages.1.0.pointwise.weight"], mean, rtol=1e-6)
        np.testing.assert_allclose(state["head.bias"], [2.5] * 3, rtol=1e-6)
        seen |= set(mean.ravel().tolist())
    assert seen == {0.0, 1.0, 2.5, 3.0}


# Which of a layer's 16 and 24 channels half a width holds in rounds 1 to 3.
ROLLED = {
    16: [range(8), range(8, 16), range(8)],
    24: [range(12), range(8, 20), [*range(16, 24), *range(4)]],
}


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_fedrolex_rolls_its_windows_over_all_channels(rounds: int) -> None:
    """Both clients hold half: what a window covers grows by their mean, 2, in that round."""
    values: dict[str, Scalar] = {"method": "fedrolex", "width-levels": "0.5", "rounds": rounds}
    state, strategy, _ = run_stubs(values)
    expected = {name: np.zeros(tensor.shape) for name, tensor in state.items()}
    for number in range(rounds):
        first, second = ROLLED[16][number], ROLLED[24][number]
        for name in ("stem.conv.weight", "stages.0.0.depthwise.weight", "head.bias"):
            expected[name] += 2
        expected["stages.0.0.pointwise.weight"][list(first)] += 2
        expected["stages.1.0.depthwise.weight"][list(first)] += 2
        expected["stages.1.0.pointwise.weight"][np.ix_(list(second), list(first))] += 2
        expected["head.weight"][:, list(second)] += 2
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)
    assert weights_of(strategy) == {"0": 1, "1": 1}


def test_fedrolex_meets_a_whole_client_where_its_window_is() -> None:
    """The first client holds channels 0:8 in round 1 and 8:16 in round 2, the second all."""
    for rounds, low, high in ((1, 2, 3), (2, 2 + 3, 3 + 2), (3, 5 + 2, 5 + 3)):
        state, _, _ = run_stubs({"method": "fedrolex", "rounds": rounds})
        pointwise = state["stages.0.0.pointwise.weight"][:, 0, 0, 0]
        # Where both are it grows by their mean, 2; where the second is alone, by 3.
        np.testing.assert_array_equal(pointwise, [low] * 8 + [high] * 8)


class Back(RollingWidthLevels):
    """Windows that move in the first round only."""

    def shift(self, round: int) -> int:  # noqa: A002
        return 8 if round == 1 else 0


def test_windows_that_come_back_leave_no_trace() -> None:
    values: dict[str, Scalar] = {"assignment": f"{__name__}:Back", "width-levels": "0.5"}
    for rounds, low, high in ((1, 0, 2), (2, 2, 2), (3, 4, 2)):
        state, _, _ = run_stubs({"method": "fedrolex", "rounds": rounds, **values})
        pointwise = state["stages.0.0.pointwise.weight"][:, 0, 0, 0]
        np.testing.assert_array_equal(pointwise, [low] * 8 + [high] * 8)


# What is written down


def test_the_readmes_table_says_what_the_methods_say() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for method in METHODS.values():
        name = f"[`{method.name}`](server/methods/{method.name}.py)"
        name += " (default)" if method.name == Settings().method else ""
        cells = [name, method.source, method.sends, method.trains, method.averages]
        assert f"| {' | '.join(cells)} |" in readme
        assert (ROOT / "server" / "methods" / f"{method.name}.py").is_file()


def test_the_page_of_methods_says_what_auto_stands_for() -> None:
    page = (ROOT / "docs" / "methods.md").read_text("utf-8")
    keys = re.search(r"^\| method \| (.*) \|$", page, re.MULTILINE)
    assert keys is not None
    for name in METHODS:
        flat = flatten(Settings(method=name))
        stands = [str(flat[key.strip("`")]) for key in keys.group(1).split(" | ")]
        assert f"| `{name}` | {' | '.join(stands)} |" in page


@pytest.mark.parametrize("name", [name for name in SPACES if name.startswith("mobilenet")])
def test_the_page_of_methods_says_what_the_spaces_hold(name: str) -> None:
    page, of = (ROOT / "docs" / "methods.md").read_text("utf-8"), load_space(name)
    ends = of.smallest, of.largest
    macs = " to ".join(f"{of.macs(arch) / 1e6:.2f}" for arch in ends)
    params = " to ".join(f"{of.params(arch):,}" for arch in ends)
    assert f"| `{name}` | {of.size:,} | {macs} | {params} |" in page
