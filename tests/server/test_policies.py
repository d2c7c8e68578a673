"""Assignment policies: budget and stream laws, each policy by hand, weights and sampling."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from flwr.app import Context, Message, MessageType
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from superfednas.client.app import app as client_app
from superfednas.common.settings import SettingsError
from superfednas.common.streams import Purpose, name_key, stream
from superfednas.nas.cost.costs import Costs
from superfednas.server.assign.client import Client, client_order, sample_clients
from superfednas.server.assign.policies import (
    POLICIES,
    Dynamic,
    Fixed,
    MostData,
    Policy,
    Random,
    Sandwich,
    SharedPerRound,
    Static,
    TrackingSandwich,
    most_capable,
)
from superfednas.server.assign.weights import bounded, round_weights
from superfednas.server.settings import check_settings
from superfednas.supernet import Architecture, SearchSpace, load_space
from superfednas.supernet.ladder import ladder
from superfednas.tasks.images import Images
from tests.support.training import App, Quiet, rounds_of, train


@dataclass(frozen=True)
class ToyArchitecture(Architecture):
    """One number a gene."""

    toy_sizes: tuple[int, ...]


class Toy(SearchSpace):
    """Networks that only have costs: gene g at choice c costs c times 10^g parameters."""

    name = "toy"
    architecture = ToyArchitecture

    def __init__(self, *genes: int) -> None:
        super().__init__(Images(10, 1, 8))
        self._genes = genes

    @property
    def genes(self) -> tuple[int, ...]:
        return self._genes

    def decode(self, choices: Sequence[int]) -> ToyArchitecture:
        return ToyArchitecture(tuple(choices))

    def module(self, arch: Architecture) -> nn.Module:
        raise AssertionError("assignment builds no module")

    def params(self, arch: Any) -> int:
        return 1 + sum(choice * 10**gene for gene, choice in enumerate(arch.toy_sizes))

    def macs(self, arch: Any) -> int:
        return 2 * self.params(arch)


TWO = Toy(2)
FOUR = Toy(2, 2)
TINY = load_space("resnet-tiny", in_channels=1, image_size=8)
LEAST, MOST = TINY.macs(TINY.smallest), TINY.macs(TINY.largest)
LEAST_MEMORY, MOST_MEMORY = (4 * TINY.activations(a) for a in (TINY.smallest, TINY.largest))
FEWEST_PARAMS, MOST_PARAMS = TINY.params(TINY.smallest), TINY.params(TINY.largest)


def drawn(
    space: SearchSpace, round_number: int, client: str = "", *, seed: int = 0
) -> Architecture:
    """Draw what the documented stream of (seed, round, name) gives."""
    rng = stream(seed, Purpose.ASSIGN, round=round_number, name=client)
    return space.decode([int(rng.integers(choices)) for choices in space.genes])


def names(count: int) -> list[str]:
    return [str(k) for k in range(count)]


# Laws


@st.composite
def budgeted(draw: st.DrawFn) -> list[Client]:
    return [
        Client(
            name,
            draw(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "macs": st.integers(LEAST, MOST + 1),
                        "params": st.integers(FEWEST_PARAMS, MOST_PARAMS + 1),
                        "memory": st.integers(LEAST_MEMORY, MOST_MEMORY + 1),
                    },
                )
            ),
            draw(st.none() | st.integers(0, 50)),
        )
        for name in draw(
            st.lists(st.sampled_from([*names(20), "a", "b"]), min_size=1, max_size=6, unique=True)
        )
    ]


@settings(max_examples=60, deadline=None)
@given(
    which=st.sampled_from(sorted(POLICIES)),
    clients=budgeted(),
    seed=st.integers(0, 2**31),
    first=st.sampled_from([1, 749]),
)
def test_nobody_is_ever_above_its_budget(
    which: str, clients: list[Client], seed: int, first: int
) -> None:
    policy = Fixed(TINY, seed, TINY.smallest) if which == "fixed" else POLICIES[which](TINY, seed)
    for number in range(first, first + 3):
        given_out = policy.assign(number, clients)
        assert list(given_out) == [client.name for client in clients]
        for client in clients:
            arch = given_out[client.name]
            TINY.validate(arch)
            spent = Costs(TINY).all(arch)
            assert all(spent[name] <= limit for name, limit in client.limits.items())
        favoured = policy.favoured(given_out)
        assert favoured and set(favoured) <= set(given_out)
        if which != "fixed":
            most = max(TINY.macs(arch) for arch in given_out.values())
            assert all(TINY.macs(given_out[name]) == most for name in favoured)


@settings(max_examples=40, deadline=None)
@given(
    which=st.sampled_from(sorted(POLICIES)),
    count=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    first=st.sampled_from([1, 749]),
)
def test_bare_names_are_clients_without_a_budget(
    which: str, count: int, seed: int, first: int
) -> None:
    bare, full = (POLICIES[which](TINY, seed) for _ in range(2))
    generous = [Client(name, {"macs": MOST, "params": MOST_PARAMS}) for name in names(count)]
    for number in range(first, first + 3):
        assert bare.assign(number, names(count)) == full.assign(number, generous)


@pytest.mark.parametrize("which", ["random", "tracking-sandwich", "sandwich", "shared-per-round"])
@pytest.mark.parametrize("number", [1, 2, 800])
def test_draws_do_not_depend_on_who_else_takes_part(which: str, number: int) -> None:
    # Everyone but the slots' holders draws; the budget forces draws to be lowered as well.
    half = (LEAST + MOST) // 2
    group = [Client(name) for name in ("50", "51", "52", "53")]
    watched = Client("7", {"macs": half})
    other = Client("8", {"macs": (2 * LEAST + MOST) // 3})
    slots = [Client("0"), Client("1")]

    def of_watched(before: list[Client], after: list[Client]) -> Architecture:
        policy = POLICIES[which](TINY, 3)
        if isinstance(policy, TrackingSandwich):
            policy.smallest.update({"7": 9, "8": 9, "50": 9, "51": 9, "52": 9, "53": 9})
        return policy.assign(number, [*before, watched, *after])["7"]

    if which == "sandwich":
        # Five clients; 7 stands outside the two slots of the round in both line-ups.
        t = (number - 1) % 5
        place = (t + 3) % 5
        found = set()
        for line_up in ([*slots, *group[:2]], [*slots, other, group[0]], [other, *group[:3]]):
            found.add(of_watched(line_up[:place], line_up[place:]))
    else:
        found = {
            of_watched(slots, []),
            of_watched(slots, group),
            of_watched([*slots, other], group),
            of_watched([*group, *slots], [other]),
        }
    assert len(found) == 1


@settings(max_examples=30, deadline=None)
@given(which=st.sampled_from(sorted(POLICIES)), seed=st.integers(0, 2**31), gap=st.integers(0, 4))
def test_a_restored_policy_goes_on_exactly(which: str, seed: int, gap: int) -> None:
    def group(number: int) -> list[Client]:
        chosen = sample_clients(names(9), 4, seed, number)
        return [Client(name, examples=int(name) % 4) for name in chosen]

    unbroken = POLICIES[which](TINY, seed)
    for number in range(1, 1 + gap):
        unbroken.assign(number, group(number))
    resumed = POLICIES[which](TINY, seed)
    resumed.restore(json.loads(json.dumps(unbroken.state())))
    for number in range(1 + gap, 7 + gap):
        expected = unbroken.assign(number, group(number))
        found = resumed.assign(number, group(number))
        assert found == expected
        assert resumed.favoured(found) == unbroken.favoured(expected)
        assert resumed.state() == unbroken.state()


def test_always_present_clients_hold_the_largest_and_smallest_equally_often() -> None:
    policy, everyone = TrackingSandwich(TINY, 5), names(40)
    largest, smallest = Counter[str](), Counter[str]()
    for number in range(1, 501):
        given_out = policy.assign(number, sample_clients(everyone, 8, 5, number))
        largest.update(name for name, arch in given_out.items() if arch == TINY.largest)
        smallest.update(name for name, arch in given_out.items() if arch == TINY.smallest)
    for counts in (largest, smallest):
        held = [counts[name] for name in everyone]
        assert sum(held) >= 500
        assert max(held) - min(held) <= 3


def tracking_oracle(
    space: SearchSpace, seed: int, rounds: Sequence[Sequence[str]]
) -> list[dict[str, Architecture]]:
    """Follow the paper's rule with plain dictionaries, for clients called by numbers."""
    largest: dict[int, int] = {}
    smallest: dict[int, int] = {}
    history = []
    for number, group in enumerate(rounds, start=1):
        left = sorted(int(name) for name in group)
        top = left[0]
        for client in left:
            if largest.get(client, 0) < largest.get(top, 0):
                top = client
        left.remove(top)
        chosen = {top: space.largest}
        if left:
            bottom = left[0]
            for client in left:
                if smallest.get(client, 0) < smallest.get(bottom, 0):
                    bottom = client
            left.remove(bottom)
            chosen[bottom] = space.smallest
        for client in left:
            chosen[client] = drawn(space, number, str(client), seed=seed)
        for client, arch in chosen.items():
            if arch == space.largest:
                largest[client] = largest.get(client, 0) + 1
            if arch == space.smallest:
                smallest[client] = smallest.get(client, 0) + 1
        history.append({name: chosen[int(name)] for name in group})
    return history


