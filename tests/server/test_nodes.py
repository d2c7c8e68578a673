"""The identity of a node: what it says of itself, what of that is believed, and whose a name is."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

import superfednas.server.nodes
from superfednas.client.node_config import NodeConfigError, check_node_config
from superfednas.flower.local_grid import LocalGrid
from superfednas.records.refusals import Refusal
from superfednas.server.assign.client import Client, client_index, client_order
from superfednas.server.nodes import Roster
from superfednas.server.settings import check_settings
from superfednas.wire.claims import LARGEST_LIMIT, LONGEST_NAME, MOST_CLASSES, MOST_COUNTED, shown


class Answers(LocalGrid):
    """Nodes that come and go, with names; a query is answered by those that do not sleep."""

    def __init__(self, names: dict[int, str], **more: Any) -> None:
        self.names, self.more = dict(names), more
        self.asleep: set[int] = set()
        self.asked: list[int] = []
        super().__init__(self._answer, {k: {} for k in range(1, 9)}, {})

    def get_node_ids(self) -> Iterable[int]:
        return list(self.names)

    def _answer(self, message: Message, context: Context) -> Message:
        self.asked.append(context.node_id)
        if context.node_id in self.asleep:
            raise RuntimeError("asleep")
        answer = ConfigRecord({"name": self.names[context.node_id], "examples": 5} | self.more)
        return Message(RecordDict({"config": answer}), reply_to=message)


def _roster(said: list[str] | None = None, released: Sequence[str] = (), **limits: int) -> Roster:
    settings = check_settings({"num-classes": 10, "in-channels": 1, "image-size": 8})
    space = settings.space.load()
    return Roster(
        space,
        settings.policy(space),
        device_shares={},
        question={},
        note=lambda text, *_, **about: ([] if said is None else said).append(text),
        timeout=5.0,
        max_failures=limits.get("max_failures", 1),
        rest_rounds=limits.get("rest_rounds", 2),
        released=lambda: released,
    )


def test_where_all_would_rest_all_are_asked() -> None:
    assert _roster().rested(["a", "b"], 4) == ["a", "b"]
    roster = _roster()
    for name in ("a", "b"):
        roster.failed(name, 1, 3, "gone", silent=True)
    assert roster.rested(["a", "b"], 4) == ["a", "b"]
    assert roster.rested(["a", "b", "c"], 4) == ["c"]
    assert roster.rested(["a", "b", "c"], 5 + 1) == ["a", "b", "c"]
    again = _roster()
    again.restore(roster.state())
    assert again.rested(["a", "b", "c"], 4) == ["c"]


def holders(roster: Roster, grid: Answers) -> dict[str, int]:
    return {name: node for name, (node, _) in roster.refresh(grid).items()}


def test_nodes_are_looked_at_again_only_where_something_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With ten thousand known nodes, a look at each was most of a small round."""
    roster, grid = _roster(), Answers({5: "kitchen", 6: "hall"})
    looked: list[str] = []
    eligible = roster.policy.eligible

    def noting(client: Client) -> bool:
        looked.append(client.name)
        return eligible(client)

    monkeypatch.setattr(roster.policy, "eligible", noting)
    assert holders(roster, grid) == {"kitchen": 5, "hall": 6}
    assert sorted(looked) == ["hall", "kitchen"]
    for change, expected in (
        (lambda: None, {"kitchen": 5, "hall": 6}),
        (lambda: grid.names.update({7: "cellar"}), {"kitchen": 5, "hall": 6, "cellar": 7}),
        (lambda: grid.names.pop(6), {"kitchen": 5, "cellar": 7}),
        (lambda: None, {"kitchen": 5, "cellar": 7}),
        (lambda: grid.names.update({6: "hall"}), {"kitchen": 5, "hall": 6, "cellar": 7}),
    ):
        looked.clear()
        before = holders(roster, grid)
        change()
        assert looked == []
        assert holders(roster, grid) == expected
        assert bool(looked) == (expected != before)


