"""The plain module of the ResNet families: one static network of one architecture.

ReLU stands both before and after the addition, and which shortcut a block has is decided by its
position (the first of a stage projects, the others do not), never by whether shapes happen to
match.
"""

import torch
from torch import nn
from torch.nn import functional

from superfednas.supernet.norms import make_norm


class Projection(nn.Module):
    """The shortcut of a stage's first block: average pooling, 1×1 convolution, norm."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = make_norm(norm, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, ⌈H / stride⌉, ⌈W / stride⌉)."""
        result: torch.Tensor = self.norm(self.conv(self.pool(features)))
        return result


class Block(nn.Module):
    """Two 3×3 convolutions with an elastic middle; ReLU before and after the addition."""

    def __init__(
        self, inputs: int, mid: int, outputs: int, stride: int, norm: str, *, project: bool
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, mid, 3, stride=stride, padding=1, bias=False)
        self.norm1 = make_norm(norm, mid)
        self.conv2 = nn.Conv2d(mid, outputs, 3, padding=1, bias=False)
        self.norm2 = make_norm(norm, outputs)
        self.shortcut = Projection(inputs, outputs, stride, norm) if project else nn.Identity()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, ⌈H / stride⌉, ⌈W / stride⌉)."""
        branch = functional.relu(self.norm1(self.conv1(features)))
        branch = functional.relu(self.norm2(self.conv2(branch)))
        return functional.relu(branch + self.shortcut(features))
