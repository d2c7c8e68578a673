"""Orders of a round: what each says, the message it becomes, and targets beside the supernet."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.common.settings import Scalar, SettingsError
from superfednas.records.refusals import Refusal
from superfednas.server.assign.client import Client
from superfednas.server.average.choose import Averaging
from superfednas.server.average.overlap import OverlapAverage
from superfednas.server.round.bound import Bounds
from superfednas.server.round.encode import Outgoing
from superfednas.server.round.exchange import Late
from superfednas.server.round.fold import Folding
from superfednas.server.round.late import Closing, LateTask
from superfednas.server.round.messages import train_messages
from superfednas.server.round.orders import SUPERNET, Cuts, Order, Round
from superfednas.server.settings import Settings, check_settings
from superfednas.supernet import Architecture, State, extract
from superfednas.wire.flat import WIRE_DTYPES, numel, unpack
from superfednas.wire.order import ARRAYS, CONFIG, SUBNET
from tests.support.strategies import architectures, space
from tests.support.training import same

SPACE = space()
WIDE = space("mobilenetv1-tiny")
NAMES = ("a", "b", "c")
SIZES: dict[str, Scalar] = {"num-classes": 3, "in-channels": 1, "image-size": 8}


def a_round(of: Cuts | None = None, wire_dtype: str = "float32") -> Round:
    return Round(
        3,
        beta=None,
        lr=0.25,
        evaluate=(),
        nodes={name: 10 + number for number, name in enumerate(NAMES)},
        cuts=of or Cuts(SPACE),
        wire_dtype=wire_dtype,
    )


def run_settings(**values: Scalar) -> Settings:
    return check_settings(SIZES | {key.replace("_", "-"): v for key, v in values.items()})


def state_of(value: float) -> State:
    return {name: torch.full_like(t, value) for name, t in SPACE.init(0).items()}


@pytest.mark.parametrize("wire_dtype", WIRE_DTYPES)
@settings(max_examples=15, deadline=None)
@given(archs=st.lists(architectures(SPACE), min_size=1, max_size=3))
def test_an_order_says_how_many_bytes_its_message_carries(
    wire_dtype: str, archs: list[Architecture]
) -> None:
    now = a_round(wire_dtype=wire_dtype)
    plan = now.plan(now.order(Client(n), arch) for n, arch in zip(NAMES, archs, strict=False))
    s, outgoing = run_settings(wire_dtype=wire_dtype), Outgoing(wire_dtype)
    messages = train_messages(plan, {SUPERNET: SPACE.init(0)}, outgoing, s)
    for order, message in zip(plan.orders, messages, strict=True):
        assert order.bytes == len(message.content.array_records[ARRAYS][SUBNET].data)
        assert order.node == message.metadata.dst_node_id
        config = message.content.config_records[CONFIG]
        assert config["architecture"] == order.arch.to_json()


def test_an_order_overrides_settings_of_its_own_client_alone() -> None:
    now = a_round()
    orders = [
        now.order(Client("a"), SPACE.largest, local={"lr": 1, "local-steps": 7}),
        now.order(Client("b"), SPACE.largest),
    ]
    messages = train_messages(
        now.plan(orders), {SUPERNET: SPACE.init(0)}, Outgoing("float32"), run_settings()
    )
    told = [message.content.config_records[CONFIG] for message in messages]
    assert [(config["lr"], config["local-steps"]) for config in told] == [(1.0, 7), (0.25, 0)]
    assert [type(config["lr"]) for config in told] == [float, float]
    assert {key for key in told[0] if told[0][key] != told[1][key]} == {"lr", "local-steps"}


@pytest.mark.parametrize("local", [{"wire-dtype": "float16"}, {"rounds": 3}, {"lr": -1.0}])
def test_what_no_order_may_override_is_refused(local: Mapping[str, Scalar]) -> None:
    with pytest.raises(SettingsError, match=next(iter(local))):
        a_round().order(Client("a"), SPACE.largest, local=local)


@settings(max_examples=40, deadline=None)
@given(arch=architectures(SPACE), share=st.floats(0, 1), by=st.sampled_from(["macs", "params"]))
def test_no_order_is_beyond_a_clients_budget(arch: Architecture, share: float, by: str) -> None:
    most = int(share * getattr(SPACE, by)(SPACE.largest))
    client = Client("a", {by: most})
    if getattr(SPACE, by)(arch) <= most:
        assert a_round().order(client, arch).arch == arch
    else:
        with pytest.raises(ValueError, match="cannot hold"):
            a_round().order(client, arch)


def test_a_client_has_one_order_a_round() -> None:
    now = a_round()
    with pytest.raises(ValueError, match="two orders"):
        now.plan(now.order(Client("a"), arch) for arch in (SPACE.largest, SPACE.smallest))


def test_cuts_are_made_once_and_kept_for_the_round_after() -> None:
    cuts = Cuts(SPACE)
    first, _ = cuts.of(SPACE.smallest)
    assert cuts.of(SPACE.smallest)[0] is first
    cuts.begin()
    assert cuts.of(SPACE.smallest)[0] is first
    for _ in range(2):
        cuts.begin()
    assert cuts.of(SPACE.smallest)[0] is not first


def test_a_window_as_wide_as_its_axes_is_not_moved() -> None:
    now = a_round(Cuts(WIDE))
    whole, narrow = now.order(Client("a"), WIDE.largest, shift=8), WIDE.at_width(0.5)
    moved, still = now.order(Client("b"), narrow, shift=8), now.order(Client("c"), narrow)
    assert (moved.shift, still.shift) == (8, 0) and moved.cut != still.cut
    assert whole.shift == 0 and whole.cut == WIDE.boxes(WIDE.largest)


def test_each_message_is_cut_from_its_target() -> None:
    states = {SUPERNET: state_of(1.0), "candidate": state_of(2.0)}
    now = a_round()
    orders: list[Order] = [
        now.order(Client("a"), SPACE.smallest),
        now.order(Client("b"), SPACE.smallest, target="candidate"),
        now.order(Client("c"), SPACE.smallest, target="new"),  # begins as the supernet
    ]
    plan = now.plan(orders)
    messages = train_messages(plan, states, Outgoing("float32"), run_settings())
    for order, message, value in zip(orders, messages, (1.0, 2.0, 1.0), strict=True):
        flat = message.content.array_records[ARRAYS][SUBNET].numpy()
        expected = extract(state_of(value), order.cut)
        assert same(unpack(flat, order.cut.shapes), expected)
    assert plan.targets == [SUPERNET, "candidate", "new"]


@settings(max_examples=30, deadline=None)
@given(
    rounds=st.lists(
        st.tuples(st.sets(st.sampled_from("abc")), st.permutations(["a", "b", "c", SUPERNET])),
        min_size=1,
        max_size=6,
    )
)
def test_a_round_writes_where_none_of_its_states_lies(
    rounds: list[tuple[set[str], list[str]]],
) -> None:
    """Whatever becomes of the targets between two rounds: swapped, dropped, or one for all."""
    averaging = Averaging(check_settings(SIZES))
    states = {SUPERNET: {"weight": torch.zeros(8)}}
    for number, (trained, order) in enumerate(rounds, 1):
        states = dict.fromkeys(trained, states[SUPERNET]) | states
        before = {name: state["weight"].clone() for name, state in states.items()}
        averages = averaging.open(states)
        for name in trained:
            averages[name].add({"weight": torch.full((8,), 10.0 * number + ord(name))}, 1.0)
        merged = {
            name: averages[name].result() if name in trained else states[name] for name in states
        }
        for name, state in states.items():
            assert torch.equal(state["weight"], before[name])
        for name in trained:
            assert torch.equal(merged[name]["weight"], torch.full((8,), 10.0 * number + ord(name)))
        names = [name for name in order if name in merged]
        states = dict(zip(names, (merged[n] for n in reversed(names)), strict=True))
        if number % 2:
            states = {SUPERNET: states[SUPERNET]}


def reply_to(order: Order, number: int, value: float) -> Message:
    """Answer an order with weights that are all alike."""
    flat = np.full(numel(order.cut.shapes), value, np.float32)
    numbers = {"num-examples": 1, "loss": 0.0, "seconds": 0.0, "images": 1, "mac-images": 1}
    content = {
        "arrays": ArrayRecord({SUBNET: Array(flat)}),
        "metrics": MetricRecord(numbers | {"round": number}),
        "config": ConfigRecord({"architecture": order.arch.to_json()}),
    }
    asked = Message(RecordDict(), dst_node_id=order.node, message_type="train")
    return Message(RecordDict(content), reply_to=asked)


def test_a_late_reply_goes_to_its_target_or_is_refused_where_that_is_gone() -> None:
    s, late = run_settings(late_replies="fold"), Late[LateTask]()
    bounds = Bounds(s, SPACE)
    folding = Folding(s, Averaging(s), bounds, late, note=lambda *_, **__: None, folder=None)
    now, client = a_round(), {n: Client(n, examples=1) for n in NAMES}
    targets = (SUPERNET, "candidate", "gone")
    earlier = now.plan(
        now.order(client[name], SPACE.largest, target=target)
        for name, target in zip(NAMES, targets, strict=True)
    )
    for index, order in enumerate(earlier.orders):
        message = reply_to(order, earlier.round, 5.0 + index)
        late.arrived.append((LateTask(earlier, index), message))
    states = {SUPERNET: state_of(1.0), "candidate": state_of(2.0)}
    plan = a_round().plan([])
    folded = folding.fold(states, plan, [], [], Closing(plan, 0, 0.0, 1.0))
    assert [row.folded for row in folded.late] == [True, True, False]
    assert [row.refusal for row in folded.late] == [None, None, Refusal.TARGET_GONE]
    assert set(folded.states) == set(states)
    assert same(folded.states[SUPERNET], state_of(5.0))
    assert same(folded.states["candidate"], state_of(6.0))


class Spoilt(OverlapAverage):
    """An average of one's own that goes wrong where the state is of twos."""

    def result(self) -> dict[str, torch.Tensor]:
        wrong = math.inf if float(next(iter(self._state.values())).flatten()[0]) == 2 else 1.0
        return {name: tensor * wrong for name, tensor in super().result().items()}


def test_only_what_went_into_an_average_that_is_not_finite_is_refused_with_it() -> None:
    s = run_settings(late_replies="fold", averaging=f"{__name__}:Spoilt")
    late = Late[LateTask]()
    bounds = Bounds(s, SPACE)
    folding = Folding(s, Averaging(s), bounds, late, note=lambda *_, **__: None, folder=None)
    now, client = a_round(), {n: Client(n, examples=1) for n in NAMES}
    earlier = now.plan(
        now.order(client[name], SPACE.largest, target=target)
        for name, target in zip(NAMES, (SUPERNET, "candidate"), strict=False)
    )
    for index, order in enumerate(earlier.orders):
        late.arrived.append((LateTask(earlier, index), reply_to(order, earlier.round, 5.0)))
    states = {SUPERNET: state_of(1.0), "candidate": state_of(2.0)}
    plan = a_round().plan([])
    folded = folding.fold(states, plan, [], [], Closing(plan, 0, 0.0, 1.0))
    assert [(row.folded, row.refusal) for row in folded.late] == [(True, None), (False, "merged")]
    assert same(folded.states[SUPERNET], state_of(5.0))
    assert same(folded.states["candidate"], states["candidate"])
