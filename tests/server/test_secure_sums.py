"""Sums of secure aggregation on slices: they equal the plain average, whoever drops out."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.client.node_config import NodeConfigError
from superfednas.client.secure import Unsafe
from superfednas.client.worker.handover import FOLDER_VARIABLE
from superfednas.server.round.check import BadReply
from superfednas.server.secure.answers import Recovery, keys_in, shares_in
from superfednas.wire.secure.cells import view
from superfednas.wire.secure.parties import Parties
from tests.support.secure import ASKED, TINY, Federation, furthest

SPACE = TINY.load()
FLOAT32 = 2**-22  # what weights of size 1 may be rounded by


@st.composite
def federations(draw, least=3, most=7, few=True):
    """Draw the clients of a round: subnets of every shape, rolling windows, weights."""
    seeds = draw(st.lists(st.integers(0, 10**6), min_size=least, max_size=most))
    archs = [SPACE.sample(np.random.default_rng(seed)) for seed in seeds]
    weights = [draw(st.sampled_from([1.0, 0.5, 1 / 3, 0.015])) for _ in archs]
    shifts = [draw(st.sampled_from([0, 0, 8, 24])) for _ in archs]
    return Federation(archs, weights, shifts, few=few)


def alike(count: int, **told) -> Federation:
    """Give clients that all hold the whole supernet."""
    found = Federation([SPACE.largest] * count, **told)
    found.exchange_keys()
    found.exchange_shares()
    return found


def step(federation: Federation) -> float:
    """Return by how much rounding may move a mean: half a step for each client."""
    least = min(weight for weight in federation.weights if weight)
    return len(federation.archs) / 2 / federation.parties.scale / least + FLOAT32


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(federation=federations(), seed=st.integers(0, 99))
def test_the_sum_is_the_plain_average_to_the_step_of_the_fixed_point(federation, seed) -> None:
    federation.exchange_keys()
    federation.exchange_shares()
    changes, everyone = federation.changes(seed), range(len(federation.archs))
    total = federation.sum_of(changes)
    merged = federation.unmasked(total, everyone, everyone)
    assert merged is not None
    assert furthest(merged, federation.plain(changes)) <= step(federation)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(federation=federations(least=6), data=st.data())
def test_it_is_that_of_the_others_where_clients_drop_out_after_their_shares(
    federation, data
) -> None:
    count = len(federation.archs)
    threshold = federation.exchange_keys().threshold
    federation.exchange_shares()
    order = data.draw(st.permutations(range(count)))
    survivors = sorted(order[: data.draw(st.integers(threshold, count))])
    answering = order[:threshold]  # some survivors may be gone by then
    changes = federation.changes(1)
    there = {k: change for k, change in changes.items() if k in survivors}
    merged = federation.unmasked(federation.sum_of(there), survivors, answering)
    assert merged is not None
    assert furthest(merged, federation.plain(there)) <= step(federation)


def test_a_client_that_gave_no_shares_is_left_out_of_the_masks() -> None:
    federation = Federation([SPACE.largest] * 5)
    federation.exchange_keys()
    federation.exchange_shares([0, 1, 3, 4])
    changes = {k: c for k, c in federation.changes(1).items() if k != 2}
    there = [0, 1, 3, 4]
    merged = federation.unmasked(federation.sum_of(changes), there, there)
    assert merged is not None
    assert furthest(merged, federation.plain(changes)) <= step(federation)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(federation=federations(least=5, few=False), gone=st.integers(-1, 4))
def test_parts_of_fewer_than_three_holders_stay_as_they_were(federation, gone) -> None:
    federation.exchange_keys()
    members = federation.exchange_shares()
    everyone = set(range(len(federation.archs)))
    survivors = sorted(everyone - {gone})
    if len(survivors) < federation.parties.threshold:
        survivors = sorted(everyone)
    changes = {k: federation.changes(1)[k] for k in survivors}
    total = federation.sum_of(changes)
    tiers = total.rule.released(total.cells, survivors)
    merged = federation.unmasked(total, survivors, survivors)
    plain = federation.plain(changes)
    assert merged is not None and set(members) == everyone
    for cell in total.cells:
        here = cell.tensor, view(cell.place)
        new, old = merged[here[0]][here[1]], federation.state[here[0]][here[1]]
        there = set(cell.holders) & set(survivors)
        if total.rule.tier(cell) in tiers:
            assert len(there) >= 3 or not there
            wanted = plain[here[0]][here[1]]
            assert float((new.double() - wanted).abs().max()) <= step(federation)
        else:
            assert (new == old).all()
        if len(there) < 3:
            assert (new == old).all()


def test_what_one_client_sends_says_nothing_and_is_new_in_every_session() -> None:
    change = np.full(SPACE.params(SPACE.largest), 1e-3, np.float32)
    replies = []
    for session in (1, 2):
        federation = alike(3, session=session)
        replies.append(federation.reply(0, change))
    size = change.size
    assert (replies[0] == replies[1]).sum() < 5
    for reply in replies:
        counts = np.bincount(reply >> 24, minlength=256)
        chi_square = float(((counts - size / 256) ** 2 / (size / 256)).sum())
        assert 120 < chi_square < 420  # 255 degrees of freedom: beyond it once in 10⁹
        ones = np.unpackbits(reply.view(np.uint8)).mean()
        assert abs(ones - 0.5) < 0.005


def test_parts_that_are_not_to_be_sent_are_zeros_alone() -> None:
    archs = [SPACE.largest, SPACE.smallest, SPACE.smallest]
    federation = Federation(archs, few=False)
    federation.exchange_keys()
    federation.exchange_shares()
    reply = federation.reply(0, federation.changes(1)[0])
    shared = SPACE.params(SPACE.smallest)
    assert shared - 5 <= np.count_nonzero(reply) <= shared


def test_a_client_clips_its_own_change() -> None:
    federation = alike(4, clip=0.5)
    changes = federation.changes(1)
    lengths = {k: float(np.linalg.norm(change)) for k, change in changes.items()}
    assert min(lengths.values()) > 1
    merged = federation.unmasked(federation.sum_of(changes), range(4), range(4))
    assert merged is not None
    short = {k: change * (0.5 / lengths[k]) for k, change in changes.items()}
    assert furthest(merged, federation.plain(short)) <= step(federation)


@pytest.mark.attack
def test_a_sum_longer_than_clipped_changes_can_make_is_not_merged() -> None:
    federation = alike(4)
    total = federation.sum_of(federation.changes(1))
    noise = np.random.default_rng(0).integers(0, 2**32, SPACE.params(SPACE.largest), np.uint32)
    total.add(0, noise, federation.cuts[0])  # as if it had sent more than it masked
    assert federation.unmasked(total, range(4), range(4)) is None


@pytest.mark.attack
def test_what_a_client_adds_that_was_told_something_else_cannot_be_read() -> None:
    federation = Federation([SPACE.largest] * 4)
    told = federation.exchange_keys()
    given = federation.exchange_shares([0, 1, 2])
    values = json.loads(told.text())
    values["parties"][0]["weight"] = 0.5
    federation.parties = Parties.read(json.dumps(values))
    given = given | federation.exchange_shares([3])
    federation.members = given
    changes = federation.changes(1)
    last = federation.reply(3, changes.pop(3))
    federation.parties = told
    total = federation.sum_of(changes)
    total.add(3, last, federation.cuts[3])
    tiers = total.rule.released(total.cells, range(4))
    recovery = Recovery(told, given, range(4), tiers)
    for k in range(3):
        recovery.take(federation.handed_out(k, range(4)), k)
    assert not recovery.complete()
    assert recovery.spoilt == {3}
    with pytest.raises(Unsafe):
        federation.handed_out(3, range(4))


# What a client refuses


def _text(message: Message) -> str:
    return str(message.content["config"]["shares"])


def test_a_client_hands_out_one_kind_of_share_of_each_other_and_only_once() -> None:
    federation = alike(6)
    federation.sum_of(federation.changes(1))
    given = json.loads(
        federation.handed_out(0, [0, 1, 2, 3, 4])["shares"]
        if False
        else _text(federation.handed_out(0, [0, 1, 2, 3, 4]))
    )
    assert {int(k) for k, labels in given.items() if "seed" in labels} == {5}
    assert all(len(labels) == 1 or "seed" not in labels for labels in given.values())
    for survivors in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 5], range(6)):
        with pytest.raises(Unsafe):
            federation.handed_out(0, survivors)


@pytest.mark.attack
@pytest.mark.parametrize("survivors", [[0, 1, 2, 3], [1, 2, 3, 4, 5], [0, 1, 2, 3, 9], []])
def test_a_client_does_not_unmask_for_too_few_or_for_strangers(survivors) -> None:
    federation = alike(6)
    federation.sum_of(federation.changes(1))
    with pytest.raises(Unsafe):
        federation.handed_out(0, survivors)


@pytest.mark.attack
def test_a_client_masks_once_a_session_and_only_after_its_shares() -> None:
    federation = alike(4)
    change = federation.changes(1)[0]
    federation.reply(0, change)
    with pytest.raises(Unsafe):
        federation.reply(0, 2 * change)
    early = Federation([SPACE.largest] * 4)
    early.exchange_keys()
    early.members = federation.members
    with pytest.raises(Unsafe):
        early.reply(0, change)
    with pytest.raises(Unsafe):
        early.handed_out(0, range(4))


@pytest.mark.attack
def test_a_client_does_not_mask_for_fewer_than_the_threshold() -> None:
    federation = alike(6)
    for members in ([0, 1, 2, 3], [1, 2, 3, 4, 5]):
        with pytest.raises(Unsafe):
            federation.reply(0, federation.changes(1)[0], members)


@pytest.mark.attack
def test_all_agree_on_the_space_too() -> None:
    """From another space other cells follow, with holders enough: it is not the server's to say."""
    federation = alike(4)
    change = federation.changes(1)[0]
    federation.parties = replace(federation.parties, space=replace(TINY, image_size=16))
    with pytest.raises(Unsafe):
        federation.reply(0, change)