@settings(max_examples=60, deadline=None)
@given(
    space=st.sampled_from([TWO, FOUR, TINY]),
    seed=st.integers(0, 2**31),
    rounds=st.lists(
        st.lists(st.integers(0, 12).map(str), min_size=1, max_size=5, unique=True), max_size=8
    ),
)
def test_tracking_sandwich_follows_the_papers_rule(
    space: SearchSpace, seed: int, rounds: list[list[str]]
) -> None:
    policy = TrackingSandwich(space, seed)
    found = [policy.assign(number, group) for number, group in enumerate(rounds, start=1)]
    assert found == tracking_oracle(space, seed, rounds)


# Tracking sandwich by hand


def test_two_clients_take_turns_and_two_comes_before_ten() -> None:
    policy = TrackingSandwich(FOUR)
    big, small = FOUR.largest, FOUR.smallest
    group = ["10", "2"]
    assert policy.assign(1, group) == {"10": small, "2": big}
    assert policy.assign(2, group) == {"10": big, "2": small}
    assert policy.assign(3, group) == {"10": small, "2": big}
    assert policy.state() == {"largest": {"2": 2, "10": 1}, "smallest": {"10": 2, "2": 1}}


def test_numbers_come_before_texts_and_texts_go_by_letters() -> None:
    assert sorted(["b", "10", "a10", "2", "a2"], key=client_order) == ["2", "10", "a10", "a2", "b"]
    given_out = TrackingSandwich(FOUR).assign(1, ["kitchen", "hall", "3"])
    assert given_out["3"] == FOUR.largest
    assert given_out["hall"] == FOUR.smallest


