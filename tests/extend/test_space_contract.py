"""The contract checker: inputs of the space's own task, and one line for each fault."""

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from superfednas import cli
from superfednas.supernet import Architecture, SearchSpace
from superfednas.supernet.contract import PREMISES, PROMISES, check_space
from superfednas.tasks.images import Images
from tests.extend.table_task import HiddenUnits, Landslides, SoilPerceptron, SoilPerceptrons

TABLE = "tests.extend.table_task"


class NoModules(SoilPerceptrons):
    def module(self, arch: Architecture) -> Any:
        return None


class NoMiddle(SoilPerceptrons):
    """Only networks between the ends are broken."""

    def module(self, arch: Architecture) -> Any:
        return super().module(arch) if arch in (self.smallest, self.largest) else None


class OneNumber(SoilPerceptrons):
    genes: ClassVar[Any] = 3


class NoChoice(SoilPerceptrons):
    genes: ClassVar[Any] = (0,)


class Words(SoilPerceptrons):
    def decode(self, choices: Sequence[int]) -> Any:
        return f"width {choices[0]}"


class Broken(SoilPerceptron):
    def forward(self, readings: torch.Tensor, soil: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("forward is broken")


class Raises(SoilPerceptrons):
    def module(self, arch: Architecture) -> nn.Module:
        assert isinstance(arch, HiddenUnits)
        return Broken(arch.width)


class Undrawn(SoilPerceptrons):
    def sample(self, rng: object) -> Architecture:
        raise RuntimeError("nothing is drawn")


FAULTS: list[tuple[type[SearchSpace], str]] = [
    (NoModules, "returns None"),
    (NoMiddle, "returns None"),
    (OneNumber, "genes are 3"),
    (NoChoice, r"genes are (0,)"),
    (Words, "'width 0'"),
    (Raises, "RuntimeError: forward is broken"),
    (Undrawn, "RuntimeError: nothing is drawn"),
]


@pytest.mark.parametrize(("kind", "said"), FAULTS, ids=lambda of: getattr(of, "__name__", ""))
def test_one_fault_is_told_once_and_ends_the_check(kind: type[SearchSpace], said: str) -> None:
    results = check_space(kind(Landslides(), "none"), samples=5)
    (broken,) = [result for result in results if result.problem]
    assert broken is results[-1] and said in broken.problem
    assert all(result.promise in PREMISES for result in results[:-1])
    assert "AttributeError" not in broken.problem


def test_a_network_of_another_task_is_told_what_it_was_given() -> None:
    (broken,) = [r for r in check_space(SoilPerceptrons(Images(10, 3, 32), "none")) if r.problem]
    assert "images of shape (2, 3, 32, 32)" in broken.problem and "'soil'" in broken.problem


def run(*arguments: str) -> int:
    status = cli.app([*arguments], standalone_mode=False)
    assert status is None or isinstance(status, int)
    return status or 0


@pytest.mark.slow  # torch's counter of operations imports triton
def test_the_command_takes_the_task_of_a_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    check = ("spaces", "--check", f"{TABLE}:SoilPerceptrons", "--norm", "none", "--json")
    assert run(*check) == 1
    assert sum(bool(each["problem"]) for each in json.loads(capsys.readouterr().out)) == 1
    assert run(*check, "--dataset", f"{TABLE}:table") == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["promise"] for each in told] == [*PREMISES, *PROMISES]
    assert not any(each["problem"] for each in told)


def test_costs_are_those_of_the_data_sets_task(capsys: pytest.CaptureFixture[str]) -> None:
    own = ("--space", f"{TABLE}:SoilPerceptrons", "--norm", "none", "--dataset", f"{TABLE}:table")
    assert run("cost", *own, "--arch", "largest", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["macs"], found["params"]) == (3 * 40 + 40, 3 * 40 + 40 + 3 * 40 + 40 + 1)
    digits = ("cost", "--space", "resnet-tiny", "--arch", "smallest", "--json")
    assert run(*digits, "--dataset", "digits") == 0
    by_name = json.loads(capsys.readouterr().out)
    assert run(*digits, "--in-channels", "1", "--image-size", "8", "--num-classes", "10") == 0
    assert json.loads(capsys.readouterr().out) == by_name
