"""Every method in short runs on digits; which subnets a client draws."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from superfednas.client.data import node_data
from superfednas.client.objective import Objective
from superfednas.client.shared_weights import SharedWeights, sampler
from superfednas.client.subnet_client import SubnetClient
from superfednas.client.training import train as local_train
from superfednas.common.settings import Scalar, flatten
from superfednas.common.streams import Purpose, stream
from superfednas.nas.score.tallies import score, subnet_module
from superfednas.records.rows import RoundRow
from superfednas.server.methods import METHODS
from superfednas.server.settings import check_settings
from superfednas.supernet import Architecture, SearchSpace, extract
from superfednas.supernet.boxes import pieces
from superfednas.supernet.families.mobilenet.spaces import MobileNetV1Tiny
from superfednas.wire.flat import pack, unpack
from superfednas.wire.order import (
    LocalSubnets,
    LocalTraining,
    SpaceOptions,
    TrainOrder,
    decode_list,
)
from tests.support.rows import lines
from tests.support.strategies import noisy_state, small_dataset, space
from tests.support.training import (
    Quiet,
    Recorder,
    full_run,
    node_configs,
    order_of,
    ready,
    rounds_of,
    same,
    timeless,
    train,
)

torch.set_num_threads(1)

MOBILE, RESNET = "mobilenetv1-tiny", "resnet-tiny"
SHORT: dict[str, Scalar] = {"rounds": 2, "clients-per-round": 4, "local-steps": 2}


class Single(MobileNetV1Tiny):
    """A space of one network."""

    name = "single"
    elastic = ()


class Interrupted(Exception):  # noqa: N818
    """In place of a kill."""


class Interrupting(Quiet):
    """Stop once the row of round 2 has been written, before its checkpoint is."""

    def round(self, row: RoundRow) -> None:
        if row.round == 2:
            raise Interrupted


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: str) -> None:
    strategy = train({**SHORT, "method": method, "evaluate-every": 1, "ladder": 3})
    first, last = rounds_of(strategy)
    assert strategy.space.name == check_settings({"method": method}).space.space
    for row in (first, last):
        assert len(row["clients"]) == 4
        for client in row["clients"]:
            assert client["accepted"] and client["reason"] is None
            assert client["images"] == 2 * 8 and client["mac_images"] > 0
            assert math.isfinite(client["loss"])
            whole = client["macs"] * client["images"]
            if method == "fedsup":  # the whole, the smallest, and one more
                least = strategy.space.macs(strategy.space.smallest) * client["images"]
                assert whole + 2 * least <= client["mac_images"] <= 2 * whole + least
            elif method == "fjord":
                widths = strategy.settings.subnets.levels(strategy.space)
                assert strategy.space.macs(widths[0]) * 16 <= client["mac_images"] <= whole
            else:
                assert client["mac_images"] == whole
    evaluations = [row for row in lines(strategy.rows) if row["kind"] == "evaluation"]
    assert [row["round"] for row in evaluations] == [1, 2]
    for row in evaluations:
        assert [rung["name"] for rung in row["ladder"]] == list(strategy.ladder)
        for rung in row["ladder"]:
            assert 0 <= rung["accuracy"] <= 1 and 0 < rung["loss"] < 100
    before = strategy.space.init(3)
    moved = [name for name in before if not torch.equal(before[name], strategy.state[name])]
    assert len(moved) > len(before) / 2
    assert all(torch.isfinite(tensor).all() for tensor in strategy.state.values())


def test_fedrolex_at_half_precision_on_the_wire_lands_where_its_windows_are() -> None:
    values: dict[str, Scalar] = {**SHORT, "method": "fedrolex", "wire-dtype": "bfloat16"}
    recorder, first = Recorder(), train({**values, "rounds": 1}).state
    strategy = train(values, recorder)
    for row in rounds_of(strategy):
        for client in row["clients"]:
            assert client["accepted"] and client["bytes_up"] == 2 * client["params"]
    of, last = strategy.space, rounds_of(strategy)[1]
    count = {name: torch.zeros_like(tensor) for name, tensor in first.items()}
    change = {name: torch.zeros_like(tensor) for name, tensor in first.items()}
    for client in last["clients"]:
        arch = of.parse(client["architecture"])
        flat = recorder.flat(2, client["client"])
        for name, tensor in unpack(flat, of.shapes(arch), "bfloat16").items():
            for outer, within in pieces(of.rolled(arch, 8)[name]):
                count[name][outer] += 1
                change[name][outer] += tensor[within].float()
    for name, tensor in strategy.state.items():
        expected = first[name] + change[name] / count[name]
        assert count[name].min() >= 1
        assert torch.allclose(tensor, expected, rtol=0, atol=1e-6), name
    assert max(float(tensor.abs().max()) for tensor in change.values()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedsup", "fedrolex"])
def test_a_resumed_run_ends_as_the_unbroken_one(method: str, tmp_path: Path) -> None:
    values: dict[str, Scalar] = {**SHORT, "method": method, "rounds": 3, "evaluate-every": 2}
    unbroken = full_run(tmp_path / "unbroken", {**values, "ladder": 2})
    folder = tmp_path / "broken"
    with pytest.raises(Interrupted):
        full_run(folder, {**values, "ladder": 2}, progress=Interrupting())
    progress = Quiet()
    resumed = full_run(folder, {"resume": str(folder), "run-dir": ""}, progress=progress)
    assert ("resuming", "after round 1") in progress
    assert same(resumed.weights()[0], unbroken.weights()[0])
    assert timeless(lines(resumed.rows())) == timeless(lines(unbroken.rows()))
    assert resumed.settings == unbroken.settings | {"run-dir": str(folder)}
    assert resumed.settings["method"] == method


def test_windows_that_have_moved_score_nothing_but_themselves() -> None:
    values: dict[str, Scalar] = {**SHORT, "method": "fedrolex", "evaluate-every": 1, "ladder": 3}
    recorder = Recorder()
    strategy = train({**values, "evaluate-on": "clients"}, recorder)
    of = strategy.space
    ladder = [arch.to_json() for arch in strategy.ladder.values()]
    asked: dict[int, list[bool]] = {1: [], 2: []}
    for message in recorder.orders:
        if message.metadata.message_type != "train":
            continue
        config, number = message.content.config_records["config"], order_of(message)
        own = str(config["architecture"])
        alone = number == 2 and of.parse(own) != of.largest
        assert decode_list(str(config["evaluate"])) == [own, *([] if alone else ladder)]
        asked[number].append(alone)
    assert {number: sorted(alone) for number, alone in asked.items()} == {
        1: [False] * 4,
        2: [False, True, True, True],
    }
    # Who holds all scores the supernet as it was after the first round.
    earlier = train({**values, "rounds": 1, "evaluate-every": 0})
    settings = ready(values).settings
    data = node_data(node_configs(4)[4], settings.data, settings.seed)
    reply = recorder.sent[2, "3"].content.config_records["config"]
    rows = dict(json.loads(str(reply["evaluation"])))
    assert list(rows) == [0, 1, 2, 3, 4]
    for index, arch in enumerate(strategy.ladder.values(), start=1):
        module = subnet_module(of, earlier.state, arch)
        assert rows[index] == pytest.approx(score(module, data, data.validation).sums, rel=1e-5)
    second = [row for row in lines(strategy.rows) if row["kind"] == "evaluation"][1]
    assert {rung["examples"] for rung in second["ladder"]} == {len(data.validation)}
    # The others score what they were sent: a subnet with a score of its own.
    shares = [client["own_accuracy"] for client in rounds_of(strategy)[1]["clients"]]
    assert all(0 <= share <= 1 for share in shares)


def test_fedsup_of_one_network_is_fedavg() -> None:
    one: dict[str, Scalar] = {**SHORT, "space": f"{__name__}:Single"}
    fedavg = train({**one, "method": "fedavg"})
    assert fedavg.space.size == 1
    fedsup = train({**one, "method": "fedsup", "subnets-per-step": 1, "distil": "off"})
    assert fedsup.settings.subnets.local_subnets == "space"
    assert same(fedsup.state, fedavg.state) and not same(fedsup.state, fedavg.space.init(3))
    assert timeless(lines(fedsup.rows)) == timeless(lines(fedavg.rows))


# Which subnets a client draws


def draws(
    of: SearchSpace, outer: Architecture, steps: int = 40, seed: int = 0, **subnets: Any
) -> list[list[Architecture]]:
    draw = sampler(of, outer, LocalSubnets(**subnets), np.random.default_rng(seed))
    return [draw() for _ in range(steps)]


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("which", ["largest", "random:3"])
@pytest.mark.parametrize("name", [MOBILE, RESNET])
def test_a_sandwich_is_largest_smallest_and_draws(name: str, which: str, count: int) -> None:
    of = space(name)
    outer = of.parse(which)
    steps = draws(of, outer, local_subnets="space", subnets_per_step=count)
    for step in steps:
        assert step[:2] == [outer, of.smallest] and len(step) == count
    drawn = [arch for step in steps for arch in step[2:]]
    assert all(of.contains(outer, arch) for arch in drawn)
    assert len(set(drawn)) > (20 if which == "largest" else 2)


@pytest.mark.parametrize(("count", "sandwich"), [(1, True), (2, True), (3, False), (4, False)])
def test_fewer_than_three_or_no_sandwich_are_draws_alone(count: int, sandwich: bool) -> None:
    of = space(MOBILE)
    outer = of.at_width(0.75)
    given = {"local_subnets": "space", "subnets_per_step": count, "local_sandwich": sandwich}
    steps = draws(of, outer, **given)
    assert {len(step) for step in steps} == {count}
    for place in range(count):
        drawn = [step[place] for step in steps]
        assert all(of.contains(outer, arch) for arch in drawn)
        assert len(set(drawn)) > 5
    again, other = draws(of, outer, **given), draws(of, outer, seed=1, **given)
    assert steps == again and steps != other


@pytest.mark.parametrize(
    ("own", "asked", "allowed"),
    [
        (1.0, "", [0.25, 0.5, 0.75, 1.0]),
        (0.75, "", [0.25, 0.5, 0.75]),
        (0.25, "", [0.25]),
        (0.75, "1, 0.5", [0.5]),
    ],
)
def test_widths_are_the_levels_up_to_the_clients_own(
    own: float, asked: str, allowed: list[float]
) -> None:
    of = space(MOBILE)
    given: dict[str, Any] = {"local_subnets": "widths", "width_levels": asked}
    steps = draws(of, of.at_width(own), 80, subnets_per_step=1, **given)
    levels = [of.at_width(share) for share in allowed]
    assert {len(step) for step in steps} == {1}
    assert {arch for (arch,) in steps} == set(levels)
    sandwiches = draws(of, of.at_width(own), subnets_per_step=3, **given)
    assert {tuple(step[:2]) for step in sandwiches} == {(of.at_width(own), levels[0])}
    assert {step[2] for step in sandwiches} == set(levels)


def test_no_level_inside_what_was_received() -> None:
    of = space(MOBILE)
    with pytest.raises(ValueError) as caught:
        draws(of, of.smallest, local_subnets="widths", subnets_per_step=1, width_levels="0.5,1")
    assert str(caught.value) == (
        "width-levels = '0.5,1': none lies inside the subnet received, " + of.smallest.to_json()
    )


@pytest.mark.parametrize("method", ["maxnet", "fedsup", "fjord"])
def test_a_client_trains_what_it_draws_and_reports_the_macs(method: str) -> None:
    subnets = check_settings({"method": method}).subnets
    of, outer = space(MOBILE), space(MOBILE).at_width(0.75)
    order = TrainOrder(
        round=3,
        seed=5,
        architecture=outer.to_json(),
        device="cpu",
        space=SpaceOptions(space=MOBILE, num_classes=3, in_channels=1, image_size=8),
        local=LocalTraining(local_steps=4, batch_size=5),
        subnets=subnets,
    )
    config: dict[str, Scalar] = flatten(order)
    client = SubnetClient("kitchen", small_dataset())
    weights = pack(extract(noisy_state(of), of.boxes(outer)))
    (found,), _, metrics = client.fit([weights], config)
    draw = sampler(of, outer, subnets, stream(5, Purpose.LOCAL_SUBNETS, round=3, name="kitchen"))
    steps = [[outer] if method == "maxnet" else draw() for _ in range(4)]
    assert metrics["mac-images"] == 5 * sum(of.macs(arch) for step in steps for arch in step)

    module = subnet_module(of, noisy_state(of), outer)
    task = small_dataset().task
    if method != "maxnet":
        draw = sampler(
            of, outer, subnets, stream(5, Purpose.LOCAL_SUBNETS, round=3, name="kitchen")
        )
        distil = method == "fedsup"
        objective = SharedWeights(module, task, order.local, of, outer, draw, distil=distil)
    else:
        objective = Objective(module, task, order.local)
    own: dict[str, Any] = {"seed": 5, "round": 3, "name": "kitchen", "objective": objective}
    result = local_train(module, small_dataset(), order.local, **own)
    assert metrics["loss"] == pytest.approx(result.loss, rel=1e-5)
    assert np.allclose(found, pack(module.state_dict()), rtol=0, atol=1e-6)