def test_fewest_count_first_whatever_the_order_of_sampling() -> None:
    policy = TrackingSandwich(FOUR)
    policy.restore({"largest": {"0": 2, "1": 1, "2": 2}, "smallest": {"0": 5, "2": 4}})
    given_out = policy.assign(1, ["0", "1", "2"])
    # 1 has held the largest least; of the rest, 2 has held the smallest least.
    assert given_out == {"0": drawn(FOUR, 1, "0"), "1": FOUR.largest, "2": FOUR.smallest}


def test_a_draw_that_happens_to_be_an_end_point_counts() -> None:
    seen = set()
    for seed in range(6):
        policy = TrackingSandwich(TWO, seed)
        draw = drawn(TWO, 1, "2", seed=seed)
        assert policy.assign(1, ["0", "1", "2"])["2"] == draw
        seen.add(draw)
        lucky = draw == TWO.largest
        assert policy.state() == {
            "largest": {"0": 1} | ({"2": 1} if lucky else {}),
            "smallest": {"1": 1} | ({} if lucky else {"2": 1}),
        }
        second = policy.assign(2, ["0", "2"])
        # With a count of 1 each the tie goes to 0; without it the turn is 2's.
        assert second == (
            {"0": TWO.largest, "2": TWO.smallest}
            if lucky
            else {"0": TWO.smallest, "2": TWO.largest}
        )
    assert seen == {TWO.largest, TWO.smallest}


