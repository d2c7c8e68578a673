"""The base of all ResNet families: elastic depth and middle channels, and costs in closed form.

Every stage keeps its first ``1 + depth`` blocks, every block its first ``mid`` channels.
``channels`` names the axes of its tensors, ``module`` is the network, ``chain`` its costs and
choices block by block.
"""

import functools
import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from superfednas.supernet.architecture import Architecture
from superfednas.supernet.axes import Axes
from superfednas.supernet.chain import Block
from superfednas.supernet.families.resnet.chain import ResNetChain, layout_blocks
from superfednas.supernet.families.resnet.channels import Layout, mid_channels
from superfednas.supernet.families.staged import StagedSpace

Channels = tuple[int, tuple[int, ...], tuple[tuple[int, ...], ...]]


class ResNetFamily(StagedSpace):
    """A ResNet family, whatever its architectures look like.

    A subclass gives the numbers below and says which channels there are to choose from (``stems``,
    ``stage_widths``), which ones an architecture has (``channels``) and the way back (``compose``).
    ``stem`` and ``widths`` are the largest channels of the stem and of every stage's output;
    ``depths`` are blocks beyond a stage's first, ``ratios`` middle to output channels, both rising.
    """

    stem: ClassVar[int]
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

    def stage_lengths(self, arch: Architecture) -> list[int]:
        """Return the number of residual blocks of every stage."""
        return [len(mids) for mids in self.channels(arch)[2]]

    def axes(self, arch: Architecture) -> Axes:
        """Name the axes of every tensor, with no module built."""
        return self.layout(arch).axes()

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
