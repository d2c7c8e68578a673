"""The MobileNetV1 families of FedSup (Kim and Yun, Table 7): elastic depth, width and kernel size.

Every stage keeps its first layers, every layer its first channels and the centre of its kernels.
Any of the three dimensions can be fixed at its largest, as the paper studies them one at a time
(``elastic``).
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from superfednas.supernet.architecture import Architecture, is_list, is_whole
from superfednas.supernet.axes import Axes, Axis, Kind
from superfednas.supernet.chain import Block
from superfednas.supernet.families.ends import head_block, stem_block
from superfednas.supernet.families.mobilenet.chain import Layers, MobileNetChain
from superfednas.supernet.families.mobilenet.module import separable_block
from superfednas.supernet.families.staged import StagedSpace

_LISTED = 20_000  # options of a stage
DIMENSIONS = ("depth", "width", "kernel")


@dataclass(frozen=True)
class MobileNetArchitecture(Architecture):
    """Output channels and kernel size of every active layer; a stage is as deep as its lists.

    Parameters
    ----------
    width
        One list a stage, one number of channels a layer.
    kernel
        One list a stage, one kernel side in pixels a layer.
    """

    width: tuple[tuple[int, ...], ...]
    kernel: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:  # noqa: D105
        for field in ("width", "kernel"):
            stages: Any = getattr(self, field)
            if not is_list(stages) or not stages:
                raise ValueError(f"{field} = {stages!r}: must be a list, one list a stage")
            for stage, values in enumerate(stages):
                if not is_list(values) or not values or not all(map(is_whole, values)):
                    raise ValueError(
                        f"{field}[{stage}] = {values!r}: must be a list of whole numbers, "
                        "one a layer"
                    )
            object.__setattr__(self, field, tuple(tuple(map(int, values)) for values in stages))
        if [*map(len, self.width)] != [*map(len, self.kernel)]:
            raise ValueError("width and kernel must have one number for each layer, both the same")


class MobileNetSpace(StagedSpace):
    """A MobileNetV1 family: subclasses give the numbers.

    ``widths`` are the largest channels of every stage, ``shares`` what a layer may keep of them;
    ``layers`` are the fewest and the most of every stage. What ``elastic`` does not name stays at
    its largest.
    """

    architecture = MobileNetArchitecture
    stem: ClassVar[int]
    layers: ClassVar[tuple[tuple[int, int], ...]]
    strides: ClassVar[tuple[int, ...]]
    shares: ClassVar[tuple[float, ...]]
    kernels: ClassVar[tuple[int, ...]] = (3, 5, 7)
    elastic: ClassVar[tuple[str, ...]] = DIMENSIONS

    @functools.cached_property
    def depths(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of layers that every stage may have, rising."""
        return tuple(self._kept("depth", range(low, high + 1)) for low, high in self.layers)

    @functools.cached_property
    def stage_widths(self) -> tuple[tuple[int, ...], ...]:
        """Channels that every stage's layers may have, rising."""
        return tuple(
            self._kept("width", [round(width * share) for share in self.shares])
            for width in self.widths
        )

    @functools.cached_property
    def kernel_sizes(self) -> tuple[int, ...]:
        """Kernel sides that a layer may have, rising."""
        return self._kept("kernel", self.kernels)

    def _kept(self, dimension: str, choices: Sequence[int]) -> tuple[int, ...]:
        return tuple(choices) if dimension in self.elastic else tuple(choices[-1:])

    @property
    def genes(self) -> tuple[int, ...]:
        """Depth of every stage; then width and kernel of every layer."""
        slots = sum(depths[-1] for depths in self.depths)
        pair = (len(self.stage_widths[0]), len(self.kernel_sizes))
        return (*map(len, self.depths), *pair * slots)

    @functools.cached_property
    def size(self) -> int:
        """Distinct networks: for every stage, widths times kernels a layer, over its depths."""
        return math.prod(
            sum((len(widths) * len(self.kernel_sizes)) ** depth for depth in depths)
            for widths, depths in zip(self.stage_widths, self.depths, strict=True)
        )

    def decode(self, choices: Sequence[int]) -> MobileNetArchitecture:
        """Return the architecture of one choice a gene (inactive layers drop out)."""
        rest = iter(choices[len(self.depths) :])
        width, kernel = [], []
        for depths, widths, gene in zip(self.depths, self.stage_widths, choices, strict=False):
            slots = [(widths[next(rest)], self.kernel_sizes[next(rest)]) for _ in range(depths[-1])]
            active = slots[: depths[gene]]
            width.append(tuple(w for w, _ in active))
            kernel.append(tuple(k for _, k in active))
        return MobileNetArchitecture(tuple(width), tuple(kernel))

    def validate(self, arch: Architecture) -> None:
        """Check layers, channels and kernels; ``ValueError`` names what is wrong."""
        super().validate(arch)
        assert isinstance(arch, MobileNetArchitecture)
        if len(arch.width) != len(self.widths):
            raise ValueError(f"width: {self.name} has {len(self.widths)} stages")
        for s, (depths, widths) in enumerate(zip(self.depths, self.stage_widths, strict=True)):
            if len(arch.width[s]) not in depths:
                raise ValueError(
                    f"width[{s}] = {arch.width[s]}: the number of layers must be one of "
                    f"{list(depths)}"
                )
            for field, allowed in (("width", widths), ("kernel", self.kernel_sizes)):
                for layer, value in enumerate(getattr(arch, field)[s]):
                    if value not in allowed:
                        raise ValueError(
                            f"{field}[{s}][{layer}] = {value}: must be one of {list(allowed)}"
                        )

    # Where its tensors lie, and what they cost

    def _layers(self, arch: Architecture) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield stage, layer, input channels, output channels and kernel of every layer."""
        self.validate(arch)
        assert isinstance(arch, MobileNetArchitecture)
        inputs = self.stem
        for stage, (widths, kernels) in enumerate(zip(arch.width, arch.kernel, strict=True)):
            for layer, (outputs, kernel) in enumerate(zip(widths, kernels, strict=True)):
                yield stage, layer, inputs, outputs, kernel
                inputs = outputs

    def axes(self, arch: Architecture) -> Axes:
        """Name the axes of every tensor, with no module built.

        All layers of a stage have the same largest width, so what reads a stage's channels may read
        those of whichever layer is its last.
        """
        one, kernel3 = Axis("one", 1, Kind.ORDERED), Axis("kernel3", 3, Kind.KERNEL)
        classes = Axis("classes", self.num_classes, Kind.ORDERED)
        axes: Axes = {}

        def norm(name: str, channels: Axis) -> None:
            if self.norm != "none":
                axes[f"{name}.weight"] = axes[f"{name}.bias"] = (channels,)

        incoming = Axis("stem.out", self.stem)
        image = Axis("image", self.in_channels, Kind.ORDERED)
        axes["stem.conv.weight"] = (incoming, image, kernel3, kernel3)
        norm("stem.norm", incoming)
        for stage, layer, _, outputs, side in self._layers(arch):
            name, axis = f"stages.{stage}.{layer}", f"stage{stage}.layer{layer}"
            kernel = Axis(f"{axis}.kernel", side, Kind.KERNEL)
            axes[f"{name}.depthwise.weight"] = (incoming, one, kernel, kernel)
            norm(f"{name}.norm1", incoming)
            outgoing = Axis(f"{axis}.out", outputs)
            axes[f"{name}.pointwise.weight"] = (outgoing, incoming, one, one)
            norm(f"{name}.norm2", outgoing)
            incoming = outgoing
        axes["head.weight"] = (classes, incoming)
        axes["head.bias"] = (classes,)
        return axes

    def blocks(self, arch: Architecture) -> tuple[Block, ...]:
        """Return the network's blocks: stem, separable layers, head."""
        side, last = self.image_size, self.stem
        blocks = [stem_block(self.in_channels, self.stem, side, self.norm)]
        for stage, layer, inputs, outputs, kernel in self._layers(arch):
            stride = self.strides[stage] if layer == 0 else 1
            blocks.append(separable_block(inputs, outputs, kernel, stride, side, self.norm))
            side, last = math.ceil(side / stride), outputs
        return *blocks, head_block(last, self.num_classes, side)

    def stage_lengths(self, arch: Architecture) -> list[int]:
        """Return the number of layers of every stage."""
        assert isinstance(arch, MobileNetArchitecture)
        return [len(widths) for widths in arch.width]

    def gain(self, name: str) -> float:
        """He's √2 before a ReLU, 1 for the head."""
        return 1.0 if name == "head.weight" else math.sqrt(2)

    @functools.cached_property
    def chain(self) -> MobileNetChain | None:
        """The stem and the stages, where no stage has too many options to list them."""
        layer = len(self.stage_widths[0]) * len(self.kernel_sizes)
        if max(sum(layer**depth for depth in depths) for depths in self.depths) > _LISTED:
            return None
        return MobileNetChain(
            stem=self.stem,
            depths=self.depths,
            widths=self.stage_widths,
            kernels=self.kernel_sizes,
            strides=self.strides,
            image_size=self.image_size,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            norm=self.norm,
            compose=self._compose,
            layers_of=self._stages,
        )

    @staticmethod
    def _compose(stages: Sequence[Layers]) -> MobileNetArchitecture:
        return MobileNetArchitecture(
            tuple(tuple(width for width, _ in layers) for layers in stages),
            tuple(tuple(kernel for _, kernel in layers) for layers in stages),
        )

    @staticmethod
    def _stages(arch: Architecture) -> list[Layers]:
        assert isinstance(arch, MobileNetArchitecture)
        return [
            tuple(zip(widths, kernels, strict=True))
            for widths, kernels in zip(arch.width, arch.kernel, strict=True)
        ]

    # Elastic output widths

    @property
    def width_shares(self) -> tuple[float, ...]:
        """Shares of every layer's channels; none where widths are not elastic."""
        return self.shares if "width" in self.elastic else ()

    def at_width(self, share: float) -> MobileNetArchitecture:
        """Return the subnet of all layers and largest kernels with this share of all channels."""
        if share not in self.width_shares:
            raise ValueError(self._no_width(share))
        choice = self.shares.index(share)
        return MobileNetArchitecture(
            tuple(
                (widths[choice],) * depths[-1]
                for widths, depths in zip(self.stage_widths, self.depths, strict=True)
            ),
            tuple((self.kernel_sizes[-1],) * depths[-1] for depths in self.depths),
        )


