"""Whole rounds of secure aggregation in process: they equal plain ones, whatever a node answers."""

import json
import threading
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict

from superfednas.client.app import app as client_app
from superfednas.common.settings import Scalar, SettingsError
from superfednas.flower.local_grid import LocalGrid
from superfednas.records.lines import read_row
from superfednas.records.refusals import Refusal
from superfednas.server.flower_strategy import FlowerStrategy
from superfednas.server.nodes import RosterError
from superfednas.server.settings import check_settings
from tests.support.bad_clients import bad_client, raising, spoil, wrong_shape
from tests.support.rows import lines
from tests.support.secure import furthest
from tests.support.training import (
    App,
    Quiet,
    Recorder,
    node_configs,
    order_of,
    ready,
    rounds_of,
    same,
    train,
)

SECURE: dict[str, Scalar] = {"secure-aggregation": True, "secure-few": True}
STRICT: dict[str, Scalar] = {"secure-aggregation": True, "averaging": "overlap"}
FIVE: dict[str, Scalar] = {"rounds": 1, "clients-per-round": 5, "space": "mobilenetv1-tiny"}
VICTIM = "2"
STEP = 2**-21  # of weights up to 4 in float32; the fixed point's is far smaller
Spoiling = Callable[[dict], dict]


def stage_of(message: Message) -> str:
    """Return the exchange that a message belongs to."""
    if message.metadata.message_type == MessageType.TRAIN:
        return "train"
    return str(message.content["config"].get("secure-stage", ""))


def spoiling(stage: str, change: Spoiling, who: Iterable[str] = VICTIM) -> App:
    """Serve as usual, but for what ``who`` answers in one exchange."""

    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if stage_of(message) == stage and str(context.node_config["partition-id"]) in who:
            said = ConfigRecord(change(dict(reply.content["config"])))
            return Message(RecordDict({"config": said}), reply_to=message)
        return reply

    return app


def silent(stage: str, who: Iterable[str] = VICTIM) -> App:
    """Serve as usual, but fail in one exchange."""

    def app(message: Message, context: Context) -> Message:
        if stage_of(message) == stage and str(context.node_config["partition-id"]) in who:
            raise RuntimeError("gone")
        return client_app(message, context)

    return app


def codes(strategy, number: int = 0) -> dict[str, str]:
    """Return who was refused in a round, and with which code."""
    clients = rounds_of(strategy)[number]["clients"]
    return {c["client"]: c["refusal"] for c in clients if not c["accepted"]}


@pytest.mark.parametrize(
    "method",
    ["maxnet", "fedavg", "efedsup", "heterofl", "fjord", "fedrolex", "fedsup"],
)
def test_a_round_ends_where_a_plain_one_does(method: str) -> None:
    values = FIVE | {"method": method}
    plain, secure = (train(values | more, clients=5) for more in ({}, SECURE))
    assert not same(plain.state, plain.space.init(3))
    assert furthest(plain.state, secure.state) <= STEP
    assert rounds_of(secure)[0]["left_out"] == 0
    assert "left_out" not in rounds_of(plain)[0]


def test_masks_are_new_in_every_run_and_the_bits_of_its_end_are_not() -> None:
    one, other = Recorder(), Recorder()
    states = [train(FIVE | SECURE, app, clients=5, workers=2).state for app in (one, other)]
    assert same(*states)
    for key in one.sent:
        assert (one.flat(*key) != other.flat(*key)).mean() > 0.99


@pytest.mark.parametrize("how", [raising, wrong_shape])
def test_so_does_one_without_a_reply_that_is_missing_or_bad(how) -> None:
    app = bad_client(how, [1], [VICTIM])
    plain, secure = (train(FIVE | more, app, clients=5) for more in ({}, SECURE))
    assert furthest(plain.state, secure.state) <= STEP
    assert codes(plain) == codes(secure)
    assert set(codes(secure)) == {VICTIM}


@pytest.mark.attack
@pytest.mark.parametrize("stage", ["keys", "shares"])
def test_a_client_that_leaves_before_the_training_counts_as_one_that_trains_badly(stage) -> None:
    plain = train(FIVE, bad_client(raising, [1], [VICTIM]), clients=5)
    secure = train(FIVE | SECURE, silent(stage), clients=5)
    assert codes(secure) == {VICTIM: Refusal.RAISED}
    # Weights are shares of the heaviest: where it is gone, they are the same shares of another.
    assert furthest(plain.state, secure.state) <= STEP


