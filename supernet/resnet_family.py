"""What all ResNet families share: elastic depth and middle channels, and costs in closed form.

Every stage keeps its first ``1 + depth`` blocks, every block its first ``mid`` channels.
``resnet_layout`` says where tensors lie, ``resnet_module`` is the network, ``resnet_blocks`` its
costs and choices block by block.
"""

import functools
import itertools
import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

from torch import nn

from supernet.architecture import Architecture, Shape
from supernet.chain import Block
from supernet.resnet_blocks import ResNetChain, layout_blocks
from supernet.resnet_layout import Layout, mid_channels
from supernet.resnet_module import StagedNetwork
from supernet.slicing import Boxes
from supernet.space import SearchSpace

Channels = tuple[int, tuple[int, ...], tuple[tuple[int, ...], ...]]


class ResNetFamily(SearchSpace):
    """A ResNet family, whatever its architectures look like.

    A subclass gives the numbers below and says which channels there are to choose from (``stems``,
    ``stage_widths``), which ones an architecture has (``channels``) and the way back (``compose``).
    ``stem`` and ``widths`` are the largest channels of the stem and of every stage's output;
    ``depths`` are blocks beyond a stage's first, ``ratios`` middle to output channels, both rising.
    """

    stem: ClassVar[int]
    widths: ClassVar[tuple[int, ...]]
    strides: ClassVar[tuple[int, ...]]
    depths: ClassVar[tuple[int, ...]]
    ratios: ClassVar[tuple[float, ...]]

    @property
    @abstractmethod
    def stems(self) -> tuple[int, ...]:
        """Channels that the stem may have, rising."""

    @property
    @abstractmethod
    def stage_widths(self) -> tuple[tuple[int, ...], ...]:
        """Channels that every stage may have, rising."""

    @abstractmethod
    def channels(self, arch: Architecture) -> Channels:
        """Return stem, stage widths, and middle channels of every block of a valid architecture."""

    @abstractmethod
    def compose(
        self, stem: int, widths: tuple[int, ...], mids: tuple[tuple[int, ...], ...]
    ) -> Architecture:
        """Return an architecture of these channels."""

    @property
    def genes(self) -> tuple[int, ...]:
        """Depth of every stage, then the expand ratio of every slot."""
        slots = len(self.widths) * (1 + self.depths[-1])
        return (len(self.depths),) * len(self.widths) + (len(self.ratios),) * slots

    def full_width(self, choices: Sequence[int]) -> list[int]:
        """Set every gene but the stages' depths to its largest choice."""
        stages = len(self.widths)
        return [*choices[:stages], *(number - 1 for number in self.genes[stages:])]

    @functools.cached_property
    def mids(self) -> tuple[dict[int, tuple[int, ...]], ...]:
        """For every stage, each width it may have with the middle channels of a block, rising."""
        return tuple(
            {
                width: tuple(sorted({mid_channels(width, ratio) for ratio in self.ratios}))
                for width in widths
            }
            for widths in self.stage_widths
        )

    @functools.cached_property
    def size(self) -> int:
        """Distinct networks: stems, times each stage's widths with all mids of all its depths."""
        stages: Iterable[int] = (
            sum(len(mids) ** (1 + depth) for mids in by_width.values() for depth in self.depths)
            for by_width in self.mids
        )
        return len(self.stems) * math.prod(stages)

    def layout(self, arch: Architecture) -> Layout:
        """Return the channels of an architecture; ``ValueError`` where it is not of this space."""
        self.validate(arch)
        stem, widths, mids = self.channels(arch)
        return Layout(
            stem=stem,
            widths=widths,
            mids=mids,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            affine=self.norm != "none",
        )

    def module(self, arch: Architecture) -> nn.Module:
        """Construct the plain module."""
        return self.join(arch, [block.module() for block in self.blocks(arch)])

    def join(self, arch: Architecture, blocks: Sequence[nn.Module]) -> nn.Module:
        """Return the network of stem, residual blocks and head."""
        stem, *residual, head = blocks
        rest = iter(residual)
        _, _, mids = self.channels(arch)
        return StagedNetwork(
            stem, [list(itertools.islice(rest, len(stage))) for stage in mids], head
        )

    def boxes(self, arch: Architecture) -> Boxes:
        """Where each tensor lies in the supernet's, from axes and intervals."""
        return self.layout(arch).boxes()

    def shapes(self, arch: Architecture) -> dict[str, Shape]:
        """Return name to shape in ``state_dict`` order, with no module built."""
        return self.layout(arch).shapes()

    def blocks(self, arch: Architecture) -> tuple[Block, ...]:
        """Return the network's blocks: stem, residual blocks, head."""
        return layout_blocks(self.layout(arch), self.strides, self.image_size, self.norm)

    def gain(self, name: str) -> float:
        """Scale of a weight's first values.

        He's √2 before a ReLU, 1 for the head. Without norm, each block's second convolution is
        scaled by 1/√blocks of the supernet: both terms of an addition are then positive, and
        at full scale the signal's power would more than double a block.
        """
        if name == "head.weight":
            return 1.0
        if self.norm == "none" and name.endswith("conv2.weight"):
            return math.sqrt(2 / (len(self.widths) * (1 + self.depths[-1])))
        return math.sqrt(2)

    def macs(self, arch: Architecture) -> int:
        """Multiply-accumulates of convolutions and the head for one image, in microseconds."""
        return sum(block.macs for block in self.blocks(arch))

    def params(self, arch: Architecture) -> int:
        """Return the number of parameters, norm's included, in microseconds."""
        return sum(block.params for block in self.blocks(arch))

    def activations(self, arch: Architecture) -> int:
        """Return the most numbers alive at once for one image, in microseconds."""
        return max(block.activations for block in self.blocks(arch))

    @functools.cached_property
    def chain(self) -> ResNetChain:
        """The stem and the stages: for every width, mids + mids² + … options."""
        return ResNetChain(
            stems=self.stems,
            widths=[list(by_width) for by_width in self.mids],
            mids=[list(by_width.values()) for by_width in self.mids],
            depths=self.depths,
            strides=self.strides,
            image_size=self.image_size,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            norm=self.norm,
            compose=self.compose,
            layout_of=self.layout,
        )
