"""The task: one class that says what is read, answered, lost and counted.

A task of your own subclasses :class:`Task`, and takes as keyword arguments of its constructor the
scalars that it gives as :attr:`Task.options`; with its name (:attr:`Task.reference`) they make it
again on another machine.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from superfednas.tasks.field import Input, Output
from superfednas.tasks.metric import Metric, Tally

Tensors = Mapping[str, torch.Tensor]
Inputs = tuple[torch.Tensor, ...]
"""What a network is called with: one tensor an input of the task, as positional arguments."""


class TaskError(ValueError):
    """A task that cannot be made or used; one sentence says why."""


class Task(ABC):
    """What networks learn.

    Networks take the tensors of :attr:`inputs` as positional arguments, in their order, so one that
    reads a single tensor is ``forward(x)``; they answer the one tensor of :attr:`outputs`.
    """

    # What a task defines

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, Input]:
        """What a network reads, by name, in the order of its arguments."""

    @property
    @abstractmethod
    def outputs(self) -> Mapping[str, Output]:
        """What a network answers, by name: one tensor."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """How networks are judged; the first is what they are chosen by."""

    @abstractmethod
    def loss(
        self, outputs: torch.Tensor, targets: Tensors, *, smoothing: float = 0.0
    ) -> torch.Tensor:
        """Return the mean loss of a batch, a scalar with gradient.

        Parameters
        ----------
        outputs
            Float32, the first axis the batch.
        targets
            As :meth:`batch` gives them.
        smoothing
            The setting ``label-smoothing``; a task whose targets are no classes has no use for it.
        """

    @abstractmethod
    def count(self, outputs: torch.Tensor, targets: Tensors) -> Tally:
        """Return what the metrics are read from, summed over a batch."""

    # What follows from it

    def check_tally(self, tally: Tally) -> None:
        """Raise ``TaskError`` if :meth:`count` gave something that no metric can be read from."""
        for metric in self.metrics:
            try:
                value = metric.of(tally)
            except KeyError as missing:
                raise TaskError(
                    f"{self.reference}.count() returned no sum {missing}, which metric "
                    f"{metric.name!r} is read from"
                ) from None
            if math.isfinite(value) and not metric.allows(value):
                raise TaskError(
                    f"{self.reference}.count(): {metric.name} = {value:g}, which must be from "
                    f"{metric.low:g} to {metric.high:g}"
                )

    @property
    def distils(self) -> bool:
        """Whether the task says what is learned from a teacher."""
        return type(self).distil is not Task.distil

    @property
    def reference(self) -> str:
        """The name by which :func:`superfednas.tasks.load_task` finds the task's class."""
        return f"{type(self).__module__}:{type(self).__qualname__}"

    @property
    def options(self) -> Mapping[str, Any]:
        """The scalars that networks depend on: keyword arguments that make the task again."""
        return {}

    @property
    def meaning(self) -> Mapping[str, str]:
        """What numbers stand for, by what they are: networks can be averaged only where all agree.

        Values are JSON. By default how inputs are scaled and what their numbers name, and what the
        outputs are.
        """
        found = {
            f"numbers of {name}": [one.scale, one.offset, one.categories]
            for name, one in self.inputs.items()
            if one.scale or one.categories
        }
        named = {name: one.names for name, one in self.outputs.items() if one.names}
        return {what: json.dumps(value) for what, value in {**found, **named}.items()}

    @property
    def classes(self) -> tuple[str, ...]:
        """What the strata of the examples are called; by default there is one."""
        return ("all",)

    def strata(self, targets: Tensors) -> torch.Tensor:
        """Return the stratum of every row, int64 (N,): its position in :attr:`classes`.

        Partitions are skewed by it, and held-out rows are drawn in its proportions.
        """
        rows = len(next(iter(targets.values())))
        return torch.zeros(rows, dtype=torch.int64)

    def batch(
        self,
        fields: Tensors,
        targets: Tensors,
        rows: torch.Tensor | slice,
        device: torch.device,
        draws: torch.Generator | None = None,
    ) -> tuple[Inputs, Tensors]:
        """Return some rows as networks take them, and what is to be learned of them.

        Parameters
        ----------
        fields, targets
            All rows of a split, raw.
        rows
            Which of them: positions, or a stretch.
        device
            Where the batch is needed.
        draws
            Where augmentation takes its chances from, a generator of the CPU; None does not
            augment, as in evaluation.
        """
        inputs = tuple(
            one.prepare(fields[name][rows].to(device)) for name, one in self.inputs.items()
        )
        return inputs, {name: whole[rows].to(device) for name, whole in targets.items()}

    def example(
        self,
        batch: int,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> Inputs:
        """Return the inputs of a batch of made-up examples; on ``meta`` only their shapes.

        A generator must be the device's.
        """
        where = torch.device(device)
        return tuple(one.example(batch, where, generator) for one in self.inputs.values())

    def distil(self, outputs: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch against another network's outputs.

        Raises
        ------
        TaskError
            Where the task does not say what is learned from a teacher.
        """
        raise TaskError(f"{self.reference} has no distillation: distil must be off")

    def problem(self, fields: Tensors, targets: Tensors) -> str:
        """Say why the rows of a split are not of this task; empty where they are."""
        for name, one in self.inputs.items():
            if name not in fields:
                return f"has no {name}"
            if problem := one.problem(fields[name]):
                return f"{name} are {problem}"
        return ""

    def differences(self, other: "Task") -> list[tuple[str, Any, Any]]:
        """Return what networks of this task could not take of another: what, its own, the other's.

        Empty where networks of this task can learn the other's data.
        """
        if self.reference != other.reference:
            return [("task", self.reference, other.reference)]
        found: list[tuple[str, Any, Any]] = [
            (name, one.shape, other.inputs[name].shape)
            for name, one in self.inputs.items()
            if one.shape != other.inputs[name].shape
        ]
        return found + [
            (name, one.shape, other.outputs[name].shape)
            for name, one in self.outputs.items()
            if one.shape != other.outputs[name].shape
        ]

    @property
    def answer(self) -> tuple[int, ...]:
        """The shape of what a network answers to one example."""
        (output,) = self.outputs.values()
        return output.shape