@pytest.mark.attack
@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("keys", lambda said: {}),
        ("keys", lambda said: {"keys": 7}),
        ("keys", lambda said: {"keys": "00" * 64}),
        ("keys", lambda said: {"keys": said["keys"][:-1]}),
        ("keys", lambda said: said | {"signature": "x" * 10**6}),
        ("shares", lambda said: {}),
        ("shares", lambda said: said | {"shares": "[" * 10**5}),
        ("shares", lambda said: said | {"shares": json.dumps(json.loads(said["shares"])[1:])}),
        ("shares", lambda said: said | {"commitments": "[]"}),
        ("shares", lambda said: said | {"shares": json.dumps(["é"] * 5)}),
        ("shares", lambda said: {"distrusted": "[1.0]"}),
        ("shares", lambda said: {"distrusted": "[[]]"}),
    ],
)
def test_a_malformed_answer_is_one_refused_reply(stage: str, change: Spoiling) -> None:
    secure = train(FIVE | SECURE, spoiling(stage, change), clients=5)
    plain = train(FIVE, bad_client(raising, [1], [VICTIM]), clients=5)
    assert codes(secure) == {VICTIM: Refusal.PROTOCOL}
    assert furthest(plain.state, secure.state) <= STEP


@pytest.mark.attack
@pytest.mark.parametrize(
    "change",
    [
        lambda said: {},
        lambda said: {"shares": "{}"},
        lambda said: {"shares": '{"0": 3}'},
        lambda said: {"shares": json.dumps({"0": {"0": "00" * 16}})},
        lambda said: {"shares": said["shares"].replace("a", "b").replace("1", "2")},
    ],
)
def test_nobody_is_needed_to_unmask(change: Spoiling) -> None:
    secure = train(FIVE | SECURE, spoiling("unmask", change, "0"), clients=5)
    plain = train(FIVE, clients=5)
    assert codes(secure) == {}
    assert furthest(plain.state, secure.state) <= STEP


@pytest.mark.parametrize("stage", ["shares", "train", "unmask"])
def test_a_round_that_too_many_leave_is_given_up_as_a_whole(stage: str) -> None:
    said = Quiet()
    who = ["0", "1"]
    secure = train(FIVE | SECURE, silent(stage, who), clients=5, progress=said, stalls=True)
    expected = {k: Refusal.RAISED if k in who else Refusal.NOT_UNMASKED for k in "01234"}
    if stage == "unmask":
        expected = dict.fromkeys("01234", Refusal.NOT_UNMASKED)
    assert codes(secure) == expected
    assert same(secure.state, secure.space.init(3))
    assert "left_out" not in rounds_of(secure)[0]


def test_a_round_needs_three_from_the_start() -> None:
    app = silent("keys", ["0", "1", "2"])
    secure = train(FIVE | SECURE, app, clients=5, stalls=True)
    assert {codes(secure)[k] for k in "34"} == {Refusal.NOT_UNMASKED}


@pytest.mark.attack
def test_who_gives_false_shares_spoils_one_round_and_is_left_out_of_the_next() -> None:
    def false(said: dict) -> dict:
        sealed = json.loads(said["shares"])
        return said | {"shares": json.dumps([text[:-8] + "00000000" for text in sealed])}

    values = FIVE | SECURE | {"rounds": 2}
    secure = train(values, spoiling("shares", false), clients=5)
    first, second = codes(secure, 0), codes(secure, 1)
    assert first == dict.fromkeys("0134", Refusal.NOT_UNMASKED) | {VICTIM: Refusal.PROTOCOL}
    assert second == {VICTIM: Refusal.PROTOCOL}


def noise(reply: Message, order: Message) -> Message:
    """Send numbers that were not masked as agreed."""
    size = reply.content["arrays"]["subnet"].numpy().size
    numbers = np.random.default_rng(0).integers(0, 2**32, size, np.uint32)
    return spoil(reply, order, arrays=ArrayRecord({"subnet": Array(numbers)}))


@pytest.mark.attack
def test_numbers_that_were_not_masked_as_agreed_change_nothing() -> None:
    app = bad_client(noise, [1], [VICTIM])
    secure = train(FIVE | SECURE, app, clients=5, stalls=True)
    assert set(codes(secure).values()) == {Refusal.MERGED}
    assert same(secure.state, secure.space.init(3))


