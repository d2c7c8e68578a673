"""Examples in memory: three splits of one task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from superfednas.common.digest import digest
from superfednas.tasks import Task

Tensors = Mapping[str, torch.Tensor]


class DataError(ValueError):
    """Unusable data; one sentence names the fault, the value and what is allowed."""


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one split, raw: one tensor a name, whose first axis is the rows.

    Attributes
    ----------
    fields
        What networks read, once the task has made inputs of it.
    targets
        What they are to answer.

    Raises
    ------
    DataError
        If the tensors have different numbers of rows, or there are no targets.
    """

    fields: Tensors
    targets: Tensors

    def __post_init__(self) -> None:  # noqa: D105
        rows = {name: len(tensor) for name, tensor in {**self.fields, **self.targets}.items()}
        if not self.targets or len(set(rows.values())) > 1:
            said = ", ".join(f"{name} {count}" for name, count in rows.items())
            if not self.targets:
                raise DataError(f"a split needs at least one target; it has {said or 'nothing'}.")
            raise DataError(
                f"fields and targets of a split must all have the same number of rows: {said}."
            )

    def __len__(self) -> int:
        """Count the rows."""
        return len(next(iter(self.targets.values())))

    def take(self, rows: np.ndarray | torch.Tensor) -> "Split":
        """Copy the rows at these positions (integers, any order, repeats allowed)."""
        places = torch.as_tensor(rows, dtype=torch.int64)
        return self._each(lambda tensor: tensor[places])

    def first(self, count: int) -> "Split":
        """Return at most so many rows from the beginning, as views."""
        return self._each(lambda tensor: tensor[:count])

    def to(self, device: torch.device) -> "Split":
        """Return the split on a device."""
        return self._each(lambda tensor: tensor.to(device))

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take."""
        return sum(tensor.nbytes for tensor in (*self.fields.values(), *self.targets.values()))

    def digest(self) -> str:
        """Hash fields and targets: which data a score was measured on."""
        return digest({**self.fields, **self.targets})

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Split":
        fields, targets = (
            {name: change(tensor) for name, tensor in tensors.items()}
            for tensors in (self.fields, self.targets)
        )
        return Split(fields, targets)


@dataclass(frozen=True, eq=False)
class Dataset:
    """All examples of a task; shared within a process, so never written to.

    Attributes
    ----------
    task
        What is learned of them.
    ids
        Strings, (len(train),): the natural client of each training row, if the source gives it.
    held_ids
        ``validation`` and ``test`` to the same of their rows, where the source gives it.

    Raises
    ------
    DataError
        If the parts do not fit together.
    """

    name: str
    task: Task
    train: Split
    validation: Split
    test: Split
    ids: np.ndarray | None = None
    held_ids: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        if not isinstance(self.task, Task):
            raise DataError(
                f"{self.name}: task = {self.task!r}; must be an instance of superfednas.tasks.Task."
            )
        for part in ("train", "validation", "test"):
            split = getattr(self, part)
            if problem := self.task.problem(split.fields, split.targets):
                raise DataError(f"{self.name}: {part} {problem}")
        if not len(self.train):
            raise DataError(f"{self.name}: train holds 0 examples; at least 1 is needed.")
        if self.ids is not None and self.ids.shape != (len(self.train),):
            raise DataError(
                f"{self.name}: natural ids have shape {self.ids.shape}; one a training "
                f"row, ({len(self.train)},), is needed."
            )
        for part, held in self.held_ids.items():
            rows = len(getattr(self, part))
            if held.shape != (rows,):
                raise DataError(
                    f"{self.name}: natural ids of {part} have shape {held.shape}; one a row, "
                    f"({rows},), is needed."
                )

    def strata(self, split: Split) -> np.ndarray:
        """Return the stratum of every row of a split, int64 (N,): of images their class."""
        found: np.ndarray = self.task.strata(split.targets).numpy()
        return found