@pytest.mark.parametrize("which", ["tracking-sandwich", "sandwich", "most-data", "fixed"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_one_client_a_round_holds_the_largest(which: str, number: int) -> None:
    policy = POLICIES[which](FOUR)
    assert policy.assign(number, ["4"]) == {"4": FOUR.largest}
    assert policy.favoured({"4": FOUR.largest}) == ["4"]


@pytest.mark.parametrize("which", sorted(POLICIES))
def test_every_policy_serves_one_client(which: str) -> None:
    policy = POLICIES[which](TINY)
    for number in range(1, 4):
        assert list(policy.assign(number, ["4"])) == ["4"]


# The others by hand


def test_sandwich_slots_move_by_one_a_round() -> None:
    policy, group = Sandwich(FOUR), ["5", "3", "9"]
    for number in range(1, 8):
        t = number - 1
        expected = {name: drawn(FOUR, number, name) for name in group}
        expected[group[t % 3]] = FOUR.smallest
        expected[group[(t + 1) % 3]] = FOUR.largest
        assert policy.assign(number, group) == expected


def test_a_sandwich_slot_that_cannot_hold_the_largest_passes_it_on() -> None:
    weak = Client("1", {"macs": FOUR.macs(FOUR.smallest)})
    given_out = Sandwich(FOUR).assign(1, [Client("0"), weak, Client("2")])
    assert given_out == {"0": FOUR.smallest, "1": FOUR.smallest, "2": FOUR.largest}


def test_random_draws_from_the_clients_streams() -> None:
    policy = Random(TINY, 11)
    for number in (1, 2):
        expected = {name: drawn(TINY, number, name, seed=11) for name in ("0", "x")}
        assert policy.assign(number, ["0", "x"]) == expected
    assert Random(TINY, 11).assign(1, ["0"]) != Random(TINY, 12).assign(1, ["0"])


def test_static_gives_rung_n_and_dynamic_moves_it_on() -> None:
    rungs = list(ladder(TINY).values())[:5]
    assert rungs[0] == TINY.smallest and rungs[4] == TINY.largest
    group = ["0", "4", "7", "roof"]
    numbers = [0, 4, 7, name_key("roof")]
    static, dynamic = Static(TINY), Dynamic(TINY)
    for number in (1, 2, 6):
        assert list(static.assign(number, group).values()) == [rungs[n % 5] for n in numbers]
        moved = [rungs[(n + number - 1) % 5] for n in numbers]
        assert list(dynamic.assign(number, group).values()) == moved


def test_static_steps_down_to_what_fits() -> None:
    rungs = list(ladder(TINY).values())[:5]
    limit = TINY.macs(rungs[2])
    given_out = Static(TINY).assign(1, [Client("4", {"macs": limit}), Client("1", {"macs": limit})])
    assert given_out == {"4": rungs[2], "1": rungs[1]}


def test_most_data_gets_the_largest_second_most_the_smallest() -> None:
    policy = MostData(FOUR)
    group = [
        Client("0", examples=5),
        Client("1"),
        Client("2", examples=9),
        Client("10", examples=9),
    ]
    assert policy.assign(3, group) == {
        "0": drawn(FOUR, 3, "0"),
        "1": drawn(FOUR, 3, "1"),
        "2": FOUR.largest,
        "10": FOUR.smallest,
    }


def test_shared_per_round_is_full_width_then_anything() -> None:
    policy = SharedPerRound(TINY, 2)
    for number in (1, 750, 751, 752):
        shared = set(policy.assign(number, ["0", "1", "2"]).values())
        draw: Any = drawn(TINY, number, seed=2)
        if number <= 750:
            full = tuple(tuple(1.0 for _ in stage) for stage in draw.expand)
            assert shared == {type(draw)(draw.depth, full)}
        else:
            assert shared == {draw}
            assert any(ratio < 1 for stage in draw.expand for ratio in stage)
    assert policy.assign(1, ["0"]) != policy.assign(2, ["0"])


def test_fixed_is_one_architecture_with_beta_in_turn() -> None:
    arch = TINY.parse("random:3")
    policy = Fixed(TINY, 0, arch)
    turns = []
    for number in range(1, 5):
        given_out = policy.assign(number, ["10", "2", "3"])
        assert set(given_out.values()) == {arch}
        turns += policy.favoured(given_out)
    assert turns == ["2", "3", "10", "2"]
    assert Fixed(TINY).arch == TINY.largest
    with pytest.raises(ValueError):
        Fixed(TINY, 0, FOUR.largest)


# Budgets by hand


def test_the_largest_is_lowered_where_it_costs_least() -> None:
    # Costs are 1 + c0 + 10·c1 parameters: lowering gene 0 loses least.
    space, policy = Toy(3, 3), Random(Toy(3, 3))
    for limit, kept in ((23, (2, 2)), (22, (1, 2)), (21, (0, 2)), (20, (0, 1)), (1, (0, 0))):
        client = Client("0", {"params": limit})
        assert policy.largest_for(client) == space.decode(kept)
    assert policy.largest_for(Client("0", {"macs": 2 * 21})) == space.decode((0, 2))


def test_where_nobody_can_hold_the_largest_the_most_capable_holds_most() -> None:
    policy = TrackingSandwich(FOUR)
    group = [Client("0", {"params": 2}), Client("1", {"params": 11}), Client("2", {"params": 11})]
    assert [client.name for client in most_capable(policy, group)] == ["1", "2"]
    given_out = policy.assign(1, group)
    assert given_out["1"] == FOUR.decode((0, 1))
    assert given_out["0"] == FOUR.smallest
    assert "1" in policy.favoured(given_out)
    assert "0" not in policy.favoured(given_out)
    # Its turn is counted: next time it is 2's, unless 2's draw was as large.
    if given_out["2"] != FOUR.decode((0, 1)):
        assert policy.assign(2, group)["2"] == FOUR.decode((0, 1))


def test_only_who_can_hold_the_largest_competes_for_it() -> None:
    policy = TrackingSandwich(FOUR)
    weak, strong = Client("0", {"params": 3}), Client("9")
    for number in range(1, 4):
        assert policy.assign(number, [weak, strong]) == {"0": FOUR.smallest, "9": FOUR.largest}


@pytest.mark.parametrize("which", sorted(POLICIES))
def test_a_client_that_cannot_hold_the_smallest_is_refused_by_name(which: str) -> None:
    policy: Policy = POLICIES[which](TINY)
    weak = Client("attic", {"macs": LEAST - 1})
    assert not policy.eligible(weak)
    with pytest.raises(ValueError, match="'attic'"):
        policy.assign(1, [Client("0"), weak])


def test_fixed_refuses_who_cannot_hold_its_architecture() -> None:
    policy = Fixed(TINY)
    assert not policy.eligible(Client("attic", {"macs": MOST - 1}))
    assert policy.eligible(Client("attic", {"macs": MOST}))
    with pytest.raises(ValueError, match="'attic'"):
        policy.assign(1, [Client("attic", {"macs": MOST - 1})])


def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="differ"):
        Random(FOUR).assign(1, ["0", Client("0")])


# Weights


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 9), data=st.data(), beta=st.floats(0, 1))
def test_weights_add_up_to_one_and_the_favoured_share_beta(
    total: int, data: st.DataObject, beta: float
) -> None:
    top = data.draw(st.integers(1, total))
    chosen = dict.fromkeys(names(total), FOUR.largest)
    weights = round_weights(chosen, names(top), beta)
    assert list(weights) == names(total)
    assert sum(weights.values()) == pytest.approx(1)
    if top < total:
        assert sum(weights[name] for name in names(top)) == pytest.approx(beta)
    examples = {name: data.draw(st.integers(1, 99)) for name in chosen}
    shared = round_weights(chosen, names(top), beta, examples)
    everything = sum(examples.values())
    for name in chosen:
        assert shared[name] == pytest.approx(weights[name] * examples[name] / everything)


