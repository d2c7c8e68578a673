"""Architectures of the ResNet families, and the axes of their tensors."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from superfednas.supernet.architecture import Architecture, Shape, is_list, is_number, is_whole
from superfednas.supernet.axes import Axes, Axis, Kind, shapes_of_axes
from superfednas.supernet.norms import GROUP_CHANNELS


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
        if not is_list(self.depth) or not self.depth or not all(map(is_whole, self.depth)):
            raise ValueError(
                f"depth = {self.depth!r}: must be a list of whole numbers, one a stage"
            )
        depth = tuple(int(d) for d in self.depth)
        expand: Any = self.expand
        if not is_list(expand):
            raise ValueError(f"expand = {expand!r}: must be a list, one list of ratios a stage")
        if not any(map(is_list, expand)):
            slots, rest = divmod(len(expand), len(depth))
            if rest:
                raise ValueError(
                    f"expand = {expand!r}: a flat list must have as many slots for each of the "
                    f"{len(depth)} stages"
                )
            expand = [expand[s * slots : (s + 1) * slots] for s in range(len(depth))]
        if len(expand) != len(depth) or not all(map(is_list, expand)):
            raise ValueError(f"expand = {expand!r}: must hold one list for each of {depth=}")
        stages = []
        for stage, (d, ratios) in enumerate(zip(depth, expand, strict=True)):
            active = ratios[: 1 + d]
            if len(active) < 1 + d or not all(map(is_number, active)):
                raise ValueError(
                    f"expand[{stage}] = {ratios!r}: stage {stage} has depth {d}, "
                    f"so it needs {1 + d} ratios"
                )
            stages.append(tuple(float(ratio) for ratio in active))
        object.__setattr__(self, "depth", depth)
        object.__setattr__(self, "expand", tuple(stages))

    def shapes_within(self, supernet: Mapping[str, Shape]) -> dict[str, Shape]:
        """Read the layout off a ResNet supernet's own shapes and cut this subnet's out of it."""
        layout = Layout.of(supernet)
        if len(layout.widths) != len(self.depth):
            raise ValueError(f"depth = {self.depth}: the supernet has {len(layout.widths)} stages")
        return dataclasses.replace(layout, mids=self.mids(layout.widths)).shapes()

    def mids(self, widths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Middle channels of every active block, for the given stage widths."""
        return tuple(
            tuple(mid_channels(width, ratio) for ratio in ratios)
            for width, ratios in zip(widths, self.expand, strict=True)
        )


def make_divisible(value: int, divisor: int = GROUP_CHANNELS) -> int:
    """Round to a multiple of ``divisor``, at least ``divisor``, never below 90% of ``value``."""
    rounded = max(divisor, (value + divisor // 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def mid_channels(width: int, ratio: float) -> int:
    """Middle channels of a block; ``round`` is Python's (ties to even), as in the paper's code."""
    return make_divisible(round(width * ratio))


@dataclass(frozen=True)
class Layout:
    """The channels of one network, and with them all that its tensors are.

    Parameters
    ----------
    stem
        Channels that the stem hands on.
    widths
        One number a stage: the channels that its blocks hand on.
    mids
        One list a stage: the middle channels of each of its blocks.
    affine
        Whether there are norm layers with weight and bias.
    """

    stem: int
    widths: tuple[int, ...]
    mids: tuple[tuple[int, ...], ...]
    in_channels: int
    num_classes: int
    affine: bool

    @classmethod
    def of(cls, shapes: Mapping[str, Shape]) -> "Layout":
        """Read the layout off a network's (or the supernet's) shapes.

        Raises
        ------
        ValueError
            Where they are another family's.
        """
        try:
            stem, in_channels = shapes["stem.conv.weight"][:2]
            widths: list[int] = []
            mids: list[tuple[int, ...]] = []
            while f"stages.{len(widths)}.0.conv2.weight" in shapes:
                stage = f"stages.{len(widths)}"
                found: list[int] = []
                while (name := f"{stage}.{len(found)}.conv2.weight") in shapes:
                    found.append(shapes[name][1])
                widths.append(shapes[f"{stage}.0.conv2.weight"][0])
                mids.append(tuple(found))
            classes = shapes["head.weight"][0]
        except (KeyError, IndexError):
            raise ValueError("these tensors are not those of a ResNet supernet") from None
        affine = "stem.norm.weight" in shapes
        return cls(stem, tuple(widths), tuple(mids), in_channels, classes, affine)

    def axes(self) -> Axes:
        """Name the axis of every dimension of every tensor, in ``state_dict`` order."""
        axes: Axes = {}
        kernel1, kernel3 = Axis("kernel1", 1, Kind.KERNEL), Axis("kernel3", 3, Kind.KERNEL)
        classes = Axis("classes", self.num_classes, Kind.ORDERED)

        def conv(name: str, norm: str, outputs: Axis, inputs: Axis, kernel: Axis) -> None:
            axes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
            if self.affine:
                axes[f"{norm}.weight"] = axes[f"{norm}.bias"] = (outputs,)

        inputs = Axis("stem.out", self.stem)
        image = Axis("image", self.in_channels, Kind.ORDERED)
        conv("stem.conv", "stem.norm", inputs, image, kernel3)
        for s, (width, mids) in enumerate(zip(self.widths, self.mids, strict=True)):
            outputs = Axis(f"stage{s}.out", width)
            for b, channels in enumerate(mids):
                block, mid = f"stages.{s}.{b}", Axis(f"stage{s}.block{b}.mid", channels)
                conv(f"{block}.conv1", f"{block}.norm1", mid, inputs, kernel3)
                conv(f"{block}.conv2", f"{block}.norm2", outputs, mid, kernel3)
                if b == 0:
                    shortcut = f"{block}.shortcut"
                    conv(f"{shortcut}.conv", f"{shortcut}.norm", outputs, inputs, kernel1)
                inputs = outputs
        axes["head.weight"] = (classes, inputs)
        axes["head.bias"] = (classes,)
        return axes

    def shapes(self) -> dict[str, Shape]:
        """Return name to shape, in ``state_dict`` order."""
        return shapes_of_axes(self.axes())
