"""Tallies of subnets: cut out, calibrated where the norm needs it, run over a split."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from superfednas.data import Dataset, Split
from superfednas.supernet import Architecture, SearchSpace, extract
from superfednas.supernet.memory_format import laid_out, layout_of
from superfednas.supernet.norms import calibrate, needs_calibration
from superfednas.tasks import Inputs, Tally, Task
from superfednas.tasks.task import Tensors

_BATCH = 500
_CALIBRATION_ROWS = 2_000


def check_fit(space: SearchSpace, data: Dataset) -> None:
    """Refuse data that the space's architectures cannot take.

    Raises
    ------
    ValueError
        Naming what differs, with both values.
    """
    for what, needs, has in space.task.differences(data.task):
        raise ValueError(f"{what}: the data set {data.name!r} has {has}, the space has {needs}")


def subnet_module(
    space: SearchSpace, state: Mapping[str, torch.Tensor], arch: Architecture
) -> nn.Module:
    """Build a subnet with its own copy of the supernet's weights."""
    module = space.build(arch)
    module.load_state_dict(extract(state, space.boxes(arch)))
    return module


def calibrated(
    space: SearchSpace,
    state: Mapping[str, torch.Tensor],
    arch: Architecture,
    data: Dataset | None = None,
) -> nn.Module:
    """Build a subnet that is ready to run, with its own statistics if its norm needs them.

    The supernet is only read, and nothing is kept between calls.

    Parameters
    ----------
    data
        Its training rows are looked at where the space's norm is ``batch``; see :func:`prepare`.

    Raises
    ------
    ValueError
        If examples are needed and there are none.
    """
    module = subnet_module(space, state, arch)
    prepare(module, data)
    return module


def prepare(module: nn.Module, data: Dataset | None) -> None:
    """Put a subnet into evaluation mode, calibrated on training rows where its norm needs that.

    2,000 rows are used, evenly spaced (files are often sorted by class).
    """
    if needs_calibration(module):
        if data is None or not len(data.train):
            raise ValueError("static batch norm needs training examples for its calibration")
        count = min(len(data.train), _CALIBRATION_ROWS)
        rows = np.linspace(0, len(data.train) - 1, count).round().astype(np.int64)
        device = next(module.parameters()).device
        found = batches(data.task, data.train.take(rows), device)
        calibrate(module, (inputs for inputs, _ in found))
    module.eval()


def batches(task: Task, split: Split, device: torch.device) -> Iterator[tuple[Inputs, Tensors]]:
    """Yield inputs and targets, in order, without augmentation."""
    starts = list(range(0, len(split), _BATCH))
    if len(starts) > 1 and len(split) - starts[-1] == 1:
        starts.pop()  # a last single row joins the batch before: it has no batch statistics
    for start, stop in zip(starts, [*starts[1:], len(split)], strict=True):
        yield task.batch(split.fields, split.targets, slice(start, stop), device)


def score(module: nn.Module, data: Dataset, split: Split) -> Tally:
    """Count what the task's metrics are read from, of a module over a split.

    Parameters
    ----------
    module
        The subnet, on the device to use; left in evaluation mode.
    data
        What is learned, and the training rows on which static batch norm is calibrated.
    split
        The rows to look at.
    """
    if not len(split):
        raise ValueError("a split without examples cannot be scored")
    device, layout = next(module.parameters()).device, layout_of(module)
    if layout is torch.channels_last:
        module.to(memory_format=layout)  # outside inference mode: it may be trained again
    with torch.inference_mode():
        prepare(module, data)
        tally = Tally.total(
            data.task.count(module(*laid_out(inputs, layout)), targets)
            for inputs, targets in batches(data.task, split, device)
        )
    data.task.check_tally(tally)
    return tally
