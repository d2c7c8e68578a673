"""What a step of local training adds to the gradients: of one network, or of several that share."""

import torch
from torch import nn
from torch.nn import functional

from supernet.wire import LocalTraining


class Objective:
    """Cross-entropy of one network.

    Parameters
    ----------
    module
        The network, whose parameters get the gradients.
    local
        ``label_smoothing``.
    macs
        Multiply-accumulates of the network for one image.
    precision
        ``bfloat16`` does matrix products and convolutions in it (autocast).

    Attributes
    ----------
    mac_images
        Multiply-accumulates times images, forward, of all steps so far.
    """

    def __init__(
        self, module: nn.Module, local: LocalTraining, macs: int = 0, precision: str = "float32"
    ) -> None:
        self.module = module
        self.smoothing = local.label_smoothing
        self.fast = precision == "bfloat16"
        self.mac_images = 0
        self._macs = macs

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Add the gradients of a batch; return its mean loss, without gradient."""
        self.mac_images += self._macs * len(labels)
        loss = self.loss(self.predict(self.module, images), labels)
        torch.autograd.backward(loss)
        return loss.detach()

    def predict(self, module: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to float32 logits (N, classes)."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.fast):
            logits: torch.Tensor = module(images)
        return logits.float()

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy with smoothed labels."""
        return functional.cross_entropy(logits, labels, label_smoothing=self.smoothing)


def add_proximal(
    parameters: list[nn.Parameter], received: list[torch.Tensor], weight: float
) -> None:
    """Add the gradient of ``weight / 2 · ‖w − received‖²`` (FedProx, arXiv 1812.06127, eq. 2)."""
    for parameter, start in zip(parameters, received, strict=True):
        pull = weight * (parameter.detach() - start)
        parameter.grad = pull if parameter.grad is None else parameter.grad.add_(pull)