def test_a_name_stays_with_its_node_while_that_is_online() -> None:
    """A restarted node has a new id while Flower still calls the old one online."""
    said: list[str] = []
    roster, grid = _roster(said, max_failures=0), Answers({5: "kitchen", 6: "hall"})
    assert holders(roster, grid) == {"kitchen": 5, "hall": 6}
    grid.names[2] = "kitchen"
    assert holders(roster, grid)["kitchen"] == 5
    assert any("'kitchen'" in line and "claimed twice" in line for line in said)
    for silent in (False, True):
        roster.failed("kitchen", 5, 1, "no reply", silent=silent)
        assert holders(roster, grid)["kitchen"] == 5
    del grid.names[5]
    assert holders(roster, grid)["kitchen"] == 2
    assert any("client kitchen has come back as node 2" in line for line in said)
    grid.names[5] = "kitchen"
    assert holders(roster, grid)["kitchen"] == 5


STEPS = st.lists(
    st.tuples(
        st.integers(1, 6), st.sampled_from(["comes", "goes", "is silent", "restart", "release"])
    ),
    max_size=25,
)


@pytest.mark.attack
@given(names=st.lists(st.sampled_from("abc"), min_size=6, max_size=6), steps=STEPS)
@settings(max_examples=100, deadline=None)
def test_whose_a_name_is(names: list[str], steps: list[tuple[int, str]]) -> None:
    """The first that said it where that is online; else who has it; else another.

    Once it is released there is no first, and who had it comes after all others.
    """
    released: list[str] = []
    roster, grid = _roster(released=released, max_failures=0), Answers({})
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    former: dict[str, int] = {}
    for node, what in steps:
        name = names[node - 1]
        if what == "comes":
            grid.names[node] = name
        elif what == "goes":
            grid.names.pop(node, None)
        elif what == "is silent" and last.get(name) == node:
            roster.failed(name, node, 1, "no reply", silent=True)
        elif what == "restart":  # of the server
            state = json.loads(json.dumps(roster.state()))
            roster = _roster(released=released, max_failures=0)
            roster.restore(state)
        elif what == "release":
            released.append(name)
            had = last.pop(name, None)
            had = first.pop(name, had)
            if had is not None:
                former.setdefault(name, had)
        expected = {}
        for said in sorted(set(grid.names.values())):
            claim = sorted(n for n in grid.names if grid.names[n] == said)
            claim.sort(key=lambda n, said=said: n == former.get(said))
            before = [first.get(said), last.get(said)]
            before = [n for n in before if n != former.get(said)]
            has = next((n for n in before if n in claim), claim[0])
            expected[said] = last[said] = has
            if has != former.get(said):
                first.setdefault(said, has)
                former.pop(said, None)
        assert holders(roster, grid) == expected


@pytest.mark.parametrize("online", [True, False])
def test_a_released_name_goes_to_another_node(online: bool) -> None:
    """At the next look, also where no node has come or gone since."""
    said: list[str] = []
    released: list[str] = []
    roster, grid = _roster(said, released), Answers({5: "kitchen", 6: "hall"})
    holders(roster, grid)
    grid.names[2] = "kitchen"
    assert holders(roster, grid)["kitchen"] == 5
    if not online:
        del grid.names[5]
    roster.failed("kitchen", 5, 1, "no reply", silent=True)
    assert roster.rested(["kitchen", "hall"], 2) == ["hall"]
    released.append("kitchen")
    assert holders(roster, grid) == {"kitchen": 2, "hall": 6}
    assert roster.rested(["kitchen", "hall"], 2) == ["kitchen", "hall"]  # it failed nothing
    assert any("client kitchen" in line and "node 5" in line for line in said)
    grid.names[5] = "kitchen"
    for _ in range(2):
        assert holders(roster, grid)["kitchen"] == 2
        roster.restore(json.loads(json.dumps(roster.state())))


def test_who_loses_a_name_keeps_it_only_until_another_comes() -> None:
    roster, grid = _roster(released=["kitchen"]), Answers({5: "kitchen"})
    roster.restore(roster.state() | {"owners": {"kitchen": 5}, "holders": {"kitchen": 5}})
    assert holders(roster, grid) == {"kitchen": 5}
    grid.names[7] = "kitchen"
    assert holders(roster, grid) == {"kitchen": 7}


def test_a_checkpoint_knows_what_was_obeyed() -> None:
    """A run that resumes before a release obeys it again, and one after it does not."""
    released: list[str] = []
    roster, grid = _roster(released=released), Answers({5: "kitchen"})
    holders(roster, grid)
    before = json.loads(json.dumps(roster.state()))
    released.append("kitchen")
    grid.names = {2: "kitchen"}
    assert holders(roster, grid) == {"kitchen": 2}
    after = json.loads(json.dumps(roster.state()))
    for state, expected in ((before, 4), (after, 2)):
        again = _roster(released=released)
        again.restore(state)
        assert holders(
            again,
            Answers(
                {2: "kitchen", 4: "kitchen"} if expected == 2 else {4: "kitchen", 5: "kitchen"}
            ),
        ) == {"kitchen": expected}