def test_weights_by_hand() -> None:
    chosen = dict.fromkeys("abcde", FOUR.largest)
    assert round_weights(chosen, ["b"], 0.9) == {
        "a": (1 - 0.9) / 4,
        "b": 0.9,
        "c": (1 - 0.9) / 4,
        "d": (1 - 0.9) / 4,
        "e": (1 - 0.9) / 4,
    }
    several = round_weights(chosen, ["a", "d"], 0.5)
    assert several == {n: 0.5 / 2 if n in "ad" else (1 - 0.5) / 3 for n in chosen}
    assert round_weights(chosen, list(chosen), 0.9) == dict.fromkeys(chosen, 1 / 5)
    assert round_weights({"a": FOUR.largest}, ["a"], 0.9) == {"a": 1.0}


def test_overlap_averaging_weighs_everyone_the_same() -> None:
    chosen = dict.fromkeys("abc", FOUR.largest)
    assert round_weights(chosen, ["a"], None) == dict.fromkeys("abc", 1.0)
    examples = {"a": 1, "b": 2, "c": 5}
    assert round_weights(chosen, ["a"], None, examples) == {"a": 1 / 8, "b": 2 / 8, "c": 5 / 8}


@pytest.mark.attack
@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(0, 50) | st.just(10**9), min_size=1, max_size=8),
    share=st.floats(0.05, 1),
)
def test_a_bound_on_shares_holds_and_changes_only_what_is_above_it(
    counts: list[int], share: float
) -> None:
    given_counts: dict[str, float] = dict(zip(names(len(counts)), counts, strict=True))
    found = bounded(given_counts, share)
    everything, some = sum(found.values()), sum(count > 0 for count in counts)
    most = max(found.values())
    assert all((found[name] > 0) == (count > 0) for name, count in given_counts.items())
    if share * some < 1 - 1e-9:
        assert all(count in (0, most) for count in found.values())
    else:
        assert most <= share * everything * (1 + 1e-6)
        for name, count in given_counts.items():
            assert found[name] == count or (found[name] == most < count)