class MobileNetV1(MobileNetSpace):
    """FedSup's space (Table 7): channels from half of each stage's to all, in eighths.

    The table's resolutions are those that stages hand on: strides 2, 1, 2, 2, 2.
    """

    name = "mobilenetv1"
    stem = 32
    widths = (64, 128, 256, 512, 1024)
    layers = ((1, 1), (1, 2), (1, 2), (3, 6), (1, 2))
    strides = (2, 1, 2, 2, 2)
    shares = (0.5, 0.625, 0.75, 0.875, 1.0)


class MobileNetV1Tiny(MobileNetSpace):
    """Its sibling for two CPU cores: three stages, channels in quarters of each stage's."""

    name = "mobilenetv1-tiny"
    stem = 16
    widths = (32, 64, 128)
    layers = ((1, 1), (1, 2), (1, 2))
    strides = (1, 2, 2)
    shares = (0.25, 0.5, 0.75, 1.0)


def single(family: type[MobileNetSpace], dimension: str) -> type[MobileNetSpace]:
    """Return a family of which one dimension is elastic, the others fixed at their largest."""
    fields: Mapping[str, Any] = {
        "name": f"{family.name}-{dimension}",
        "elastic": (dimension,),
        "__doc__": f"{family.name} with elastic {dimension} alone.",
    }
    return type(f"{family.__name__}{dimension.title()}", (family,), dict(fields))


MOBILENETS: tuple[type[MobileNetSpace], ...] = tuple(
    space
    for family in (MobileNetV1, MobileNetV1Tiny)
    for space in (family, *(single(family, dimension) for dimension in DIMENSIONS))
)
