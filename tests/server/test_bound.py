"""Bounds of what training as ordered can do to weights, and what happens to replies beyond it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from superfednas.common.settings import Scalar
from superfednas.records.refusals import Refusal
from superfednas.records.rows import Row
from superfednas.server import app as server_app
from superfednas.server.average.overlap import OverlapAverage
from superfednas.server.round.bound import moved, noise, norm_of, reach
from superfednas.supernet import extract
from superfednas.wire.flat import WIRE_DTYPES, pack
from superfednas.wire.order import LocalTraining, Privacy
from tests.support.bad_clients import bad_client, gigantic, raising, spoil
from tests.support.rows import lines
from tests.support.strategies import architectures, seeds, space
from tests.support.training import Quiet, full_run, rounds_of, same, train

SPACE = space()


# Laws


@settings(deadline=None)
@given(
    seed=seeds,
    steps=st.integers(1, 30),
    lr=st.floats(1e-3, 1),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    decay=st.sampled_from([0.0, 5e-4, 0.1]),
    clip=st.floats(0.1, 5),
)
def test_no_gradients_move_weights_further(
    seed: int, steps: int, lr: float, momentum: float, decay: float, clip: float
) -> None:
    local = LocalTraining(
        lr=lr, momentum=momentum, weight_decay=decay, clip_norm=clip, local_steps=steps
    )
    draws = torch.Generator().manual_seed(seed)
    weights = nn.Parameter(torch.randn(5, generator=draws, dtype=torch.float64))
    before = weights.detach().clone()
    sgd = torch.optim.SGD([weights], lr=lr, momentum=momentum, weight_decay=decay)
    direction = torch.randn(5, generator=draws, dtype=torch.float64)
    for _ in range(steps):
        noisy = direction + torch.randn(5, generator=draws, dtype=torch.float64) / 10
        weights.grad = 100 * noisy
        nn.utils.clip_grad_norm_([weights], clip)
        sgd.step()
    moved = float((weights.detach() - before).norm())
    assert moved <= reach(local, 1, float(before.norm())) * (1 + 1e-9)


def test_gradients_that_always_agree_reach_the_bound() -> None:
    assert reach(LocalTraining(lr=0.5, clip_norm=2.0, local_steps=7), 1, 3.0) == 7
    epochs = LocalTraining(lr=0.5, clip_norm=2.0, local_epochs=3, batch_size=8)
    assert reach(epochs, 17, 3.0) == 3 * 3
    assert reach(LocalTraining(clip_norm=0.0), 17, 3.0) == math.inf
    endless = LocalTraining(weight_decay=0.5, local_steps=10**6)
    assert reach(endless, 17, 3.0) == math.inf


@settings(deadline=None, max_examples=30)
@given(arch=architectures(SPACE), seed=seeds, wire=st.sampled_from(WIRE_DTYPES))
def test_how_far_weights_moved_is_the_length_of_the_difference(
    arch: Any, seed: int, wire: str
) -> None:
    sent = extract(SPACE.init(seed), SPACE.boxes(arch))
    draws = torch.Generator().manual_seed(seed)
    change = {
        name: (0.01 * torch.randn(t.shape, generator=draws)).bfloat16().float()
        for name, t in sent.items()
    }
    if wire == "float32":
        new = {name: sent[name] + change[name] for name in sent}
        found = moved(pack(new, wire), pack(sent, wire), wire)
    else:
        found = moved(pack(change, wire), None, wire)
    slow = math.sqrt(sum(float(t.double().square().sum()) for t in change.values()))
    assert found == pytest.approx(slow, rel=1e-3)


@given(seed=seeds)
def test_a_state_s_norm_is_that_of_all_its_numbers(seed: int) -> None:
    state = SPACE.init(seed)
    slow = math.sqrt(sum(float(t.double().square().sum()) for t in state.values()))
    assert norm_of(state) == pytest.approx(slow, rel=1e-4)


@given(seed=seeds, numbers=st.integers(1, 10_000))
def test_noise_is_not_longer(seed: int, numbers: int) -> None:
    drawn = 0.5 * 3.0 * np.random.default_rng(seed).standard_normal(numbers)
    assert float(np.linalg.norm(drawn)) <= noise(Privacy(dp_clip=0.5, dp_noise=3.0), numbers)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 3e38])
def test_one_number_spoils_a_state(number: float) -> None:
    state = {"a": torch.zeros(3, 400), "b": torch.zeros(())}
    assert norm_of(state) == 0
    state["a"][2, 17] = number
    assert not math.isfinite(norm_of(state))


# Runs


def spread_out(reply: Message, order: Message) -> Message:
    """Send finite numbers whose differences are not: two such nodes put Inf into an average."""
    flat = reply.content.array_records["arrays"]["subnet"].numpy()
    sign = 1 - 2 * (int(order.metadata.dst_node_id) % 2)
    extreme = np.full_like(flat, sign * np.finfo(np.float32).max)
    return spoil(reply, order, arrays=ArrayRecord({"subnet": Array(extreme)}))


@pytest.mark.slow
@pytest.mark.attack
@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
@pytest.mark.parametrize("averaging", ["maxnet", "overlap", "median", "defl", "history"])
def test_gigantic_weights_touch_nothing_and_their_sender_is_named(
    averaging: str, wire: str, tmp_path: Path
) -> None:
    values: dict[str, Scalar] = {"rounds": 4, "averaging": averaging, "wire-dtype": wire}
    values |= {"clients-per-round": 4, "evaluate-every": 1}
    attacked = full_run(tmp_path / "a", values, bad_client(attack(wire), {2, 3}, "12"))
    silent = full_run(tmp_path / "b", values, bad_client(raising, {2, 3}, "12"))
    assert same(attacked.weights()[0], silent.weights()[0])
    refused = [
        (row["round"], client["client"], client["refusal"])
        for row in lines(attacked.rows())
        if row["kind"] == "round"
        for client in row["clients"]
        if not client["accepted"]
    ]
    expected = [(number, name, "too-far") for number in (2, 3) for name in "12"]
    assert sorted(refused) == expected


def attack(wire: str) -> Any:
    if wire == "float32":
        return spread_out
    return lambda reply, order: _sixteen(reply, order)


def _sixteen(reply: Message, order: Message) -> Message:
    """Send the largest change of 16 bits that is finite."""
    flat = reply.content.array_records["arrays"]["subnet"].numpy()
    largest = np.full(len(flat), 0x7F7F, np.uint16).view(flat.dtype)
    return spoil(reply, order, arrays=ArrayRecord({"subnet": Array(largest)}))


@pytest.mark.slow
@pytest.mark.attack
def test_rounds_that_fold_nothing_push_no_good_checkpoint_out(tmp_path: Path) -> None:
    """Three rounds of gigantic weights end the run, which goes on from the last good state."""
    values: dict[str, Scalar] = {"rounds": 6, "keep-checkpoints": 2}
    good = full_run(tmp_path / "good", values)
    folder = tmp_path / "run"
    with pytest.raises(server_app.TrainingStalled):
        full_run(folder, values, bad_client(gigantic, {3, 4, 5}, "0123"))
    kept = sorted(path.name for path in (folder / "checkpoints").glob("round-*.safetensors"))
    assert kept == ["round-000001.safetensors", "round-000002.safetensors"]
    again = full_run(folder, {"resume": str(folder)})
    assert same(again.weights()[0], good.weights()[0])


class ToInfinity(OverlapAverage):
    """An average of one's own that goes wrong in the second round."""

    rounds = 0

    def result(self) -> dict[str, torch.Tensor]:
        ToInfinity.rounds += 1
        merged = super().result()
        return {n: t * math.inf if ToInfinity.rounds == 2 else t for n, t in merged.items()}


