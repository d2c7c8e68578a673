"""The ResNet families of DeepFedNAS (arXiv 2601.15127): stem and stage widths are elastic too.

Middle channels follow the stage's actual width. Which shortcut projects is still a matter of
position: a stage's first block does even where stem and stage happen to be of equal width.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from superfednas.supernet.architecture import Architecture, Shape, is_list, is_whole
from superfednas.supernet.families.resnet.channels import (
    Layout,
    make_divisible,
    mid_channels,
)
from superfednas.supernet.families.resnet.family import Channels, ResNetFamily
from superfednas.supernet.families.resnet.spaces import ResNet10To26


@dataclass(frozen=True)
class WideResNetArchitecture(Architecture):
    """Channels of the stem, of every stage and of every active block.

    Channels, not shares and ratios: several of these round to the same network, which must equal
    itself. A stage has as many blocks as it has middle channels.

    Parameters
    ----------
    stem
        Channels that the stem hands on.
    width
        One number a stage: the channels that its blocks hand on.
    mid
        One list a stage: the middle channels of each of its blocks.
    """

    stem: int
    width: tuple[int, ...]
    mid: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:  # noqa: D105
        if not is_whole(self.stem):
            raise ValueError(f"stem = {self.stem!r}: must be a whole number of channels")
        if not is_list(self.width) or not self.width or not all(map(is_whole, self.width)):
            raise ValueError(
                f"width = {self.width!r}: must be a list of whole numbers, one a stage"
            )
        if not is_list(self.mid) or len(self.mid) != len(self.width):
            raise ValueError(
                f"mid = {self.mid!r}: must hold one list for each of the {len(self.width)} stages"
            )
        for stage, mids in enumerate(self.mid):
            if not is_list(mids) or not mids or not all(map(is_whole, mids)):
                raise ValueError(
                    f"mid[{stage}] = {mids!r}: must be a list of whole numbers, one a block"
                )
        object.__setattr__(self, "stem", int(self.stem))
        object.__setattr__(self, "width", tuple(map(int, self.width)))
        object.__setattr__(self, "mid", tuple(tuple(map(int, mids)) for mids in self.mid))

    def shapes_within(self, supernet: Mapping[str, Shape]) -> dict[str, Shape]:
        """Cut this subnet's shapes out of a supernet's."""
        layout = Layout.of(supernet)
        if len(layout.widths) != len(self.width):
            raise ValueError(f"width = {self.width}: the supernet has {len(layout.widths)} stages")
        own = dataclasses.replace(layout, stem=self.stem, widths=self.width, mids=self.mid)
        return own.shapes()


class WideResNetSpace(ResNetFamily):
    """A ResNet family of elastic widths: subclasses give the numbers.

    ``shares`` are what stem and stages may keep of ``stem`` and ``widths``, rising to 1.
    """

    architecture = WideResNetArchitecture
    shares: ClassVar[tuple[float, ...]]

    @functools.cached_property
    def stems(self) -> tuple[int, ...]:
        """Every share of the stem's channels, to a multiple of 8."""
        return self._shared(self.stem)

    @functools.cached_property
    def stage_widths(self) -> tuple[tuple[int, ...], ...]:
        """Every share of every stage's channels, to multiples of 8."""
        return tuple(map(self._shared, self.widths))

    def _shared(self, channels: int) -> tuple[int, ...]:
        return tuple(sorted({_share(channels, share) for share in self.shares}))

    @property
    def genes(self) -> tuple[int, ...]:
        """Depth of every stage, expand ratio of every slot, share of the stem and of every stage.

        Several shares or ratios may round to the same channels.
        """
        return super().genes + (len(self.shares),) * (1 + len(self.widths))

    def decode(self, choices: Sequence[int]) -> WideResNetArchitecture:
        """Return the architecture of one choice a gene (inactive slots drop out)."""
        stages, slots = len(self.widths), 1 + self.depths[-1]
        depths = [self.depths[c] for c in choices[:stages]]
        ratios = [self.ratios[c] for c in choices[stages : stages + stages * slots]]
        stem, *shares = (self.shares[c] for c in choices[stages + stages * slots :])
        widths = tuple(map(_share, self.widths, shares))
        return WideResNetArchitecture(
            stem=_share(self.stem, stem),
            width=widths,
            mid=tuple(
                tuple(mid_channels(width, ratios[s * slots + b]) for b in range(1 + depth))
                for s, (width, depth) in enumerate(zip(widths, depths, strict=True))
            ),
        )

    def validate(self, arch: Architecture) -> None:
        """Check all channels against this family's; ``ValueError`` names what is wrong."""
        super().validate(arch)
        assert isinstance(arch, WideResNetArchitecture)
        if arch.stem not in self.stems:
            raise ValueError(f"stem = {arch.stem}: must be one of {list(self.stems)}")
        if len(arch.width) != len(self.widths):
            raise ValueError(f"width = {arch.width}: {self.name} has {len(self.widths)} stages")
        for s, (width, mids) in enumerate(zip(arch.width, arch.mid, strict=True)):
            allowed = self.mids[s]
            if width not in allowed:
                raise ValueError(f"width[{s}] = {width}: must be one of {list(allowed)}")
            if len(mids) - 1 not in self.depths:
                raise ValueError(
                    f"mid[{s}] = {mids}: the number of blocks must be one of "
                    f"{[1 + depth for depth in self.depths]}"
                )
            for b, mid in enumerate(mids):
                if mid not in allowed[width]:
                    raise ValueError(
                        f"mid[{s}][{b}] = {mid}: must be one of {list(allowed[width])} "
                        f"where width[{s}] = {width}"
                    )

    def channels(self, arch: Architecture) -> Channels:
        """Return stem, stage widths, and middle channels of every block of a valid architecture."""
        assert isinstance(arch, WideResNetArchitecture)
        return arch.stem, arch.width, arch.mid

    @property
    def width_shares(self) -> tuple[float, ...]:
        """The shares of stem and stages."""
        return self.shares

    def at_width(self, share: float) -> WideResNetArchitecture:
        """Return the deepest subnet whose stem and stages have this share of their channels."""
        if share not in self.shares:
            raise ValueError(self._no_width(share))
        choices = [number - 1 for number in self.genes]
        count = 1 + len(self.widths)
        return self.decode([*choices[:-count], *[self.shares.index(share)] * count])

    def compose(
        self, stem: int, widths: tuple[int, ...], mids: tuple[tuple[int, ...], ...]
    ) -> WideResNetArchitecture:
        """Return the architecture of these channels."""
        return WideResNetArchitecture(stem, widths, mids)


def _share(channels: int, share: float) -> int:
    return make_divisible(round(channels * share))


class ResNet10To26Wide(WideResNetSpace):
    """DeepFedNAS's space: 1.6×10¹³ networks of 7.5 MMACs to 3.40 GMACs at 32×32."""

    name = "resnet10-26-wide"
    stem = ResNet10To26.stem
    widths = ResNet10To26.widths
    strides = ResNet10To26.strides
    depths = ResNet10To26.depths
    ratios = ResNet10To26.ratios
    shares = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