@pytest.mark.attack
def test_images_that_are_only_claimed_buy_no_more_than_a_share() -> None:
    chosen = dict.fromkeys("abcd", FOUR.largest)
    claimed = {"a": 10**9, "b": 100, "c": 200, "d": 300}
    weights = round_weights(chosen, list("abcd"), None, claimed, 0.4)
    assert weights == pytest.approx({"a": 0.4, "b": 0.1, "c": 0.2, "d": 0.3})
    believed = round_weights(chosen, list("abcd"), None, claimed)
    assert believed["a"] > 0.999


@pytest.mark.attack
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_run_bounds_shares_and_says_that_counts_are_believed(share: float) -> None:
    said = Quiet()
    strategy = train(
        {"weighting": "examples", "averaging": "overlap", "max-share": share, "rounds": 1},
        lying(10**6),
        clients=3,
        progress=said,
    )
    (row,) = rounds_of(strategy)
    weights = {client["client"]: client["weight"] for client in row["clients"]}
    assert sum(weights.values()) == pytest.approx(1)
    assert max(weights.values()) == pytest.approx(share) if share else max(weights.values()) > 0.99
    strategy.summary()
    assert [line for line in said.said if "believed" in line and "max-share" in line]


def lying(images: int) -> App:
    """Serve as usual, except that a node says it has so many images."""

    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == MessageType.QUERY and context.node_id == 1:
            reply.content.config_records["config"]["examples"] = images
        return reply

    return app


def test_a_bound_without_weights_by_images_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"max-share = 0\.3: only weighting"):
        check_settings({"weighting": "uniform", "max-share": 0.3})


# Sampling


@settings(max_examples=60, deadline=None)
@given(
    total=st.integers(1, 30),
    count=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    number=st.integers(1, 2000),
)
def test_sampling_is_without_replacement_and_repeatable(
    total: int, count: int, seed: int, number: int
) -> None:
    found = sample_clients(names(total), count, seed, number)
    assert len(found) == len(set(found)) == min(count, total)
    assert set(found) <= set(names(total))
    assert found == sample_clients(names(total), count, seed, number)


def test_sampling_is_even_over_rounds() -> None:
    counts = Counter(
        name for number in range(1, 1001) for name in sample_clients(names(10), 3, 0, number)
    )
    # 300 each; s.d. of a binomial is √(1000 · .3 · .7) = 14.5.
    assert all(abs(counts[name] - 300) < 5 * 14.5 for name in names(10))
    firsts = {sample_clients(names(10), 3, 0, number)[0] for number in range(1, 101)}
    assert firsts == set(names(10))
