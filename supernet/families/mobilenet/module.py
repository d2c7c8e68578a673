"""The depthwise-separable block of MobileNetV1 (arXiv 1704.04861): as a module, and its costs."""

import functools
import math

import torch
from torch import nn
from torch.nn import functional

from superfednas.supernet.chain import Block
from superfednas.supernet.norms import make_norm, norm_parameters

_KNOWN = 1 << 16


class Separable(nn.Module):
    """Depthwise k×k convolution, norm, ReLU; 1×1 convolution, norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, norm: str) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            inputs, inputs, kernel, stride, padding=kernel // 2, groups=inputs, bias=False
        )
        self.norm1 = make_norm(norm, inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = make_norm(norm, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, ⌈H / stride⌉, ⌈W / stride⌉)."""
        features = functional.relu(self.norm1(self.depthwise(features)))
        return functional.relu(self.norm2(self.pointwise(features)))


@functools.lru_cache(_KNOWN)
def separable_block(
    inputs: int, outputs: int, kernel: int, stride: int, side: int, norm: str
) -> Block:
    """Return the block's description; ``side`` is the pixels of its input."""
    after = math.ceil(side / stride)
    weights = inputs * (kernel**2 + outputs)
    # Numbers alive: input and depthwise output, then that and the block's output.
    read, filtered, written = inputs * side**2, inputs * after**2, outputs * after**2
    return Block(
        name=f"separable {inputs}>{outputs} kernel {kernel} at {side}, stride {stride}",
        inputs=(inputs, side, side),
        macs=weights * after**2,
        params=weights + norm_parameters(norm, inputs + outputs),
        activations=filtered + max(read, written),
        module=functools.partial(Separable, inputs, outputs, kernel, stride, norm),
    )