@pytest.mark.attack
def test_who_masks_wrongly_in_every_round_ends_no_run_and_is_named() -> None:
    values = FIVE | SECURE | {"rounds": 12, "space": "resnet-tiny"}
    secure = train(values, bad_client(noise, range(1, 13), [VICTIM]), clients=5)
    found = [codes(secure, number) for number in range(12)]
    named = {k for one in found for k, code in one.items() if code == Refusal.PROTOCOL}
    assert named == {VICTIM}
    assert set(found[-1]) <= named  # it is rested by then
    assert [len(one) for one in found].count(5) <= 6
    assert not same(secure.state, secure.space.init(3))


@pytest.mark.attack
def test_rounds_that_too_many_leave_end_no_run_once_those_are_rested() -> None:
    values = FIVE | SECURE | {"rounds": 6, "space": "resnet-tiny", "max-failures": 3}
    secure = train(values, silent("train", ["0", "1"]), clients=5)
    assert [len(codes(secure, number)) for number in range(6)] == [5, 5, 5, 0, 0, 0]
    assert len(rounds_of(secure)[3]["clients"]) == 3


@pytest.mark.attack
def test_three_clients_can_do_without_nobody_so_that_their_run_ends() -> None:
    values = FIVE | SECURE | {"rounds": 5, "clients-per-round": 3, "space": "resnet-tiny"}
    app = bad_client(noise, range(1, 6), [VICTIM])
    secure = train(values, app, clients=3, stalls=True)
    assert len(rounds_of(secure)) == 3


@pytest.mark.attack
def test_plain_weights_are_no_masked_reply() -> None:
    def plainly(reply: Message, order: Message) -> Message:
        return spoil(reply, order, arrays=order.content["arrays"])

    secure = train(FIVE | SECURE, bad_client(plainly, [1], [VICTIM]), clients=5)
    assert codes(secure) == {VICTIM: Refusal.DTYPE}


def test_what_few_hold_stays_and_the_run_says_so_once() -> None:
    said = Quiet()
    values = FIVE | {"secure-aggregation": True, "rounds": 2}
    secure = train(values, clients=5, progress=said)
    shares = [row["left_out"] for row in rounds_of(secure)]
    assert [read_row(row) for row in lines(secure.rows)] == secure.rows
    assert all(0 < share < 1 for share in shares)
    told = [line for line in said.said if "secure-few" in line]
    assert len(told) == 1


def test_losses_scores_and_rows_are_as_ever() -> None:
    values = FIVE | {"evaluate-every": 1, "evaluate-on": "clients"}
    plain, secure = (train(values | more, clients=5) for more in ({}, SECURE))

    def seen(strategy) -> list[dict]:
        return [
            {key: value for key, value in client.items() if key != "seconds"}
            for client in rounds_of(strategy)[0]["clients"]
        ]

    assert seen(plain) == seen(secure)


@pytest.mark.attack
def test_one_slanderer_leaves_out_itself_alone() -> None:
    app = spoiling("shares", lambda said: {"distrusted": "[0, 1, 3, 4]"})
    secure = train(FIVE | SECURE, app, clients=5)
    assert set(codes(secure)) == {VICTIM}


def test_a_round_that_closes_early_waits_for_the_threshold_and_drops_what_is_late() -> None:
    gone_on = threading.Event()

    def app(message: Message, context: Context) -> Message:
        if stage_of(message) == "train":
            if order_of(message) == 2:
                gone_on.set()
            elif context.node_config["partition-id"] == int(VICTIM):
                assert gone_on.wait(60)
        return client_app(message, context)

    values = FIVE | SECURE | {"rounds": 2, "clients-per-round": 3, "over-sample": 2}
    secure = train(values, app, clients=5, workers=5)
    first, second = rounds_of(secure)
    assert sum(client["accepted"] for client in first["clients"]) == 4  # not 3
    assert codes(secure) == {VICTIM: Refusal.ROUND_CLOSED}
    assert VICTIM not in [client["client"] for client in second["clients"]]  # still busy
    assert sum(client["accepted"] for client in second["clients"]) >= 3
    for late in second["late"]:
        assert (late["client"], late["folded"], late.get("refusal")) == (VICTIM, False, None)


# Keys of nodes


def keyed(folder, names: Iterable[str]) -> dict[int, dict[str, Scalar]]:
    """Return node configs that sign with their own keys, and believe those of ``names``."""
    (folder / "public").mkdir()
    nodes = node_configs(5)
    for node, config in nodes.items():
        key, name = ec.generate_private_key(ec.SECP384R1()), str(node - 1)
        private = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        file = folder / f"{name}.key"
        file.write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
        openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        if name in names:
            public = key.public_key().public_bytes(*openssh)
            (folder / "public" / f"{name}.pub").write_bytes(public)
        config |= {"node-key": str(file), "peer-keys": str(folder / "public")}
    return nodes


