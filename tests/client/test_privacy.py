"""Differential privacy of what a client sends, and what Flower's mods do to it."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client import mod as legacy
from flwr.clientapp import ClientApp
from flwr.clientapp import mod as flower
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from superfednas.client.app import evaluate, query
from superfednas.client.app import train as train_subnet
from superfednas.client.privacy import privatise
from superfednas.common.settings import Scalar
from superfednas.server.nodes import RosterError
from superfednas.supernet import extract
from superfednas.wire.flat import WIRE_DTYPES, sends_change, unpack
from superfednas.wire.order import Privacy
from tests.support.processes import ROOT
from tests.support.strategies import seeds
from tests.support.training import Quiet, Recorder, Row, fold_by_hand, ready, rounds_of, same
from tests.support.training import train as run
from tests.support.updates import random_update

State = Mapping[str, torch.Tensor]
shapes_ = st.dictionaries(
    st.sampled_from("abc"), st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1
)
clips = st.floats(1e-3, 1e3)


def length(a: State, b: State) -> float:
    return math.sqrt(sum(float((a[n].double() - b[n].double()).square().sum()) for n in a))


def bits(state: State) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


# Laws


@settings(max_examples=100, deadline=None)
@given(shapes=shapes_, seed=seeds, clip=clips, scale=st.floats(1e-6, 1e6))
def test_a_change_is_never_longer_than_the_clip_and_keeps_its_direction(
    shapes: dict[str, tuple[int, ...]], seed: int, clip: float, scale: float
) -> None:
    sent = random_update(shapes, seed)
    change = {name: scale * tensor for name, tensor in random_update(shapes, seed + 1).items()}
    trained = {name: tensor + change[name] for name, tensor in sent.items()}
    found = privatise(trained, sent, Privacy(dp_clip=clip))
    long = length(trained, sent)
    # Rounding to float32 comes last, so it is all that may exceed the bound.
    rounding = 1e-7 * (length(sent, {n: 0 * t for n, t in sent.items()}) + clip)
    assert length(found, sent) <= clip + rounding
    assert list(found) == list(trained)
    if long <= clip:
        assert bits(found) == bits(trained)
    for name, tensor in found.items():
        assert tensor.dtype == trained[name].dtype and tensor.shape == trained[name].shape
        expected = sent[name] + min(1.0, clip / max(long, 1e-300)) * (trained[name] - sent[name])
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(shapes=shapes_, seed=seeds, clip=clips)
def test_what_it_is_given_is_left_alone(
    shapes: dict[str, tuple[int, ...]], seed: int, clip: float
) -> None:
    sent, trained = random_update(shapes, seed), random_update(shapes, seed + 1)
    before = bits(sent), bits(trained)
    privatise(trained, sent, Privacy(dp_clip=clip, dp_noise=1.0))
    doubles = {name: tensor.double() for name, tensor in trained.items()}
    kept = bits(doubles)
    privatise(doubles, sent, Privacy(dp_clip=1e9, dp_noise=1.0))
    assert (bits(sent), bits(trained)) == before and bits(doubles) == kept


@pytest.mark.parametrize(("clip", "noise"), [(1.0, 1.0), (0.25, 0.02), (3.0, 40.0)])
def test_the_noise_is_normal_with_the_deviation_that_was_said(clip: float, noise: float) -> None:
    sent = random_update({"a": (300, 200), "b": (20_000,)}, 0)
    trained = {name: tensor + 1 for name, tensor in sent.items()}
    clipped = privatise(trained, sent, Privacy(dp_clip=clip))
    found = privatise(trained, sent, Privacy(dp_clip=clip, dp_noise=noise))
    drawn = torch.cat([(found[n].double() - clipped[n].double()).ravel() for n in sent]).numpy()
    drawn /= clip * noise
    assert drawn.std() == pytest.approx(1, abs=5 / math.sqrt(2 * drawn.size))
    assert abs(drawn.mean()) < 5 / math.sqrt(drawn.size)
    assert stats.kstest(drawn, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / math.sqrt(drawn.size)


def test_nobody_can_draw_the_noise_again() -> None:
    """A server knows the run's seed, and a user's own data source may seed global generators."""
    sent = random_update({"a": (50,)}, 0)
    found = set()
    for _ in range(4):
        np.random.seed(7)
        torch.manual_seed(7)
        found.add(bits(privatise(sent, sent, Privacy(dp_clip=1.0, dp_noise=1.0)))["a"])
    assert len(found) == 4


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 3e38])
def test_training_that_goes_astray_does_not_show(number: float) -> None:
    sent = random_update({"a": (3,), "b": (2, 2)}, 0)
    trained = {**sent, "b": torch.full((2, 2), number)}
    found = privatise(trained, sent, Privacy(dp_clip=0.5))
    assert length(found, sent) <= 0.5 + 1e-6
    if not math.isfinite(number):
        assert bits(found) == bits(sent)
    noisy = privatise(trained, sent, Privacy(dp_clip=0.5, dp_noise=0.1))
    assert all(torch.isfinite(tensor).all() for tensor in noisy.values())


# The oracle: Flower's own mod


def mod_call(
    mod: Callable[..., Message], sent: np.ndarray, trained: np.ndarray, **config: Scalar
) -> Message:
    """Let a mod see a message go in and its answer come out."""
    content = RecordDict({"arrays": ArrayRecord({"subnet": Array(sent)})})
    content["config"] = ConfigRecord(config)
    asked = Message(content, dst_node_id=1, message_type="train")

    def inner(message: Message, _: Context) -> Message:
        answer = RecordDict({"arrays": ArrayRecord({"subnet": Array(trained)})})
        return Message(answer, reply_to=message)

    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    return mod(asked, context, inner)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, clip=clips)
def test_clipping_is_flowers_on_the_flat_array(seed: int, clip: float) -> None:
    shapes = {"a": (3, 4), "b": (5,), "c": (2, 1, 3)}
    sent, trained = random_update(shapes, seed), random_update(shapes, seed + 1)
    flat = [np.concatenate([t.numpy().ravel() for t in s.values()]) for s in (sent, trained)]
    mod = flower.LocalDpMod(clip, sensitivity=0.0, epsilon=1.0, delta=0.5)
    theirs = mod_call(mod, *flat).content.array_records["arrays"]["subnet"].numpy()
    fixed = mod_call(flower.fixedclipping_mod, *flat, clipping_norm=clip)
    assert np.array_equal(fixed.content.array_records["arrays"]["subnet"].numpy(), theirs)
    ours = privatise(trained, sent, Privacy(dp_clip=clip))
    for name, tensor in unpack(theirs, shapes).items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)


def test_noise_has_the_deviation_of_flowers() -> None:
    sensitivity, epsilon, delta = 2.0, 0.5, 1e-5
    sent = np.zeros(40_000, np.float32)
    mod = flower.LocalDpMod(1.0, sensitivity, epsilon, delta)
    theirs = mod_call(mod, sent, sent + 1).content.array_records["arrays"]["subnet"].numpy()
    noise = sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon
    ours = privatise(
        {"a": torch.ones(40_000)}, {"a": torch.zeros(40_000)}, Privacy(dp_clip=1.0, dp_noise=noise)
    )["a"]
    assert float(ours.std()) == pytest.approx(theirs.std(), rel=0.03)
    assert stats.ks_2samp(ours.numpy(), theirs).pvalue > 1e-6


# What docs/privacy.md promises


def test_the_documented_epsilon_is_right() -> None:
    text = (ROOT / "docs" / "privacy.md").read_text()
    found: dict[str, Callable[..., float]] = {}
    exec(text.split("```python\n")[1].split("```")[0], found)
    table = text.split("| σ | ε of 1 reply |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) == 4
    for line in table:
        noise, *shown = (float(cell.replace(",", "")) for cell in line.strip("| ").split("|"))
        for replies, value in zip((1, 30, 100), shown, strict=True):
            assert found["epsilon"](noise, replies) == pytest.approx(value, rel=0.02)
    # By the definition: how much more likely, at most, the outcomes are under other data.
    noise, replies = 3.0, 4
    gap, epsilon = 2 * math.sqrt(replies) / noise, found["epsilon"](noise, replies)
    outcomes = np.linspace(-12, 14, 400_001)
    more = stats.norm.pdf(outcomes, gap) - math.exp(epsilon) * stats.norm.pdf(outcomes)
    delta = float(np.maximum(more, 0).sum() * (outcomes[1] - outcomes[0]))
    assert delta == pytest.approx(1e-5, rel=1e-3)


# Through the ClientApp and the strategy


def boxes_cover(of, architectures: list[str]) -> dict[str, torch.Tensor]:
    """Say for every number of the supernet whether one of these subnets holds it."""
    covered = {name: torch.zeros(shape) for name, shape in of.shapes(of.largest).items()}
    for text in architectures:
        for view in extract(covered, of.boxes(of.parse(text))).values():
            view.fill_(1)
    return covered


def clients_of(strategy, number: int = 0) -> list[Row]:
    return rounds_of(strategy)[number]["clients"]


@pytest.mark.slow
def test_off_is_as_if_it_were_not_there() -> None:
    plain = run()
    assert same(plain.state, run({"dp-clip": 0.0, "dp-noise": 0.0}).state)
    # A bound that nothing reaches changes no bit either.
    assert same(plain.state, run({"dp-clip": 1e6}).state)
    assert not same(plain.state, run({"dp-clip": 0.01}).state)
    assert not same(plain.state, run({"dp-clip": 1e6, "dp-noise": 1e-9}).state)


@pytest.mark.parametrize("norm", ["group", "none", "batch"])
@pytest.mark.parametrize("wire", WIRE_DTYPES)
def test_only_what_a_subnet_covers_is_clipped_and_noised(wire: str, norm: str) -> None:
    clip, noise = 0.02, 0.5
    values: dict[str, Scalar] = {"rounds": 1, "assignment": "random", "wire-dtype": wire}
    values |= {"norm": norm, "dp-clip": clip, "dp-noise": noise, "clients-per-round": 1}
    before, recorder = ready(values).state, Recorder()
    strategy = run(values, recorder)
    of, (client,) = strategy.space, clients_of(strategy)
    assert client["accepted"]
    covered = boxes_cover(of, [client["architecture"]])
    share = sum(float(t.sum()) for t in covered.values()) / of.params(of.largest)
    assert 0 < share < 1
    for name, tensor in strategy.state.items():
        untouched = covered[name] == 0
        assert torch.equal(tensor[untouched], before[name][untouched])
    shapes = of.shapes(of.parse(client["architecture"]))
    (asked,) = [m for m in recorder.orders if m.metadata.message_type == "train"]
    sent = unpack(asked.content.array_records["arrays"]["subnet"].numpy(), shapes, wire)
    reply = unpack(recorder.flat(1, client["client"]), shapes, wire)
    if sends_change(wire):
        reply = {name: sent[name].double() + change for name, change in reply.items()}
    # A norm of many independent numbers is close to the root of its mean square.
    count = client["params"]
    rounding = 1e-7 * length(sent, {n: 0 * t for n, t in sent.items()})
    found, expected = length(reply, sent), math.sqrt(clip**2 + (clip * noise) ** 2 * count)
    assert abs(found - expected) <= 0.02 * expected + rounding


def test_the_supernet_gets_the_weighted_sum_of_the_noise() -> None:
    """σ·C·√Σw²/Σw a number, which is what docs/privacy.md says."""
    clip, noise = 0.5, 2.0
    for averaging in ("maxnet", "overlap"):
        values: dict[str, Scalar] = {"rounds": 1, "averaging": averaging, "lr": 1e-9}
        values |= {"assignment": "fixed", "architecture": "smallest", "beta-end": 0.3}
        values |= {"dp-clip": clip, "dp-noise": noise}
        before = ready(values).state
        strategy = run(values)
        weights = [client["weight"] for client in clients_of(strategy)]
        shapes = strategy.space.shapes(strategy.space.smallest)
        state, old = (extract(s, shapes) for s in (strategy.state, before))
        drawn = torch.cat([(state[n] - old[n]).ravel() for n in shapes])
        expected = noise * clip * math.sqrt(sum(w * w for w in weights)) / sum(weights)
        assert float(drawn.std()) == pytest.approx(expected, rel=0.02)


def with_mods(*mods, everywhere: bool = False) -> ClientApp:
    """Give the ClientApp with mods around training, or around every message."""
    app = ClientApp(mods=list(mods) if everywhere else None)
    app.query()(query)
    app.evaluate()(evaluate)
    app.train(mods=[] if everywhere else list(mods))(train_subnet)
    return app


ONE_ROUND: dict[str, Scalar] = {"rounds": 1, "clients-per-round": 2, "node-timeout": 1.0}


def test_flowers_mod_around_training_is_right_on_slices() -> None:
    """Clipped to half its length and without noise, against the same run without the mod."""
    plain, modded = Recorder(), Recorder(with_mods(flower.LocalDpMod(0.01, 0.0, 0.5, 1e-5)))
    run(ONE_ROUND, plain)
    strategy = run(ONE_ROUND, modded)
    updates = {}
    for client in clients_of(strategy):
        assert client["accepted"]
        name = client["client"]
        (sent,) = {
            m.content.array_records["arrays"]["subnet"].data
            for m in modded.orders
            if m.metadata.message_type == "train"
            and m.content.config_records["config"]["architecture"] == client["architecture"]
        }
        shapes = strategy.space.shapes(strategy.space.parse(client["architecture"]))
        sent = unpack(Array("float32", (), "numpy.ndarray", sent).numpy(), shapes)
        trained = unpack(plain.flat(1, name), shapes)
        found = unpack(modded.flat(1, name), shapes)
        assert length(trained, sent) > 0.01
        assert length(found, sent) == pytest.approx(0.01, rel=1e-3)
        ours = privatise(trained, sent, Privacy(dp_clip=0.01))
        for key, tensor in ours.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-7)
        updates[name] = modded.flat(1, name)
    by_hand = fold_by_hand(strategy.space, ready(ONE_ROUND).state, rounds_of(strategy)[0], updates)
    assert same(strategy.state, by_hand)


# sensitivity 0.01 with a bound that nothing reaches once went through as integers, without noise.
@pytest.mark.parametrize("clip", [1.0, 1e9])
@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
def test_a_mod_that_computes_is_refused_where_weights_have_16_bits(wire: str, clip: float) -> None:
    before, progress = ready(ONE_ROUND).state, Quiet()
    app = with_mods(flower.LocalDpMod(clip, 0.01, 0.9, 1e-5))
    strategy = run(ONE_ROUND | {"wire-dtype": wire}, app, progress=progress, stalls=True)
    for client in clients_of(strategy):
        assert not client["accepted"]
        assert "a mod of the ClientApp computes with the weights" in client["reason"]
        assert "only wire-dtype = 'float32' allows" in client["reason"]
    assert same(strategy.state, before)
    assert ("only wire-dtype = 'float32'",) in progress


@pytest.mark.parametrize("wire", WIRE_DTYPES)
def test_mods_that_only_look_work_at_every_wire_format(wire: str) -> None:
    values = ONE_ROUND | {"wire-dtype": wire}
    looked = run(values, with_mods(flower.arrays_size_mod, everywhere=True))
    assert same(looked.state, run(values).state)


@pytest.mark.parametrize(
    ("mod", "reason"),
    [
        (flower.fixedclipping_mod, "clipping_norm"),
        (flower.adaptiveclipping_mod, "clipping_norm"),
        (flower.message_size_mod, "Config values must be"),
        (legacy.LocalDpMod(1.0, 0.01, 0.9, 1e-5), "fitins.parameters"),
        (legacy.fixedclipping_mod, "fitins.parameters"),
        (legacy.adaptiveclipping_mod, "fitins.parameters"),
        (legacy.secagg_mod, "secaggplus_configs"),
        (legacy.secaggplus_mod, "secaggplus_configs"),
    ],
)
def test_mods_that_do_not_work_are_refused_and_change_nothing(mod, reason: str) -> None:
    strategy = run(ONE_ROUND, with_mods(mod), stalls=True)
    for client in clients_of(strategy):
        assert not client["accepted"] and reason in client["reason"]
    assert same(strategy.state, ready(ONE_ROUND).state)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mod",
    [
        flower.LocalDpMod(1.0, 0.01, 0.9, 1e-5),
        flower.fixedclipping_mod,
        flower.adaptiveclipping_mod,
    ],
)
def test_mods_that_expect_weights_stop_a_run_where_they_stand_around_every_message(mod) -> None:
    with pytest.raises(RosterError, match="expects exactly one ArrayRecord"):
        run(ONE_ROUND, with_mods(mod, everywhere=True))
