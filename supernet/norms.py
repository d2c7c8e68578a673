"""The three norms that survive prefix slicing.

Running statistics of a supernet belong to no subnet, so none are kept in training:

``none``
    No normalisation, as in the published SuperFedNAS runs (batch norm frozen to identity).
``group``
    GroupNorm with a fixed 8 channels a group. Every width is a multiple of 8, so a prefix keeps
    whole groups and a channel is normalised alike in every subnet. The default.
``batch``
    Static batch norm (HeteroFL, arXiv 2010.01264 §3): batch statistics in training; before
    evaluation each subnet's own statistics are measured once by :func:`calibrate`.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn import functional

from superfednas.tasks import Inputs

NORMS = ("group", "none", "batch")
GROUP_CHANNELS = 8


class StaticBatchNorm2d(nn.Module):
    """Batch norm whose statistics are never part of the state.

    Shapes: (N, C, H, W) in and out. Training mode uses the batch's statistics; evaluation mode uses
    those that :func:`calibrate` measured and raises ``RuntimeError`` without them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.mean: torch.Tensor | None = None
        self.variance: torch.Tensor | None = None
        self.batches: int | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise each channel."""
        if self.batches is not None:
            self._measure(images)
        if self.training or self.batches is not None:
            return functional.batch_norm(images, None, None, self.weight, self.bias, training=True)
        if self.mean is None or self.variance is None:
            raise RuntimeError("static batch norm: call calibrate(module, batches) before eval()")
        return functional.batch_norm(images, self.mean, self.variance, self.weight, self.bias)

    def _measure(self, images: torch.Tensor) -> None:
        variance, mean = torch.var_mean(images, dim=(0, 2, 3), correction=0)
        self.batches = (self.batches or 0) + 1
        if self.mean is None or self.variance is None:
            self.mean, self.variance = mean, variance
        else:
            self.mean.lerp_(mean, 1 / self.batches)
            self.variance.lerp_(variance, 1 / self.batches)


def make_norm(norm: str, channels: int) -> nn.Module:
    """Return the norm layer of one of :data:`NORMS` for ``channels`` (a multiple of 8)."""
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return StaticBatchNorm2d(channels)
    return nn.GroupNorm(channels // GROUP_CHANNELS, channels)


def norm_parameters(norm: str, channels: int) -> int:
    """Return how many parameters norm layers of so many channels have: a weight and a bias each."""
    return 0 if norm == "none" else 2 * channels


def needs_calibration(module: nn.Module) -> bool:
    """Say whether a module holds static batch norm."""
    return any(isinstance(layer, StaticBatchNorm2d) for layer in module.modules())


def measured_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a network's tensors by name, the statistics that :func:`calibrate` measured included.

    Those of a layer are ``<layer>.mean`` and ``<layer>.variance``.
    """
    state = dict(module.state_dict())
    for name, layer in module.named_modules():
        if isinstance(layer, StaticBatchNorm2d) and layer.mean is not None:
            assert layer.variance is not None
            state |= {f"{name}.mean": layer.mean, f"{name}.variance": layer.variance}
    return state


def load_measured_state(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load what :func:`measured_state` returned; the module is in evaluation mode afterwards.

    Raises
    ------
    KeyError
        Where statistics of a layer are missing.
    RuntimeError
        Where other tensors are missing or superfluous.
    """
    rest = dict(state)
    for name, layer in module.named_modules():
        if isinstance(layer, StaticBatchNorm2d):
            layer.mean, layer.variance = rest.pop(f"{name}.mean"), rest.pop(f"{name}.variance")
    module.load_state_dict(rest)
    module.eval()


@torch.no_grad()
def calibrate(module: nn.Module, batches: Iterable[Inputs]) -> None:
    """Measure a subnet's static batch norm statistics: plain means over ``batches``.

    Parameters
    ----------
    module
        The subnet; left in evaluation mode. Without static batch norm nothing is run.
    batches
        Inputs as networks read them, at least one batch of at least two examples.

    Raises
    ------
    ValueError
        Where there is no batch to measure.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, StaticBatchNorm2d)]
    module.eval()
    if not layers:
        return
    for layer in layers:
        layer.mean = layer.variance = None
        layer.batches = 0
    complete = False
    try:
        for batch in batches:
            module(*batch)
        complete = True
    finally:
        measured = layers[0].batches
        for layer in layers:
            layer.batches = None
            if not complete:
                layer.mean = layer.variance = None
    if not measured:
        raise ValueError("calibration needs at least one batch of examples")
