"""The ResNet families as chains of blocks: a stem, a stage a segment, a head."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from superfednas.supernet.architecture import Architecture
from superfednas.supernet.chain import Block, ListedChain, Segment
from superfednas.supernet.families.ends import head_block, stem_block
from superfednas.supernet.families.resnet.channels import Layout
from superfednas.supernet.families.resnet.module import Block as ResNetBlock
from superfednas.supernet.norms import norm_parameters

_KNOWN = 1 << 16


@functools.lru_cache(_KNOWN)
def residual_block(
    inputs: int, mid: int, outputs: int, stride: int, side: int, norm: str, *, project: bool
) -> Block:
    """Two 3×3 convolutions and a shortcut; ``side`` is the input's."""
    after = math.ceil(side / stride)
    weights = 9 * mid * (inputs + outputs)
    shortcut = inputs * outputs if project else 0
    affine = norm_parameters(norm, mid + outputs + (outputs if project else 0))
    # Numbers alive: input, middle, output; then what the shortcut holds beside the branch's output.
    x, m, o = inputs * side**2, mid * after**2, outputs * after**2
    peak = x + m + o
    if project and stride > 1:
        pooled = inputs * after**2
        peak = max(peak, x + o + pooled, pooled + 2 * o)
    elif project:
        peak = max(peak, x + 2 * o)
    return Block(
        name=f"block {inputs}>{mid}>{outputs} at {side}"
        + (f", stride {stride}, projected" if project else ""),
        inputs=(inputs, side, side),
        macs=(weights + shortcut) * after**2,
        params=weights + shortcut + affine,
        activations=peak,
        module=functools.partial(ResNetBlock, inputs, mid, outputs, stride, norm, project=project),
    )


def stage_blocks(
    inputs: int, mids: Sequence[int], width: int, stride: int, side: int, norm: str
) -> tuple[Block, ...]:
    """Return the blocks of one stage whose input has ``side`` pixels."""
    first = residual_block(inputs, mids[0], width, stride, side, norm, project=True)
    side = math.ceil(side / stride)
    return first, *(
        residual_block(width, mid, width, 1, side, norm, project=False) for mid in mids[1:]
    )


def layout_blocks(
    layout: Layout, strides: Sequence[int], side: int, norm: str
) -> tuple[Block, ...]:
    """Return all blocks of a network, from the image on."""
    blocks = [stem_block(layout.in_channels, layout.stem, side, norm)]
    inputs = layout.stem
    for mids, width, stride in zip(layout.mids, layout.widths, strides, strict=True):
        blocks += stage_blocks(inputs, mids, width, stride, side, norm)
        inputs, side = width, math.ceil(side / stride)
    return *blocks, head_block(inputs, layout.num_classes, side)


class ResNetChain(ListedChain):
    """Segments of a ResNet family: the stem, then one a stage; the last stage brings the head.

    An option of the stem is its channels; of a stage (width, mids). The state between two segments
    is the number of channels handed on, by its index among those allowed.

    Parameters
    ----------
    stems
        Channels that the stem may have.
    widths
        For every stage the channels that it may have.
    mids
        For every stage and width the middle channels that a block may have, rising.
    depths
        Blocks that a stage may have beyond its first.
    strides, image_size, in_channels, num_classes, norm
        As in the space.
    compose
        Returns the architecture of (stem, widths, mids).
    layout_of
        Returns an architecture's layout.

    Attributes
    ----------
    channels
        For every segment what its states mean to the next: the channels that it may hand on.
    sides
        For every segment the pixels a side of what it hands on.
    """

    def __init__(
        self,
        *,
        stems: Sequence[int],
        widths: Sequence[Sequence[int]],
        mids: Sequence[Sequence[Sequence[int]]],
        depths: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        in_channels: int,
        num_classes: int,
        norm: str,
        compose: Callable[[int, tuple[int, ...], tuple[tuple[int, ...], ...]], Architecture],
        layout_of: Callable[[Architecture], Layout],
    ) -> None:
        self._compose, self._layout_of = compose, layout_of
        self.channels = [tuple(stems), *map(tuple, widths)]
        self._strides = tuple(strides)
        self.sides = [image_size]
        for stride in strides:
            self.sides.append(math.ceil(self.sides[-1] / stride))
        self._io = in_channels, num_classes
        self._norm = norm
        segments = [
            Segment(
                name="stem",
                options=self.channels[0],
                leaves=np.arange(len(stems)),
                features=_of_width(self.channels[0]),
            )
        ]
        slots = 1 + max(depths)
        for s, (choices, by_width) in enumerate(zip(widths, mids, strict=True)):
            options = [
                (width, blocks)
                for width, allowed in zip(choices, by_width, strict=True)
                for depth in depths
                for blocks in itertools.product(allowed, repeat=1 + depth)
            ]
            ratios = np.array(
                [[m / width for m in blocks] + [0.0] * (slots - len(blocks))
                 for width, blocks in options]
            )  # fmt: skip
            segments.append(
                Segment(
                    name=f"stage{s}",
                    options=tuple(options),
                    leaves=np.array([self.channels[s + 1].index(width) for width, _ in options]),
                    features=np.concatenate(
                        [_of_slots(ratios), _of_width([w for w, _ in options])], axis=1
                    ),
                )
            )
        super().__init__(segments)

    def blocks(self, segment: int, state: int, option: int) -> tuple[Block, ...]:
        """Return the blocks of an option, given the channels of the segment before."""
        in_channels, classes = self._io
        chosen = self._segments[segment].options[option]
        if segment == 0:
            return (stem_block(in_channels, chosen, self.sides[0], self._norm),)
        stage = segment - 1
        width, mids = chosen
        blocks = stage_blocks(
            self.channels[stage][state],
            mids,
            width,
            self._strides[stage],
            self.sides[stage],
            self._norm,
        )
        if stage + 1 == len(self._strides):
            return *blocks, head_block(width, classes, self.sides[-1])
        return blocks

    def assemble(self, options: Sequence[int]) -> Architecture:
        """Return the architecture of one option a segment."""
        chosen = self.chosen(options)
        widths, mids = zip(*chosen[1:], strict=True)
        return self._compose(chosen[0], widths, mids)

    def locate(self, arch: Architecture) -> tuple[int, ...]:
        """Undo :meth:`assemble`."""
        layout = self._layout_of(arch)
        chosen = [layout.stem, *zip(layout.widths, layout.mids, strict=True)]
        return self.indices(chosen)


def _of_slots(ratios: np.ndarray) -> np.ndarray:
    """(options, slots) expand ratios, 0 for no block, to active flags, ratios and logarithms."""
    active = ratios > 0
    logs = np.log(np.where(active, ratios, 1.0))
    columns = [active[:, 1:], ratios, logs]  # the first slot is always active
    return np.concatenate(columns, axis=1).astype(float)


def _of_width(widths: Sequence[int]) -> np.ndarray:
    """(options, 2): share of the widest and its logarithm; nothing where there is one width."""
    if len(set(widths)) == 1:
        return np.empty((len(widths), 0))
    share = np.array(widths) / max(widths)
    return np.stack([share, np.log(share)], axis=1)
