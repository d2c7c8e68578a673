"""A task as data: what a note tells of it to a machine that has neither torch nor the task."""

from dataclasses import asdict
from typing import Any

from superfednas.tasks.task import Task


def describe(task: Task) -> dict[str, Any]:
    """Return name, inputs and outputs of a task, as JSON takes them.

    Keys are those of a card: ``task``, ``inputs`` and ``outputs``.
    """
    return {
        "task": task.reference,
        "inputs": {name: asdict(each) for name, each in task.inputs.items()},
        "outputs": {name: asdict(each) for name, each in task.outputs.items()},
    }
