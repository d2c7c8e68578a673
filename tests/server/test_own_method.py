"""A method, a policy or an averaging of one's own: what it is given, asked, and remembers."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.common.settings import Scalar, SettingsError, flatten
from superfednas.records.checkpoint import Checkpoint
from superfednas.records.folder import RunFolder
from superfednas.records.rows import RoundRow
from superfednas.server.assign.client import Client
from superfednas.server.assign.policies import Policy
from superfednas.server.average.overlap import OverlapAverage
from superfednas.server.methods import ASSIGNMENTS, DEFAULT, METHODS
from superfednas.server.methods.base import Method, Setup, StandsFor, about
from superfednas.server.round.orders import SUPERNET, Order, Round, RoundPlan
from superfednas.server.round.outcome import Outcome
from superfednas.server.settings import check_settings
from superfednas.server.strategy import SupernetStrategy
from superfednas.supernet import State
from superfednas.tasks.metric import Tally
from tests.support.rows import lines
from tests.support.strategies import space
from tests.support.training import (
    Quiet,
    Recorder,
    fold_by_hand,
    full_run,
    ready,
    rounds_of,
    same,
    train,
)

SPACE = space()
BY_CLIENTS: dict[str, Scalar] = {"evaluate-every": 1, "evaluate-on": "clients"}


class Groups(Method):
    """Even clients train the supernet, odd ones a state beside it, all of them the smallest."""

    settings: ClassVar[StandsFor] = {"weighting": "examples", "space": "resnet-tiny"}

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.seen: list[Outcome] = []
        self.rounds = 0

    def orders(self, round: Round, clients: Sequence[Client]) -> list[Order]:  # noqa: A002
        return [
            round.order(
                client,
                self.setup.space.smallest,
                target=SUPERNET if int(client.name) % 2 == 0 else "odd",
                local={"lr": 0.01} if client.name == "0" else None,
            )
            for client in clients
        ]

    def after(self, plan: RoundPlan, outcome: Outcome) -> Mapping[str, State]:
        self.seen.append(outcome)
        self.rounds = plan.round
        return outcome.targets

    def state(self) -> dict[str, Any]:
        return {"rounds": self.rounds}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.rounds = state["rounds"]


class Forgetful(Groups):
    """Loses the supernet."""

    def after(self, plan: RoundPlan, outcome: Outcome) -> Mapping[str, State]:
        return {"odd": outcome.targets["odd"]}


class Idle(Method):
    """Gives no orders, as it does not say how."""


class Strange(OverlapAverage):
    """Leaves every state as it was."""

    def result(self) -> State:
        return self._state


class Middling(Policy):
    """Everyone draws at random."""

    def _choose(self, round: int, clients: list[Client]) -> dict[str, Any]:  # noqa: A002
        return {client.name: self.random(round, client) for client in clients}


def mine(name: str) -> str:
    return f"{__name__}:{name}"


def method_of(strategy: SupernetStrategy) -> Groups:
    # Imported by name, so its class is another object than the one here where pytest has two.
    method: Any = strategy.method
    assert type(method).__name__ == "Groups"
    return method


# What is accepted and what is refused


def test_a_method_of_ones_own_says_what_auto_stands_for() -> None:
    found = check_settings({"method": mine("Groups")})
    assert (found.weighting, found.assignment) == ("examples", "tracking-sandwich")
    assert check_settings(flatten(found)) == found
    method = found.for_space(SPACE)
    assert isinstance(method, Groups)
    assert method.setup.by_examples and method.setup.options == flatten(found)
    assert type(method.setup.policy) is ASSIGNMENTS["tracking-sandwich"]


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [
        ("method", "fedmagic", "maxnet"),
        ("method", "nowhere:Method", "'nowhere:Method'"),
        ("method", mine("Middling"), "no subclass of superfednas.server.methods.base.Method"),
        ("method", mine("Idle"), "lacks orders"),
        ("averaging", "mean", "trimmed-mean"),
        ("averaging", mine("Nothing"), "Nothing"),
        ("assignment", mine("Groups"), "no subclass of superfednas.server.assign.policies.Policy"),
    ],
)
def test_what_is_none_is_refused_by_name(key: str, name: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_settings({key: name})
    assert (
        key in str(caught.value) and repr(name) in str(caught.value) and said in str(caught.value)
    )


def test_the_methods_say_what_they_are() -> None:
    for name, method in METHODS.items():
        said = about(method)
        assert said["name"] == name and all(said.values())
    assert METHODS[DEFAULT.name] is DEFAULT


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(ASSIGNMENTS)), number=st.integers(1, 50))
def test_a_policy_is_what_it_says_of_itself(name: str, number: int) -> None:
    of = space("mobilenetv1-tiny")
    policy = check_settings({"assignment": name}).policy(of)
    if policy.ends_only:
        assert set(policy.assign(number, ["0", "1"]).values()) == {of.smallest, of.largest}
    assigned = policy.assign(number, [str(n) for n in range(5)])
    if policy.levels:
        assert set(assigned.values()) <= {of.at_width(share) for share in of.width_shares}
    most = max(map(of.macs, assigned.values()))
    largest = [client for client, arch in assigned.items() if of.macs(arch) == most]
    assert policy.leader == (policy.favoured(assigned) == largest)


# Rounds


def by_hand(strategy: SupernetStrategy, recorder: Recorder) -> dict[str, State]:
    """Fold each target's replies on its own."""
    states = {SUPERNET: strategy.space.init(3)}
    for row in rounds_of(strategy):
        for target, parity in ((SUPERNET, 0), ("odd", 1)):
            of = [c for c in row["clients"] if int(c["client"]) % 2 == parity]
            names = [c["client"] for c in of]
            state = states.get(target, states[SUPERNET] if row["round"] > 1 else None)
            state = strategy.space.init(3) if state is None else state
            updates = {name: recorder.flat(row["round"], name) for name in names}
            if of:
                alike = {"clients": of, "beta": None}
                states[target] = fold_by_hand(strategy.space, state, alike, updates)
    return states


