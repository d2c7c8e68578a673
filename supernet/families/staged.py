"""Networks of a stem, stages of blocks and a head: what the ResNets and the MobileNets share."""

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from superfednas.supernet.architecture import Architecture
from superfednas.supernet.space import SearchSpace
from superfednas.tasks import Task
from superfednas.tasks.images import Images


class StagedNetwork(nn.Module):
    """A static network of a stem, stages of blocks, and a head."""

    def __init__(
        self, stem: nn.Module, stages: Sequence[Sequence[nn.Module]], head: nn.Module
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*(nn.Sequential(*blocks) for blocks in stages))
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        logits: torch.Tensor = self.head(self.stages(self.stem(images)))
        return logits


class StagedSpace(SearchSpace):
    """A family of such networks, counted by its blocks: the stem's, the stages', the head's.

    A subclass defines ``blocks``, how many of them each stage has, and ``axes``.
    ``widths`` are the largest channels of every stage; its first genes are the stages' depths.
    """

    widths: ClassVar[tuple[int, ...]]

    def __init__(self, task: Task, norm: str = "group") -> None:
        super().__init__(task, norm)
        if not isinstance(task, Images):
            raise ValueError(
                f"space = {self.name!r}: its networks read images, and the task is "
                f"{task.reference!r}"
            )
        for key, least in (("num_classes", 2), ("in_channels", 1), ("image_size", 8)):
            if getattr(task, key) < least:
                raise ValueError(f"{key} = {getattr(task, key)}: must be at least {least}")
        self.num_classes = task.num_classes
        self.in_channels = task.in_channels
        self.image_size = task.image_size

    @abstractmethod
    def stage_lengths(self, arch: Architecture) -> list[int]:
        """Return the number of blocks of every stage of a valid architecture."""

    def full_width(self, choices: Sequence[int]) -> list[int]:
        """Set every gene but the stages' depths to its largest choice."""
        stages = len(self.widths)
        return [*choices[:stages], *(number - 1 for number in self.genes[stages:])]

    def module(self, arch: Architecture) -> nn.Module:
        """Construct the plain module."""
        return self.join(arch, [block.module() for block in self.blocks(arch)])

    def join(self, arch: Architecture, blocks: Sequence[nn.Module]) -> nn.Module:
        """Return the network of stem, stages and head."""
        stem, *inner, head = blocks
        rest = iter(inner)
        stages = [list(itertools.islice(rest, count)) for count in self.stage_lengths(arch)]
        return StagedNetwork(stem, stages, head)

    def macs(self, arch: Architecture) -> int:
        """Multiply-accumulates of convolutions and the head for one image, in microseconds."""
        return sum(block.macs for block in self.blocks(arch))

    def params(self, arch: Architecture) -> int:
        """Return the number of parameters, norm's included, in microseconds."""
        return sum(block.params for block in self.blocks(arch))

    def activations(self, arch: Architecture) -> int:
        """Return the most numbers alive at once for one image, in microseconds."""
        return max(block.activations for block in self.blocks(arch))
