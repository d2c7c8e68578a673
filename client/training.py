"""Local SGD on one subnet (SuperFedNAS, appendix "training hyper-parameters")."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from superfednas.client.device import resident
from superfednas.client.objective import Objective, add_proximal
from superfednas.common.streams import Purpose, torch_stream
from superfednas.data import Dataset
from superfednas.supernet.memory_format import laid_out, layout_of
from superfednas.supernet.norms import needs_calibration
from superfednas.wire.order import LocalTraining


@dataclass(frozen=True)
class TrainingResult:
    """The result of local training: mean loss per step, and images seen."""

    loss: float
    images: int


def batch_indices(
    examples: int, local: LocalTraining, generator: torch.Generator, *, merge_single: bool
) -> Iterator[torch.Tensor]:
    """Yield the row numbers of every step: whole epochs in random order, or a number of steps.

    The last partial batch of an epoch is kept. With ``merge_single``, a last batch of one image
    joins the previous one, because batch statistics of one image are meaningless.
    """
    steps = 0
    epoch = 0
    while epoch < local.local_epochs or local.local_steps:
        order = torch.randperm(examples, generator=generator)
        chunks = list(torch.split(order, local.batch_size))
        if merge_single and len(chunks) > 1 and len(chunks[-1]) == 1:
            chunks[-2:] = [torch.cat(chunks[-2:])]
        for chunk in chunks:
            yield chunk
            steps += 1
            if steps == local.local_steps:
                return
        epoch += 1


def train(
    module: nn.Module,
    data: Dataset,
    local: LocalTraining,
    *,
    seed: int,
    round: int,  # noqa: A002
    name: str,
    precision: str = "float32",
    objective: Objective | None = None,
) -> TrainingResult:
    """Train a subnet in place on a client's training split.

    Parameters that require no gradient stay as they are.

    Parameters
    ----------
    module
        The subnet, loaded and on its device.
    data
        The client's own data, of which only ``train`` is used, and what is learned of it.
    local
        Optimiser, epochs or steps, batch size; the optimiser starts afresh.
    seed, round, name
        Identify the random streams of order and augmentation.
    precision
        ``bfloat16`` computes matrix products and convolutions in that format (autocast) and uses
        channels-last images; otherwise :func:`superfednas.supernet.memory_format.layout_of` decides
        the layout. Weights, gradients and the optimiser stay float32.
    objective
        What adds a batch's gradients to the module's parameters, at the same precision; by default
        the task's loss of the whole module.

    Raises
    ------
    ValueError
        If the client has no training images.
    """
    merge_single = needs_calibration(module)
    if not len(data.train):
        raise ValueError("this client has no training images")
    if merge_single and min(len(data.train), local.batch_size) == 1:
        raise ValueError("norm = 'batch' needs at least two training images and batch-size >= 2")
    device = next(module.parameters()).device
    fast = precision == "bfloat16"
    layout = torch.channels_last if fast else layout_of(module)
    if layout is torch.channels_last:
        module.to(memory_format=layout)
    split = resident(data.train, device)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    received = [p.detach().clone() for p in parameters] if local.proximal else []
    objective = objective or Objective(module, data.task, local, precision=precision)
    optimiser = torch.optim.SGD(
        parameters, lr=local.lr, momentum=local.momentum, weight_decay=local.weight_decay
    )
    order = torch_stream(seed, Purpose.LOCAL_ORDER, round=round, name=name)
    draws = torch_stream(seed, Purpose.AUGMENT, round=round, name=name)
    module.train()
    losses, seen = [], 0
    for rows in batch_indices(len(data.train), local, order, merge_single=merge_single):
        inputs, targets = data.task.batch(split.fields, split.targets, rows, device, draws)
        optimiser.zero_grad(set_to_none=True)
        losses.append(objective(laid_out(inputs, layout), targets))
        if local.proximal:
            add_proximal(parameters, received, local.proximal)
        if local.clip_norm:
            nn.utils.clip_grad_norm_(parameters, local.clip_norm)
        optimiser.step()
        seen += len(rows)
    return TrainingResult(float(torch.stack(losses).mean()), seen)
