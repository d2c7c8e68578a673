"""Tasks: what networks read and answer, the loss, the metrics that judge them."""

from superfednas.tasks.field import Input, Output
from superfednas.tasks.metric import Metric, Share, Tally
from superfednas.tasks.registry import load_task
from superfednas.tasks.task import Inputs, Task, TaskError

__all__ = [
    "Input",
    "Inputs",
    "Metric",
    "Output",
    "Share",
    "Tally",
    "Task",
    "TaskError",
    "load_task",
]