@pytest.mark.attack
def test_a_node_imports_no_module_because_a_round_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text("open(__file__ + '.mark', 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    part = {"partition-id": 0, "num-partitions": 4}
    federation = Federation([SPACE.largest] * 4, nodes=dict.fromkeys(range(4), part))
    right = federation.exchange_keys()
    federation.parties = replace(right, space=replace(TINY, space="planted:Space"))
    federation.exchange_shares()
    with pytest.raises(NodeConfigError, match="planted:Space"):
        federation.reply(0, federation.changes(1)[0])
    assert not list(tmp_path.glob("*.mark"))


def test_a_session_is_not_repeated() -> None:
    federation = alike(3)
    with pytest.raises(Unsafe):
        federation.ask(0, "keys")
    federation.session += 1
    federation.ask(0, "keys")
    with pytest.raises(Unsafe):
        federation.ask(0, "shares", parties=federation.parties.text())


@pytest.mark.attack
@pytest.mark.parametrize("wrong", ["keys", "weight", "twice", "two", "name"])
def test_a_client_gives_no_shares_to_a_round_that_is_not_as_it_should_be(wrong: str) -> None:
    federation = Federation([SPACE.largest] * 4)
    told = federation.exchange_keys()
    values = json.loads(told.text())
    match wrong:
        case "keys":
            values["parties"][0]["keys"] = values["parties"][1]["keys"]
        case "weight":
            values["parties"][1]["weight"] = 1.5
        case "twice":
            values["parties"][2]["name"] = values["parties"][1]["name"]
        case "two":
            values["parties"] = values["parties"][:2]
        case "name":
            values["parties"][0]["name"] = "stranger"
    with pytest.raises(Unsafe):
        federation.ask(0, "shares", parties=json.dumps(values))


# What the server refuses


@pytest.mark.attack
@pytest.mark.parametrize("stage", ["keys", "shares"])
@settings(max_examples=25, deadline=None)
@given(
    junk=st.dictionaries(
        st.sampled_from(["keys", "signature", "shares", "commitments"]),
        st.one_of(
            st.text(max_size=200),
            st.integers(-(2**60), 2**60),
            st.floats(),
            st.binary(max_size=80),
            st.lists(st.text(), max_size=5),
            st.lists(st.integers(-9, 9), max_size=5).map(json.dumps),
            st.just("[" * 1000),
            st.just("00" * 64),
            st.just("[]"),
            st.just('{"0": {"0": 3}}'),
        ),
    )
)
def test_answers_that_are_none_are_refused_in_one_way(stage, junk) -> None:
    message = Message(RecordDict({"config": ConfigRecord(junk)}), reply_to=ASKED)
    federation = alike(3)
    recovery = Recovery(federation.parties, federation.members, range(3), {0})
    reads = {"keys": lambda: keys_in(message), "shares": lambda: recovery.take(message, 0)}
    for read in (reads[stage], lambda: shares_in(message, federation.parties)):
        with contextlib.suppress(BadReply):
            read()
    assert not recovery.complete()
