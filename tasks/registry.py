"""Tasks by name: ``images``, and anybody's own by ``module:Class``."""

from collections.abc import Mapping
from inspect import isabstract
from typing import Any

from superfednas.common.imports import import_object
from superfednas.tasks.images import Images
from superfednas.tasks.metric import Metric
from superfednas.tasks.task import Task, TaskError

_FIRST: Metric = Images().metrics[0]
TASKS: dict[str, type[Task]] = {Images.name: Images}


def load_task(reference: str, options: Mapping[str, Any] | None = None) -> Task:
    """Make a task by its name and options.

    Raises
    ------
    TaskError
        For an unknown name, a class that is no complete :class:`Task`, or options that it does not
        take.
    NotImportableError
        If there is no such module, or no such class in it.
    """
    kind = TASKS.get(reference)
    if kind is None:
        if ":" not in reference:
            known = ", ".join(sorted(TASKS))
            raise TaskError(f"task = {reference!r}: must be {known}, or module:Class of your own")
        kind = import_object(reference, "task")
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise TaskError(f"task {reference!r} is no subclass of superfednas.tasks.Task")
    if isabstract(kind):
        raise TaskError(f"task {reference!r} lacks {', '.join(sorted(kind.__abstractmethods__))}")
    try:
        return kind(**(options or {}))
    except TypeError as error:
        raise TaskError(f"task {reference!r} does not take these options: {error}") from error


def metric_of(described: Mapping[str, str] | None) -> Metric:
    """Return a metric as a file describes it, to say its values; older files know images alone."""
    if not described or dict(described) == _FIRST.described():
        return _FIRST
    return Metric(**described)  # type: ignore[arg-type]


def examples_of(task: str) -> str:
    """Return what sentences call the examples of a task, by its name in settings and plans."""
    return "images" if task in ("", Images.name) else "examples"