def test_nodes_that_know_each_others_keys_train_together(tmp_path) -> None:
    nodes = keyed(tmp_path, "01234")
    secure = train(FIVE | STRICT, clients=5, nodes=nodes)
    assert codes(secure) == {}


@pytest.mark.attack
def test_nodes_give_nothing_to_keys_that_no_known_node_has_signed(tmp_path) -> None:
    nodes = keyed(tmp_path, "01234")

    def false(said: dict) -> dict:
        other = said["keys"][:-1] + ("0" if said["keys"][-1] != "0" else "1")
        return said | {"keys": other}

    values = FIVE | STRICT | {"rounds": 2}
    secure = train(values, spoiling("keys", false), clients=5, nodes=nodes)
    first, second = codes(secure, 0), codes(secure, 1)
    assert first == dict.fromkeys("0134", Refusal.NOT_UNMASKED) | {VICTIM: Refusal.PROTOCOL}
    assert second == {VICTIM: Refusal.PROTOCOL}


@pytest.mark.attack
@pytest.mark.parametrize("more", [{"secure-few": True}, {"averaging": "maxnet", "beta-start": 1.0}])
def test_nodes_that_do_not_believe_the_server_do_not_take_any_terms(more, tmp_path) -> None:
    nodes, values = keyed(tmp_path, "01234"), FIVE | STRICT | {"beta-end": 0.999} | more
    assert train(values, clients=5, nodes=node_configs(5)).rows
    if more.get("beta-start"):
        values |= {"beta-start": 0.999}
    secure = train(values, clients=5, nodes=nodes, stalls=True)
    assert same(secure.state, secure.space.init(3))


@pytest.mark.attack
def test_nodes_that_believe_their_peers_alone_train_for_no_server_in_plain(tmp_path) -> None:
    nodes = keyed(tmp_path, "01234")
    with pytest.raises(RosterError, match="peer-keys"):
        train(FIVE, clients=5, nodes=nodes)


@pytest.mark.attack
def test_nor_for_one_that_says_that_it_would_be_masked(tmp_path) -> None:
    def lied_to(message: Message, context: Context) -> Message:
        if message.metadata.message_type == MessageType.QUERY:
            order = {**message.content["config"], "secure-aggregation": True}
            message.content["config"] = ConfigRecord(order)
        return client_app(message, context)

    recorder = Recorder(lied_to)
    nodes = keyed(tmp_path, "01234")
    plain = train(FIVE, recorder, clients=5, nodes=nodes, stalls=True)
    assert set(codes(plain).values()) == {Refusal.NOT_ALLOWED}
    assert not any("arrays" in reply.content for reply in recorder.sent.values())


@pytest.mark.attack
def test_nodes_that_believe_nobody_train_nothing(tmp_path) -> None:
    nodes = keyed(tmp_path, "")
    secure = train(FIVE | STRICT, clients=5, nodes=nodes, stalls=True)
    assert same(secure.state, secure.space.init(3))


# Settings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("averaging", "median"),
        ("averaging", "defl"),
        ("averaging", "clip"),
        ("wire-dtype", "float16"),
        ("late-replies", "fold"),
        ("max-change", 1.0),
        ("clients-per-round", 2),
        ("secure-clip", 0.0),
    ],
)
def test_what_secure_aggregation_cannot_do_is_refused_at_the_start(key, value) -> None:
    with pytest.raises(SettingsError, match=key):
        check_settings({"secure-aggregation": True, key: value})


def test_what_is_off_is_said_at_the_start() -> None:
    for more, there in (({}, False), (SECURE, True)):
        said = Quiet()
        strategy = train(FIVE | more, clients=5, progress=said)
        strategy.summary()
        assert any("secure-aggregation" in line for line in said.said) is there


def test_flowers_own_loop_has_too_few_exchanges() -> None:
    strategy = FlowerStrategy(ready(FIVE | SECURE).settings, progress=Quiet())
    grid = LocalGrid(client_app, node_configs(5), {})
    with pytest.raises(ValueError, match="secure-aggregation"):
        strategy.configure_train(1, ArrayRecord(strategy.space.init(3)), ConfigRecord(), grid)
    grid.close()