@pytest.mark.slow
def test_an_average_that_is_not_finite_is_not_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToInfinity, "rounds", 0)
    averaging = f"{__name__}:ToInfinity"
    progress = Quiet()
    values: dict[str, Scalar] = {"averaging": averaging, "rounds": 2, "max-failures": 1}
    strategy = train(values, progress=progress)
    second = rounds_of(strategy)[1]
    once = train({"averaging": averaging, "rounds": 1})
    assert same(strategy.state, once.state)
    assert {client["refusal"] for client in second["clients"]} == {Refusal.MERGED}
    names = [client["client"] for client in second["clients"]]
    assert ("round 2", *names) in progress
    assert strategy.roster.state() == {**once.roster.state()}  # nobody is rested for it


@pytest.mark.slow
@pytest.mark.attack
@pytest.mark.parametrize(
    "sums",
    ['{"accuracy": 1, "loss": 1, "x": 1}', '{"accuracy": 1, "loss": 1e308}', '{"loss": -Infinity}'],
)
def test_sums_of_others_names_and_sizes_end_no_run(sums: str) -> None:
    def told(reply: Message, order: Message) -> Message:
        config = dict(reply.content.config_records["config"])
        config["evaluation"] = f"[[0, {sums}], [1, {sums}]]"
        return spoil(reply, order, config=type(reply.content.config_records["config"])(config))

    values: dict[str, Scalar] = {"evaluate-every": 1, "evaluate-on": "clients", "rounds": 2}
    strategy = train(values, bad_client(told, {1, 2}, "12"))
    assert same(strategy.state, train(values).state)


@pytest.mark.slow
def test_no_summary_stands_between_the_weights_and_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = full_run(tmp_path / "whole")

    def fail(*_: object, **__: object) -> Row:
        raise OverflowError("a number that nobody thought of")

    monkeypatch.setattr(server_app, "summarise", fail)
    with pytest.raises(OverflowError):
        full_run(tmp_path / "run")
    from superfednas.records.tensors import read_tensors

    found: Mapping[str, torch.Tensor] = read_tensors(tmp_path / "run" / "supernet.safetensors")[0]
    assert same(found, whole.weights()[0])
