"""The ResNet families of SuperFedNAS (arXiv 2301.10879, §5 and appendix): elastic depth and width.

Every stage keeps its first ``1 + depth`` blocks, every block its first ``mid`` channels. Stage
widths are fixed, and which shortcut a block has is decided by its position (the first of a stage
projects, the others do not), never by whether shapes happen to match. ReLU stands both before and
after the addition, as in the authors' networks.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from supernet.architecture import Architecture, Shape
from supernet.norms import GROUP_CHANNELS, make_norm
from supernet.slicing import Boxes, Interval, placement_shape
from supernet.space import SearchSpace

_HUGE = 1e6


@dataclass(frozen=True)
class ResNetArchitecture(Architecture):
    """Depth of every stage and expand ratio of every active block.

    Parameters
    ----------
    depth
        One number a stage: blocks beyond the first.
    expand
        One list a stage, one ratio an active block. A flat list of all slots (or lists that are too
        long) is accepted: inactive slots are dropped.
    """

    depth: tuple[int, ...]
    expand: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:  # noqa: D105
        if not _is_list(self.depth) or not self.depth or not all(map(_is_whole, self.depth)):
            raise ValueError(
                f"depth = {self.depth!r}: must be a list of whole numbers, one a stage"
            )
        depth = tuple(int(d) for d in self.depth)
        expand: Any = self.expand
        if not _is_list(expand):
            raise ValueError(f"expand = {expand!r}: must be a list, one list of ratios a stage")
        if not any(map(_is_list, expand)):
            slots, rest = divmod(len(expand), len(depth))
            if rest:
                raise ValueError(
                    f"expand = {expand!r}: a flat list must have as many slots for each of the "
                    f"{len(depth)} stages"
                )
            expand = [expand[s * slots : (s + 1) * slots] for s in range(len(depth))]
        if len(expand) != len(depth) or not all(map(_is_list, expand)):
            raise ValueError(f"expand = {expand!r}: must hold one list for each of {depth=}")
        stages = []
        for stage, (d, ratios) in enumerate(zip(depth, expand, strict=True)):
            active = ratios[: 1 + d]
            if len(active) < 1 + d or not all(map(_is_number, active)):
                raise ValueError(
                    f"expand[{stage}] = {ratios!r}: stage {stage} has depth {d}, "
                    f"so it needs {1 + d} ratios"
                )
            stages.append(tuple(float(ratio) for ratio in active))
        object.__setattr__(self, "depth", depth)
        object.__setattr__(self, "expand", tuple(stages))

    def shapes_within(self, supernet: Mapping[str, Shape]) -> dict[str, Shape]:
        """Read the layout off a ResNet supernet's own shapes and cut this subnet's out of it."""
        try:
            layout = Layout.of(supernet)
        except (KeyError, IndexError):
            raise ValueError("these tensors are not those of a ResNet supernet") from None
        if len(layout.widths) != len(self.depth):
            raise ValueError(f"depth = {self.depth}: the supernet has {len(layout.widths)} stages")
        return layout.shapes(self)


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _is_number(value: object) -> bool:
    # Compared, not converted: JSON may hold integers that no float can.
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -_HUGE < value < _HUGE  # false for NaN
    )


def _is_whole(value: Any) -> bool:
    return _is_number(value) and bool(value == int(value) and value >= 0)


def make_divisible(value: int, divisor: int = GROUP_CHANNELS) -> int:
    """Round to a multiple of ``divisor``, at least ``divisor``, never below 90% of ``value``."""
    rounded = max(divisor, (value + divisor // 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def mid_channels(width: int, ratio: float) -> int:
    """Middle channels of a block; ``round`` is Python's (ties to even), as in the paper's code."""
    return make_divisible(round(width * ratio))


@dataclass(frozen=True)
class Layout:
    """What a ResNet supernet's tensors are, whatever the architecture inside."""

    stem: int
    widths: tuple[int, ...]
    in_channels: int
    num_classes: int
    affine: bool

    @classmethod
    def of(cls, supernet: Mapping[str, Shape]) -> "Layout":
        """Read the layout off a supernet's shapes; ``KeyError`` where they are another family's."""
        stem, in_channels = supernet["stem.conv.weight"][:2]
        widths: list[int] = []
        while (name := f"stages.{len(widths)}.0.conv2.weight") in supernet:
            widths.append(supernet[name][0])
        affine = "stem.norm.weight" in supernet
        return cls(stem, tuple(widths), in_channels, supernet["head.weight"][0], affine)

    def axes(self, depth: Sequence[int]) -> dict[str, tuple[str, ...]]:
        """Name the axis of every dimension of every tensor, in ``state_dict`` order."""
        axes: dict[str, tuple[str, ...]] = {}

        def conv(name: str, norm: str, outputs: str, inputs: str, kernel: str) -> None:
            axes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
            if self.affine:
                axes[f"{norm}.weight"] = axes[f"{norm}.bias"] = (outputs,)

        conv("stem.conv", "stem.norm", "stem.out", "image", "kernel3")
        inputs = "stem.out"
        for s, blocks in enumerate(depth):
            outputs = f"stage{s}.out"
            for b in range(1 + blocks):
                block, mid = f"stages.{s}.{b}", f"stage{s}.block{b}.mid"
                conv(f"{block}.conv1", f"{block}.norm1", mid, inputs, "kernel3")
                conv(f"{block}.conv2", f"{block}.norm2", outputs, mid, "kernel3")
                if b == 0:
                    shortcut = f"{block}.shortcut"
                    conv(f"{shortcut}.conv", f"{shortcut}.norm", outputs, inputs, "kernel1")
                inputs = outputs
        axes["head.weight"] = ("classes", inputs)
        axes["head.bias"] = ("classes",)
        return axes

    def intervals(self, arch: ResNetArchitecture) -> dict[str, tuple[Interval, ...]]:
        """Give the part of every axis that an architecture holds: the leading one."""
        sizes = {
            "image": self.in_channels,
            "stem.out": self.stem,
            "kernel1": 1,
            "kernel3": 3,
            "classes": self.num_classes,
        }
        for s, (width, ratios) in enumerate(zip(self.widths, arch.expand, strict=True)):
            sizes[f"stage{s}.out"] = width
            for b, ratio in enumerate(ratios):
                sizes[f"stage{s}.block{b}.mid"] = mid_channels(width, ratio)
        return {axis: ((0, size),) for axis, size in sizes.items()}

    def boxes(self, arch: ResNetArchitecture) -> Boxes:
        """Compose axes and intervals."""
        intervals = self.intervals(arch)
        return {
            name: tuple(intervals[axis] for axis in axes)
            for name, axes in self.axes(arch.depth).items()
        }

    def shapes(self, arch: ResNetArchitecture) -> dict[str, Shape]:
        """Return name to shape, in ``state_dict`` order."""
        return {name: placement_shape(box) for name, box in self.boxes(arch).items()}


class Stem(nn.Module):
    """3×3 convolution, norm, ReLU at full resolution."""

    def __init__(self, inputs: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = make_norm(norm, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        return functional.relu(self.norm(self.conv(images)))


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


class ResNet(nn.Module):
    """A static ResNet of one architecture."""

    def __init__(
        self, layout: Layout, strides: Sequence[int], arch: ResNetArchitecture, norm: str
    ) -> None:
        super().__init__()
        self.stem = Stem(layout.in_channels, layout.stem, norm)
        stages, inputs = [], layout.stem
        for width, stride, ratios in zip(layout.widths, strides, arch.expand, strict=True):
            blocks = []
            for b, ratio in enumerate(ratios):
                mid = mid_channels(width, ratio)
                first = b == 0
                blocks.append(
                    Block(inputs, mid, width, stride if first else 1, norm, project=first)
                )
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, layout.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        features = self.stages(self.stem(images))
        logits: torch.Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


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
