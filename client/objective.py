"""Objectives: what a step of local training adds to the gradients."""

import torch
from torch import nn

from superfednas.tasks import Inputs, Task, TaskError
from superfednas.tasks.task import Tensors
from superfednas.wire.order import LocalTraining


class Objective:
    """The task's loss of one subnet.

    Parameters
    ----------
    module
        The subnet, whose parameters receive the gradients.
    task
        What is learned.
    local
        ``label_smoothing``.
    macs
        Multiply-accumulates of the subnet for one example.
    precision
        ``bfloat16`` computes matrix products and convolutions in that format (autocast).

    Attributes
    ----------
    mac_images
        Multiply-accumulates times examples, forward, of all steps so far.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        local: LocalTraining,
        macs: int = 0,
        precision: str = "float32",
    ) -> None:
        self.module = module
        self.task = task
        self.smoothing = local.label_smoothing
        self.fast = precision == "bfloat16"
        self.mac_images = 0
        self._macs = macs

    def __call__(self, inputs: Inputs, targets: Tensors) -> torch.Tensor:
        """Add the gradients of a batch; return its mean loss, without gradient."""
        self.mac_images += self._macs * len(inputs[0])
        loss = self.loss(self.predict(self.module, inputs), targets)
        torch.autograd.backward(loss)
        return loss.detach()

    def predict(self, module: nn.Module, inputs: Inputs) -> torch.Tensor:
        """Return what a subnet answers, in float32."""
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=self.fast):
            outputs: torch.Tensor = module(*inputs)
        return outputs.float()

    def loss(self, outputs: torch.Tensor, targets: Tensors) -> torch.Tensor:
        """Return the mean loss, with smoothed labels where the task has labels."""
        loss = self.task.loss(outputs, targets, smoothing=self.smoothing)
        if loss.dim():
            raise TaskError(
                f"{self.task.reference}.loss() returned shape {tuple(loss.shape)}; the mean over "
                "the batch, a scalar, is needed"
            )
        return loss


def add_proximal(
    parameters: list[nn.Parameter], received: list[torch.Tensor], weight: float
) -> None:
    """Add the gradient of ``weight / 2 · ‖w − received‖²`` (FedProx, arXiv 1812.06127, eq. 2)."""
    for parameter, start in zip(parameters, received, strict=True):
        pull = weight * (parameter.detach() - start)
        parameter.grad = pull if parameter.grad is None else parameter.grad.add_(pull)