def test_a_node_that_did_not_say_who_it_is_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(superfednas.server.nodes.time, "monotonic", lambda: now[0])
    roster, grid = _roster(), Answers({1: "a", 2: "b"})
    grid.asleep = {2}
    assert holders(roster, grid) == {"a": 1}
    assert holders(roster, grid) == {"a": 1} and grid.asked.count(2) == 1
    grid.asleep.clear()
    now[0] = 61.0
    assert holders(roster, grid) == {"a": 1, "b": 2}
    assert grid.asked.count(1) == 1


@pytest.mark.attack
def test_a_node_that_never_answers_is_asked_ever_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All others wait for it meanwhile."""
    now = [0.0]
    monkeypatch.setattr(superfednas.server.nodes.time, "monotonic", lambda: now[0])
    roster, grid = _roster(), Answers({1: "a", 2: "b"})
    grid.asleep = {2}
    asked_at: list[float] = []
    for minute in range(5 * 60):
        now[0] = 60.5 * minute
        before = grid.asked.count(2)
        roster.refresh(grid)
        asked_at += [now[0]] * (grid.asked.count(2) - before)
    pauses = [later - sooner for sooner, later in itertools.pairwise(asked_at)]
    assert pauses == sorted(pauses) and len(asked_at) < 12
    assert 3600 <= pauses[-1] < 3700


@pytest.mark.parametrize("counts", [[5], [2, 0, 3], [0, 0, 5]])
def test_classes_are_known_where_a_node_tells_them(counts: list[int]) -> None:
    grid = Answers({1: "a"}, **{"class-counts": counts})
    ((_, client),) = _roster().refresh(grid).values()
    assert client.classes == tuple(counts)
    ((_, client),) = _roster().refresh(Answers({1: "a"})).values()
    assert client.classes is None


@pytest.mark.parametrize("counts", [[4], [6, -1], [2.5, 2.5], "5", 5, [], [True] * 5])
def test_class_counts_that_cannot_be_are_refused(counts: Any) -> None:
    assert refused({"class-counts": counts}) == [Refusal.CLASS_COUNTS]


# What is believed


def refused(claims: Mapping[str, Any], drop: Iterable[str] = ()) -> list[Refusal]:
    """Return why a node is left out that says the right things but for ``claims``."""
    codes: list[Refusal] = []

    def note(text: str, /, event: str = "note", **about: Any) -> None:
        assert len(text) < 700 and text.isprintable()
        codes.extend([about["refusal"]] if event == "left-out" else [])

    def app(message: Message, context: Context) -> Message:
        answer = {"name": "a", "examples": 5} | dict(claims)
        record = ConfigRecord({k: v for k, v in answer.items() if k not in drop})
        return Message(RecordDict({"config": record}), reply_to=message)

    roster, grid = _roster(), LocalGrid(app, {1: {}}, {})
    roster.note = note
    try:
        usable = roster.refresh(grid)
    finally:
        grid.close()
    assert bool(usable) != bool(codes)
    return codes


IMPOSSIBLE = [-1, True, 1.0, math.nan, math.inf, "5", b"5", [5], 10**9 + 1, 2**63 - 1, 10**5000]


@pytest.mark.attack
@pytest.mark.parametrize("key", ["examples", "validation-examples", "num-partitions"])
@pytest.mark.parametrize("value", IMPOSSIBLE, ids=shown)
def test_counts_are_whole_numbers_within_bounds(key: str, value: Any) -> None:
    assert refused({key: value}) == [Refusal.CLAIM]
    assert refused({key: MOST_COUNTED}) == []


@pytest.mark.attack
@pytest.mark.parametrize(
    "value",
    [-1, 0, 0.5, True, -math.inf, math.nan, math.inf, "5", [5], 10**18 + 1, 10**5000],
    ids=shown,
)
def test_limits_are_numbers_within_bounds(value: Any) -> None:
    assert refused({"max-macs": value}) == [Refusal.CLAIM]
    assert refused({"max-macs": LARGEST_LIMIT}) == refused({"max-macs": 1e12}) == []


@pytest.mark.attack
@pytest.mark.parametrize(
    "name", ["", " ", "9" * 5000, "a" * 101, "a\nb", "\x1b[2J", "\u202ea", b"a", 5, True, ["a"]]
)
def test_a_name_is_a_short_printable_text(name: Any) -> None:
    assert refused({"name": name}) == [Refusal.NO_IDENTITY]
    assert refused({"name": "9" * LONGEST_NAME}) == refused({"name": "kitchen 2é"}) == []


@pytest.mark.attack
@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"problem": "x" * 10**6}, Refusal.NODE_PROBLEM),
        ({"problem": [1.5] * 10**5}, Refusal.NODE_PROBLEM),
        ({"problem": "a\nround 3: all is well"}, Refusal.NODE_PROBLEM),
        ({"device-class": "x" * 10**6}, Refusal.CLAIM),
        ({"device-class": 5}, Refusal.CLAIM),
        ({"meaning": '{"classes": 5}'}, Refusal.CLAIM),
        ({"device-class": "phone"}, Refusal.DEVICE_CLASS),
        ({"class-counts": [0] * MOST_CLASSES + [5]}, Refusal.CLASS_COUNTS),
        ({"max-" + "x" * 10**6: 5}, Refusal.UNKNOWN_LIMIT),
        ({f"max-{number}": 5 for number in range(10**4)}, Refusal.UNKNOWN_LIMIT),
        ({"max-latency": 5}, Refusal.UNKNOWN_LIMIT),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_what_else_a_node_says_is_bounded(claims: dict[str, Any], code: Refusal) -> None:
    assert refused(claims) == [code]


@pytest.mark.attack
@pytest.mark.parametrize("key", ["name", "examples"])
def test_a_node_says_its_name_and_its_examples(key: str) -> None:
    assert len(refused({}, drop=[key])) == 1


@pytest.mark.attack
@given(name=st.text() | st.integers(0, 10**30).map(str) | st.just("9" * 5000))
def test_every_name_has_a_place(name: str) -> None:
    assert client_order(name) <= client_order(name + "0") or not name.isdecimal()
    assert client_index(name) >= 0


@pytest.mark.attack
@given(
    config=st.fixed_dictionaries(
        {"name": st.text(max_size=120) | st.sampled_from(["9" * 100, "9" * 101, "a\tb", " "])},
        optional={
            "num-partitions": st.integers(-1, 2**62),
            "max-macs": st.integers(-1, 2**62),
            "max-params": st.integers(-1, 2**62),
        },
    )
)
def test_a_node_config_is_refused_where_its_claims_would_be(config: dict[str, Any]) -> None:
    try:
        check_node_config({**config, "data-path": "digits"})
        taken = True
    except NodeConfigError:
        taken = False
    # A budget may be too small for every subnet, which no node knows beforehand.
    there = set(refused(config)) - {Refusal.TOO_SMALL}
    assert taken == (not there)


# Claims that concern others


@pytest.mark.attack
@given(liars=st.integers(0, 3), lie=st.integers(1, 10**9), early=st.booleans())
@settings(max_examples=50, deadline=None)
def test_how_many_parts_there_are_is_said_by_most(liars: int, lie: int, early: bool) -> None:
    honest = 4
    said = dict.fromkeys(range(1, liars + 1), lie)
    said |= dict.fromkeys(range(liars + 1, liars + honest + 1), honest)

    def app(message: Message, context: Context) -> Message:
        answer = {"name": f"n{context.node_id}", "examples": 5}
        answer["num-partitions"] = said[context.node_id]
        return Message(RecordDict({"config": ConfigRecord(answer)}), reply_to=message)

    roster, grid = _roster(), LocalGrid(app, {node: {} for node in said}, {})
    try:
        assert len(roster.refresh(grid)) == liars + honest
    finally:
        grid.close()
    assert (roster.parts, roster.missing) == (honest, 0)


def test_a_fleet_is_waited_for_whatever_its_first_node_says() -> None:
    """One that says it is the only one cannot end a run before the others have come."""

    class Fleet:
        looks = 0

        def __init__(self) -> None:
            nodes = Answers({1: "a", 2: "b"}, **{"num-partitions": 1})
            self.push_messages, self.pull_messages = nodes.push_messages, nodes.pull_messages

        def get_node_ids(self) -> Iterable[int]:
            self.looks += 1
            return [1, 2] if self.looks > 1 else [1]

    fleet: Any = Fleet()
    assert len(_roster().wait_for(fleet, 2, 20.0, wanted="two")) == 2
