"""The ResNet families of SuperFedNAS (arXiv 2301.10879, §5 and appendix): elastic depth and width.

Every stage keeps its first ``1 + depth`` blocks, every block its first ``mid`` channels. Stage
widths are fixed. ``resnet_layout`` says where tensors lie, ``resnet_module`` is the network.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from supernet.architecture import Architecture, Shape
from supernet.resnet_layout import Layout, ResNetArchitecture, make_divisible, mid_channels
from supernet.resnet_module import ResNet
from supernet.slicing import Boxes
from supernet.space import SearchSpace

__all__ = [
    "ResNet10To26",
    "ResNetArchitecture",
    "ResNetSpace",
    "ResNetTiny",
    "make_divisible",
    "mid_channels",
]


class ResNetSpace(SearchSpace):
    """A ResNet family: subclasses give the numbers, all costs are in closed form."""

    architecture = ResNetArchitecture
    stem: ClassVar[int]
    widths: ClassVar[tuple[int, ...]]
    strides: ClassVar[tuple[int, ...]]
    depths: ClassVar[tuple[int, ...]]
    ratios: ClassVar[tuple[float, ...]]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.layout = Layout(
            self.stem, self.widths, self.in_channels, self.num_classes, self.norm != "none"
        )
        self._ratio_set = frozenset(self.ratios)
        self._tabulate()

    @property
    def genes(self) -> tuple[int, ...]:
        """Depth of every stage, then the expand ratio of every slot."""
        slots = len(self.widths) * (1 + self.depths[-1])
        return (len(self.depths),) * len(self.widths) + (len(self.ratios),) * slots

    def decode(self, choices: Sequence[int]) -> ResNetArchitecture:
        """Return the architecture of one choice a gene (inactive slots drop out)."""
        stages = len(self.widths)
        depth = tuple(self.depths[c] for c in choices[:stages])
        flat: Any = tuple(self.ratios[c] for c in choices[stages:])
        return ResNetArchitecture(depth, flat)

    def full_width(self, choices: Sequence[int]) -> list[int]:
        """Set every expand ratio to the largest."""
        stages = len(self.widths)
        return [*choices[:stages], *(len(self.ratios) - 1 for _ in choices[stages:])]

    @functools.cached_property
    def size(self) -> int:
        """Distinct networks: for every stage, all ratios of each allowed depth."""
        distinct = [len({mid_channels(w, ratio) for ratio in self.ratios}) for w in self.widths]
        return math.prod(sum(n ** (1 + d) for d in self.depths) for n in distinct)

    def validate(self, arch: Architecture) -> None:
        """Check depth and ratios against this family's; ``ValueError`` names what is wrong."""
        super().validate(arch)
        assert isinstance(arch, ResNetArchitecture)
        if len(arch.depth) != len(self.widths):
            raise ValueError(f"depth = {arch.depth}: {self.name} has {len(self.widths)} stages")
        for s, d in enumerate(arch.depth):
            if d not in self.depths:
                raise ValueError(f"depth[{s}] = {d}: must be one of {list(self.depths)}")
        for s, ratios in enumerate(arch.expand):
            for b, ratio in enumerate(ratios):
                if ratio not in self._ratio_set:
                    raise ValueError(
                        f"expand[{s}][{b}] = {ratio}: must be one of {list(self.ratios)}"
                    )

    def module(self, arch: Architecture) -> nn.Module:
        """Construct the plain module."""
        self.validate(arch)
        assert isinstance(arch, ResNetArchitecture)
        return ResNet(self.layout, self.strides, arch, self.norm)

    def boxes(self, arch: Architecture) -> Boxes:
        """Where each tensor lies in the supernet's, from axes and intervals."""
        self.validate(arch)
        assert isinstance(arch, ResNetArchitecture)
        return self.layout.boxes(arch)

    def shapes(self, arch: Architecture) -> dict[str, Shape]:
        """Return name to shape in ``state_dict`` order, with no module built."""
        self.validate(arch)
        assert isinstance(arch, ResNetArchitecture)
        return self.layout.shapes(arch)

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

    # Costs are additive: stem and head, a projection a stage, and one entry a block and ratio.

    def _tabulate(self) -> None:
        affine = 2 if self.layout.affine else 0
        side = self.image_size
        macs = self.stem * self.in_channels * 9 * side**2 + self.widths[-1] * self.num_classes
        params = self.stem * (self.in_channels * 9 + affine)
        params += (self.widths[-1] + 1) * self.num_classes
        self._blocks: list[list[dict[float, tuple[int, int]]]] = []
        inputs = self.stem
        for width, stride in zip(self.widths, self.strides, strict=True):
            side = math.ceil(side / stride)
            macs += inputs * width * side**2
            params += width * (inputs + affine)
            slots = []
            for _ in range(1 + self.depths[-1]):
                slot = {}
                for ratio in self.ratios:
                    mid = mid_channels(width, ratio)
                    weights = 9 * mid * (inputs + width)
                    slot[ratio] = (weights * side**2, weights + affine * (mid + width))
                slots.append(slot)
                inputs = width
            self._blocks.append(slots)
        self._fixed = (macs, params)

    def _cost(self, arch: Architecture, which: int) -> int:
        self.validate(arch)
        assert isinstance(arch, ResNetArchitecture)
        total = self._fixed[which]
        for slots, ratios in zip(self._blocks, arch.expand, strict=True):
            for slot, ratio in zip(slots, ratios, strict=False):  # a stage may be shallower
                total += slot[ratio][which]
        return total

    def macs(self, arch: Architecture) -> int:
        """Multiply-accumulates of convolutions and the head for one image, in microseconds."""
        return self._cost(arch, 0)

    def params(self, arch: Architecture) -> int:
        """Return the number of parameters, norm's included, in microseconds."""
        return self._cost(arch, 1)


class ResNet10To26(ResNetSpace):
    """The paper's space: 155⁴ = 577,200,625 networks of 0.46 to 3.40 GMACs at 32×32."""

    name = "resnet10-26"
    stem = 64
    widths = (256, 512, 1024, 2048)
    strides = (1, 2, 2, 2)
    depths = (0, 1, 2)
    ratios = (0.1, 0.14, 0.18, 0.22, 0.25)


class ResNetTiny(ResNetSpace):
    """The same idea for two CPU cores: 12⁴ = 20,736 networks of 3.5 to 19.6 MMACs at 32×32.

    Every stage halves the resolution, from 8×8 grey (4, 2, 1, 1) to 32×32 colour (16, 8, 4, 2).
    """

    name = "resnet-tiny"
    stem = 16
    widths = (24, 48, 96, 192)
    strides = (2, 2, 2, 2)
    depths = (0, 1)
    ratios = (0.33, 0.67, 1.0)
