"""The order in which a network's images lie in memory."""

import torch
from torch import nn

from superfednas.tasks import Inputs


def layout_of(module: nn.Module) -> torch.memory_format:
    """Return the memory format in which a network runs fastest.

    Depthwise convolutions are about twice as fast on the CPU where an image's channels lie last
    (``benchmarks/results/mobilenet-training.md``); for others torch's own order is.
    """
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in module.modules())
    return torch.channels_last if depthwise else torch.contiguous_format


def laid_out(inputs: Inputs, layout: torch.memory_format) -> Inputs:
    """Lay a network's inputs out in a memory format, which only images have."""
    return tuple(
        tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor for tensor in inputs
    )
