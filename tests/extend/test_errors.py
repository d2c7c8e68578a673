"""Errors in modules of a user's own: each ends in a sentence that names it."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch

from superfednas.common.imports import import_object
from superfednas.common.settings import Scalar, SettingsError
from superfednas.data import DataError, Dataset, DataSettings, Split
from superfednas.server.assign.client import Client
from superfednas.server.assign.policies import Policy
from superfednas.server.methods.base import Configured, Setup
from superfednas.server.round.orders import Order, Round, RoundPlan
from superfednas.server.round.outcome import Outcome
from superfednas.server.strategy import TrainingStalled
from superfednas.supernet import Architecture, State
from superfednas.tasks import Metric, Tally, TaskError
from superfednas.tasks.images import Images
from tests.extend.table_task import Landslides, table
from tests.support.bad_clients import bad_client, raising
from tests.support.training import ready, train

pytestmark = pytest.mark.slow


class Misspelt(Configured):
    def orders(self, round: Round, clients: Sequence[Client]) -> list[Order]:  # noqa: A002
        own = {"learning-rate": 0.1}
        return [dataclasses.replace(o, local=own) for o in super().orders(round, clients)]


class NoOrders(Configured):
    def orders(self, round: Round, clients: Sequence[Client]) -> Any:  # noqa: A002
        super().orders(round, clients)


class NoStates(Configured):
    def after(self, plan: RoundPlan, outcome: Outcome) -> Any:
        return None


class OtherStates(Configured):
    def after(self, plan: RoundPlan, outcome: Outcome) -> Mapping[str, State]:
        return {"other": {}}


class NoSetup(Configured):
    def __init__(self, setup: Setup) -> None:
        self.rate = 1


class NoChoice(Policy):
    def _choose(self, round: int, clients: list[Client]) -> Any:  # noqa: A002
        return None


class OneMissing(Policy):
    def _choose(self, round: int, clients: list[Client]) -> dict[str, Architecture]:  # noqa: A002
        return {client.name: self.space.smallest for client in clients[1:]}


@pytest.mark.parametrize(
    ("key", "kind", "named"),
    [
        ("method", Misspelt, "learning-rate"),
        ("method", NoOrders, "orders()"),
        ("method", NoStates, "after()"),
        ("method", OtherStates, "after()"),
        ("method", NoSetup, "super().__init__"),
        ("assignment", NoChoice, "NoChoice"),
        ("assignment", OneMissing, "OneMissing"),
    ],
)
def test_a_method_or_policy_is_named_with_what_it_lacks(key: str, kind: type, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        train({key: f"{__name__}:{kind.__name__}", "rounds": 1})


class Fewer(Landslides):
    metrics: ClassVar[Any] = (*Landslides.metrics, Metric("brier", "less"))


def test_a_tally_must_hold_what_the_metrics_are_read_from() -> None:
    Landslides().check_tally(Tally(2, {"log-loss": 1.0}))
    Landslides().check_tally(Tally(2, {"log-loss": float("nan")}))  # training may diverge
    for task, tally in (
        (Fewer(), Tally(2, {"log-loss": 1.0})),
        (Landslides(), Tally(2, {"log-loss": -1.0})),
    ):
        with pytest.raises(TaskError, match="count"):
            task.check_tally(tally)


@pytest.mark.parametrize("better", ["greater", "higher", "", "More"])
def test_a_metric_has_one_of_two_directions(better: Any) -> None:
    with pytest.raises(ValueError, match="'more' or 'less'"):
        Metric("score", better)


def test_a_task_without_distillation_is_refused_where_a_teacher_is_needed() -> None:
    own: dict[str, Scalar] = {"dataset": "tests.extend.table_task:table", "partition": "iid"}
    own |= {"space": "tests.extend.table_task:SoilPerceptrons", "norm": "none"}
    with pytest.raises(SettingsError, match="distil"):
        ready({**own, "method": "fedsup"})
    assert ready({**own, "method": "fedsup", "distil": "off"}).settings.subnets.distil == "off"


def test_rows_are_refused_where_they_are_loaded() -> None:
    good = table(DataSettings())
    readings = good.train.fields["readings"].clone()
    readings[3, 1] = float("nan")
    spoilt = Split({**good.train.fields, "readings": readings}, good.train.targets)
    with pytest.raises(DataError, match="row 3"):
        dataclasses.replace(good, train=spoilt)
    with pytest.raises(DataError, match="instance"):
        dataclasses.replace(good, task=Landslides)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="target"):
        Split(good.train.fields, {})
    with pytest.raises(DataError, match="number of rows"):
        Split(good.train.fields, {"landslide": torch.zeros(2)})
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    split = Split({"pictures": images}, {"labels": torch.zeros(4, dtype=torch.int64)})
    with pytest.raises(DataError, match="has no images"):
        Dataset("digits", Images(10, 1, 8), split, split, split)


@pytest.mark.parametrize("reference", ["my_cost", ":Name", "module:", ""])
def test_what_is_named_is_module_and_name(reference: str) -> None:
    with pytest.raises(ValueError, match="module:Name"):
        import_object(reference, "cost")


def test_a_short_run_that_has_trained_nothing_has_not_succeeded() -> None:
    with pytest.raises(TrainingStalled):
        train({"rounds": 2}, bad_client(raising, {1, 2}, "0123"))
    assert train({"rounds": 2}, bad_client(raising, {2}, "0123")).rows