@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
def test_each_target_has_an_average_of_its_own(wire: str) -> None:
    recorder = Recorder()
    values: dict[str, Scalar] = {"method": mine("Groups"), "clients-per-round": 4, "rounds": 3}
    strategy = train(values | {"averaging": "overlap", "wire-dtype": wire}, recorder)
    assert set(strategy.states) == {SUPERNET, "odd"}
    assert not same(strategy.states[SUPERNET], strategy.states["odd"])
    if wire == "float32":
        for target, state in by_hand(strategy, recorder).items():
            assert same(strategy.states[target], state)
    for row in rounds_of(strategy):
        assert [c.get("target", SUPERNET) for c in row["clients"]] == [
            SUPERNET if int(c["client"]) % 2 == 0 else "odd" for c in row["clients"]
        ]
    lr = {
        str(order.content.config_records["config"]["lr"])
        for order in recorder.orders
        if "lr" in order.content.config_records["config"]
    }
    assert lr == {"0.1", "0.01"}


def test_the_outcome_holds_what_came_of_the_orders() -> None:
    values: dict[str, Scalar] = {"method": mine("Groups"), "clients-per-round": 4}
    strategy = train(values | BY_CLIENTS)
    for row, outcome in zip(rounds_of(strategy), method_of(strategy).seen, strict=True):
        assert list(outcome.replies) == [c["client"] for c in row["clients"]]
        assert set(outcome.targets) == set(outcome.tallies) == {SUPERNET, "odd"}
        for target, parity in ((SUPERNET, 0), ("odd", 1)):
            (tally,) = outcome.tallies[target].values()
            examples = [
                client.validation
                for _, client in strategy.roster.refresh(Nobody()).values()
                if int(client.name) % 2 == parity
            ]
            # Each scores its own subnet and, as that is the smallest, the ladder's first.
            assert isinstance(tally, Tally) and tally.examples == 2 * sum(examples)
    # In the second round the odd clients received another state than the ladder's.
    said = [row for row in lines(strategy.rows) if row["kind"] == "evaluation"]
    assert said[0]["ladder"][0]["examples"] > said[1]["ladder"][0]["examples"]


class Nobody:
    """A grid on which nothing has changed since the nodes were asked."""

    def get_node_ids(self) -> Iterable[int]:
        return [1, 2, 3, 4]


def test_a_method_that_loses_the_supernet_is_named() -> None:
    with pytest.raises(ValueError, match="Forgetful"):
        train({"method": mine("Forgetful"), "clients-per-round": 4})


def test_an_averaging_of_ones_own_merges_the_round() -> None:
    strategy = train({"averaging": mine("Strange")})
    assert all(c["accepted"] for row in rounds_of(strategy) for c in row["clients"])
    assert same(strategy.state, strategy.space.init(3))
    assert all(row["beta"] is None for row in rounds_of(strategy))


# Checkpoints


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(names=st.sets(st.sampled_from(["a", "a:b", "odd", "ü"]), max_size=3), seed=st.integers(0, 9))
def test_a_checkpoint_gives_back_the_states_beside_the_supernet(
    names: set[str], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = RunFolder.create(str(tmp_path_factory.mktemp("runs") / "run"), {}, "resnet-tiny")
    generator = torch.Generator().manual_seed(seed)
    state, beside = SPACE.init(seed), {}
    for name in sorted(names):
        beside[name] = {k: torch.randn(t.shape, generator=generator) for k, t in state.items()}
    run.checkpoint(Checkpoint(1, state, {"x": 1}, beside), keep=1)
    point = run.latest()
    assert (point.round, point.memory) == (1, {"x": 1})
    assert same(point.state, state) and set(point.beside) == names
    assert all(same(point.beside[name], beside[name]) for name in names)
    assert same(run.weights()[0], state)


class StoppedError(Exception):
    pass


class Stopping(Quiet):
    """Ends the process, as it were, after the second round."""

    def round(self, row: RoundRow) -> None:
        super().round(row)
        if row.round == 3:
            raise StoppedError


def test_a_run_that_is_resumed_has_its_targets_and_its_method_back(tmp_path: Path) -> None:
    values: dict[str, Scalar] = {"method": mine("Groups"), "clients-per-round": 4, "rounds": 4}
    whole = full_run(tmp_path / "whole", values)
    with pytest.raises(StoppedError):
        full_run(tmp_path / "run", values, progress=Stopping())
    point = RunFolder.open(tmp_path / "run").latest()
    assert (point.round, point.memory["method"]) == (2, {"rounds": 2})
    run = full_run(tmp_path / "run", {"resume": str(tmp_path / "run"), "run-dir": ""})
    last, expected = run.latest(), whole.latest()
    assert same(run.weights()[0], whole.weights()[0]) and last.memory == expected.memory
    assert same(last.beside["odd"], expected.beside["odd"])
    assert ready({"resume": ""}).resumed is None
