"""The stem and the head that the staged families share: as modules, and their costs."""

import functools

import torch
from torch import nn
from torch.nn import functional

from superfednas.supernet.chain import Block
from superfednas.supernet.norms import make_norm, norm_parameters

_KNOWN = 1 << 16


class Stem(nn.Module):
    """3×3 convolution, norm, ReLU at full resolution."""

    def __init__(self, inputs: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = make_norm(norm, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        return functional.relu(self.norm(self.conv(images)))


class Head(nn.Linear):
    """Average over the image, then a linear layer."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to logits (N, num_classes)."""
        return super().forward(features.mean(dim=(2, 3)))


@functools.lru_cache(_KNOWN)
def stem_block(inputs: int, outputs: int, side: int, norm: str) -> Block:
    """3×3 convolution at full resolution."""
    weights = 9 * inputs * outputs
    return Block(
        name=f"stem {inputs}>{outputs} at {side}",
        inputs=(inputs, side, side),
        macs=weights * side**2,
        params=weights + norm_parameters(norm, outputs),
        activations=(inputs + outputs) * side**2,
        module=functools.partial(Stem, inputs, outputs, norm),
    )


@functools.lru_cache(_KNOWN)
def head_block(inputs: int, classes: int, side: int) -> Block:
    """Average pooling and a linear layer."""
    return Block(
        name=f"head {inputs}>{classes} at {side}",
        inputs=(inputs, side, side),
        macs=inputs * classes,
        params=(inputs + 1) * classes,
        activations=max(inputs * side**2 + inputs, inputs + classes),
        module=functools.partial(Head, inputs, classes),
    )
