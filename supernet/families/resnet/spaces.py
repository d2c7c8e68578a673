"""The ResNet families of SuperFedNAS (arXiv 2301.10879, §5 and appendix): elastic depth and width.

Every stage keeps its first ``1 + depth`` blocks, every block its first ``mid`` channels. Stem and
stage widths are fixed; in ``resnet_wide`` they are elastic too.
"""

import functools
from collections.abc import Sequence
from typing import Any

from superfednas.supernet.architecture import Architecture
from superfednas.supernet.families.resnet.channels import (
    ResNetArchitecture,
    make_divisible,
    mid_channels,
)
from superfednas.supernet.families.resnet.family import Channels, ResNetFamily
from superfednas.tasks import Task

__all__ = [
    "ResNet10To26",
    "ResNetArchitecture",
    "ResNetSpace",
    "ResNetTiny",
    "make_divisible",
    "mid_channels",
]


class ResNetSpace(ResNetFamily):
    """A ResNet family of fixed stage widths: subclasses give the numbers."""

    architecture = ResNetArchitecture

    def __init__(self, task: Task, norm: str = "group") -> None:
        super().__init__(task, norm)
        self._ratio_set = frozenset(self.ratios)

    @property
    def stems(self) -> tuple[int, ...]:
        """The stem's channels: one choice."""
        return (self.stem,)

    @property
    def stage_widths(self) -> tuple[tuple[int, ...], ...]:
        """Every stage's channels: one choice each."""
        return tuple((width,) for width in self.widths)

    def decode(self, choices: Sequence[int]) -> ResNetArchitecture:
        """Return the architecture of one choice a gene (inactive slots drop out)."""
        stages = len(self.widths)
        depth = tuple(self.depths[c] for c in choices[:stages])
        flat: Any = tuple(self.ratios[c] for c in choices[stages:])
        return ResNetArchitecture(depth, flat)

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

    def channels(self, arch: Architecture) -> Channels:
        """Return stem, stage widths, and middle channels of every block of a valid architecture."""
        assert isinstance(arch, ResNetArchitecture)
        return self.stem, self.widths, arch.mids(self.widths)

    @functools.cached_property
    def _ratio_of(self) -> list[dict[int, float]]:
        return [{mid_channels(w, r): r for r in reversed(self.ratios)} for w in self.widths]

    def compose(
        self, stem: int, widths: tuple[int, ...], mids: tuple[tuple[int, ...], ...]
    ) -> ResNetArchitecture:
        """Return the architecture of these channels, with the least ratios that give them."""
        return ResNetArchitecture(
            tuple(len(stage) - 1 for stage in mids),
            tuple(
                tuple(ratio_of[mid] for mid in stage)
                for ratio_of, stage in zip(self._ratio_of, mids, strict=True)
            ),
        )


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
