"""A MobileNet family as a chain of blocks: a stem, a stage a segment, a head."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from superfednas.supernet.architecture import Architecture
from superfednas.supernet.chain import Block, ListedChain, Segment
from superfednas.supernet.families.ends import head_block, stem_block
from superfednas.supernet.families.mobilenet.module import separable_block

Layers = tuple[tuple[int, int], ...]


class MobileNetChain(ListedChain):
    """Segments of a MobileNet family: the stem, then one a stage; the last stage brings the head.

    An option of a stage is the (channels, kernel) of each of its layers. The state between two
    segments is the number of channels handed on, by its index among those allowed.

    Parameters
    ----------
    stem
        Channels of the stem.
    depths, widths
        For every stage the numbers of layers and the channels that it may have, rising.
    kernels
        Kernel sides that a layer may have, rising.
    strides, image_size, in_channels, num_classes, norm
        As in the space.
    compose
        Returns the architecture of every stage's layers.
    layers_of
        Returns every stage's layers of an architecture.
    """

    def __init__(
        self,
        *,
        stem: int,
        depths: Sequence[Sequence[int]],
        widths: Sequence[Sequence[int]],
        kernels: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        in_channels: int,
        num_classes: int,
        norm: str,
        compose: Callable[[Sequence[Layers]], Architecture],
        layers_of: Callable[[Architecture], Sequence[Layers]],
    ) -> None:
        self._compose, self._layers_of = compose, layers_of
        self._channels = [(stem,), *map(tuple, widths)]
        self._strides, self._norm = tuple(strides), norm
        self._sides = [image_size]
        for stride in strides:
            self._sides.append(math.ceil(self._sides[-1] / stride))
        self._io = in_channels, num_classes
        segments = [Segment("stem", ((),), np.zeros(1, dtype=int), np.empty((1, 0)))]
        for s, (choices, allowed) in enumerate(zip(depths, widths, strict=True)):
            layers = list(itertools.product(allowed, kernels))
            options = tuple(
                option for depth in choices for option in itertools.product(layers, repeat=depth)
            )
            leaves = np.array([allowed.index(option[-1][0]) for option in options])
            features = _features(options, allowed[-1], kernels[-1], choices)
            segments.append(Segment(f"stage{s}", options, leaves, features))
        super().__init__(segments)

    def blocks(self, segment: int, state: int, option: int) -> tuple[Block, ...]:
        """Return the blocks of an option, given the channels of the segment before."""
        in_channels, classes = self._io
        if segment == 0:
            return (stem_block(in_channels, self._channels[0][0], self._sides[0], self._norm),)
        stage = segment - 1
        inputs, side = self._channels[stage][state], self._sides[stage]
        found = []
        for number, (outputs, kernel) in enumerate(self._segments[segment].options[option]):
            stride = 1 if number else self._strides[stage]
            found.append(separable_block(inputs, outputs, kernel, stride, side, self._norm))
            inputs, side = outputs, self._sides[segment]
        if segment == len(self._strides):
            found.append(head_block(inputs, classes, side))
        return tuple(found)

    def assemble(self, options: Sequence[int]) -> Architecture:
        """Return the architecture of one option a segment."""
        chosen = self.chosen(options)
        return self._compose(chosen[1:])

    def locate(self, arch: Architecture) -> tuple[int, ...]:
        """Undo :meth:`assemble`."""
        chosen = [(), *self._layers_of(arch)]
        return self.indices(chosen)


def _features(
    options: Sequence[Layers], width: int, kernel: int, depths: Sequence[int]
) -> np.ndarray:
    """For every layer whether it is there, its shares of width and kernel, and their logarithms.

    A column that is the same in all options says nothing and is left out.
    """
    rows = np.zeros((len(options), depths[-1], 5))
    for row, option in zip(rows, options, strict=True):
        for slot, (outputs, side) in zip(row, option, strict=False):
            shares = outputs / width, side / kernel
            slot[:] = 1, *shares, *map(math.log, shares)
    flat = rows.reshape(len(options), -1)
    varied: np.ndarray = flat[:, np.ptp(flat, axis=0) > 0]
    return varied
