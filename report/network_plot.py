"""The drawing of a network: its blocks from the image to the classes, as wide as their channels."""

import itertools
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from superfednas.nas.plan import Plan
from superfednas.report.canvas import Theme, head, new_figure
from superfednas.report.searches import costs_of
from superfednas.supernet import Architecture, SearchSpace, Shape, load_space
from superfednas.supernet.chain import Block, Chain
from superfednas.supernet.families.resnet.family import ResNetFamily
from superfednas.tasks.images import Images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Widths, in columns: of a block's box, of what stands at the ends, of a gap behind a stage.
_BLOCK, _END, _GAP = 0.8, 0.4, 0.4
_LABEL = 1.8  # the least that a stage's label needs, the gap apart
_MOST_COLUMNS = 20.0  # more are too narrow for it
_LEAST = 0.012  # of the height: what is lower would not be seen
_LABELS = -0.56  # of the height: where the stages' labels begin
_MOST_LINES = 24
_CHARACTERS = 110


@dataclass(frozen=True)
class Stage:
    """One segment of a chain, as it is drawn.

    Parameters
    ----------
    name
        The segment's.
    channels
        What each of its blocks hands on.
    mids
        Middle channels of each block; None where the family does not tell.
    missing
        Blocks that the largest network has here beyond these.
    most
        Channels that the largest network hands on here.
    pixels
        Shape of what it hands on, without the channels.
    macs
        Of all its blocks.
    """

    name: str
    channels: tuple[int, ...]
    mids: tuple[int | None, ...]
    missing: int
    most: int
    pixels: Shape
    macs: int

    @property
    def width(self) -> float:
        """Columns that it needs: one a block, missing ones too, or room for its label."""
        return max(float(len(self.channels) + self.missing), _LABEL) + _GAP


def walk(chain: Chain, arch: Architecture) -> list[tuple[Block, ...]]:
    """Return the blocks of each segment of a network."""
    state, found = 0, []
    for number, option in enumerate(chain.locate(arch)):
        found.append(chain.blocks(number, state, option))
        state = int(chain.segments[number].leaves[option])
    return found


def stages_of(space: SearchSpace, chain: Chain, arch: Architecture) -> tuple[Stage, ...]:
    """Return what there is to draw; the last block answers the classes and is no stage's."""
    largest = [_handed_on(blocks) for blocks in _with_next(walk(chain, space.largest))]
    mids = _mids(space, arch)
    stages = []
    for number, blocks in enumerate(_with_next(walk(chain, arch))):
        shapes = _handed_on(blocks)
        if not shapes:  # a segment of the last block alone
            continue
        stages.append(
            Stage(
                name=chain.segments[number].name,
                channels=tuple(shape[0] for shape in shapes),
                mids=mids[number] if mids else (None,) * len(shapes),
                missing=max(0, len(largest[number]) - len(shapes)),
                most=largest[number][-1][0] if largest[number] else shapes[-1][0],
                pixels=shapes[-1][1:],
                macs=sum(block.macs for block, _ in blocks),
            )
        )
    return tuple(stages)


def _with_next(segments: Sequence[Sequence[Block]]) -> list[list[tuple[Block, Block]]]:
    """Pair every block but the last with the one that reads what it hands on."""
    placed = [(number, block) for number, blocks in enumerate(segments) for block in blocks]
    pairs: list[list[tuple[Block, Block]]] = [[] for _ in segments]
    for (number, block), (_, after) in itertools.pairwise(placed):
        pairs[number].append((block, after))
    return pairs


def _handed_on(pairs: Sequence[tuple[Block, Block]]) -> list[Shape]:
    return [after.inputs for _, after in pairs]


def _mids(space: SearchSpace, arch: Architecture) -> list[tuple[int | None, ...]]:
    """Return the middle channels of each segment's blocks; the stem has none."""
    if not isinstance(space, ResNetFamily):
        return []
    return [(None,), *space.layout(arch).mids]


def network_plot(plan: Plan, theme: Theme) -> "Figure":
    """Draw the chosen subnet of a plan.

    A chain is drawn as boxes. Where that is too long, or the space is no chain, the blocks are
    listed.

    Raises
    ------
    ValueError
        Where the space cannot be loaded, or the subnet is not one of it.
    """
    options = dict(plan.space)
    name = options.pop("space")
    space = load_space(name, **options)
    arch, chain = space.parse(plan.chosen.text), space.chain
    stages = () if chain is None else stages_of(space, chain, arch)
    columns = 2 * _LABEL + _GAP + sum(stage.width for stage in stages)
    title = f"{name}: the chosen subnet"
    if stages and columns <= _MOST_COLUMNS:
        figure = new_figure(theme, height=4.6)
        axes = figure.subplots()
        head(axes, title, _caption(stages), theme)
        _Boxes(axes, theme, space, plan.chosen.costs["macs"]).draw(stages)
    else:
        blocks = space.blocks(arch) if chain is None else itertools.chain(*walk(chain, arch))
        lines = _listed(blocks)
        figure = new_figure(theme, height=1.4 + 0.155 * len(lines))
        axes = figure.subplots()
        head(axes, title, "its blocks, from the input on", theme)
        style: dict[str, Any] = {"va": "top", "color": theme.ink, "fontsize": 9}
        style |= {"transform": axes.transAxes, "parse_math": False}
        axes.text(0, 1, "\n".join(lines), **style)
    axes.set_axis_off()
    axes.annotate(
        costs_of(plan, plan.chosen, "  ·  "),
        (0, 0),
        xycoords="axes fraction",
        xytext=(0, -10),
        textcoords="offset points",
        va="top",
        color=theme.ink,
        fontsize=10,
    )
    return figure


def _caption(stages: Sequence[Stage]) -> str:
    said = "height: channels handed on"
    if any(mid is not None for stage in stages for mid in stage.mids):
        said += "; filled, with the number above: middle channels"
    if any(stage.missing for stage in stages):
        said += "; dashed: blocks of the largest that this one leaves out"
    return said


class _Boxes:
    """Draws stages from the left to the right, centred on a line from the image to the classes."""

    def __init__(self, axes: "Axes", theme: Theme, space: SearchSpace, macs: float) -> None:
        self.axes, self.theme, self.space, self.macs = axes, theme, space, macs

    def draw(self, stages: Sequence[Stage]) -> None:
        """Draw all."""
        axes, space = self.axes, self.space
        inner = [n or 0 for stage in stages for n in (*stage.channels, *stage.mids)]
        (name, field), answers = next(iter(space.task.inputs.items())), space.task.answer[0]
        read = field.shape[0] if field.shape else 1
        self.unit = 1 / max(read, answers, *inner)
        if isinstance(space.task, Images):
            name, size = "image", field.shape[-1]
            shape = f"{f'{read} channels' if read > 1 else '1 channel'}\n{size}×{size}"
        else:
            shape = "×".join(map(str, field.shape)) or "1"
        self._box(0, _END, read)
        self._text(0, _LABELS, f"{name}\n{shape}", va="top")
        x = _LABEL + _GAP
        for stage in stages:
            for number, (channels, mid) in enumerate(zip(stage.channels, stage.mids, strict=True)):
                self._box(x + number, _BLOCK, channels, mid)
            for number in range(len(stage.channels), len(stage.channels) + stage.missing):
                self._box(x + number, _BLOCK, stage.channels[-1], missing=True)
            self._text(x, _LABELS, self._said(stage), va="top")
            x += stage.width
        self._box(x, _END, answers)
        numbers = "classes" if isinstance(space.task, Images) else "numbers"
        self._text(x, _LABELS, f"head\n{answers} {numbers}", va="top")
        axes.plot([0, x], [0, 0], color=self.theme.muted, linewidth=1, zorder=0)
        axes.set_xlim(-0.05, x + _LABEL)
        axes.set_ylim(-0.92, 0.6)

    def _said(self, stage: Stage) -> str:
        channels = stage.channels[-1]
        lines = [stage.name, f"{channels:,} channels"]
        if stage.most != channels:
            lines.append(f"of {stage.most:,}")
        if stage.pixels:
            lines.append("×".join(map(str, stage.pixels)))
        return "\n".join([*lines, f"MACs {stage.macs / self.macs:.1%}"])

    def _box(
        self,
        x: float,
        width: float,
        channels: int,
        mid: int | None = None,
        *,
        missing: bool = False,
    ) -> None:
        from matplotlib.patches import Rectangle

        def add(height: float, **style: Any) -> None:
            height = max(height, _LEAST)
            self.axes.add_patch(Rectangle((x, -height / 2), width, height, **style))

        theme = self.theme
        if missing:
            style = {"facecolor": "none", "linestyle": (0, (3, 3)), "alpha": 0.6}
            add(channels * self.unit, edgecolor=theme.muted, **style)
            return
        add(channels * self.unit, facecolor=theme.faint, edgecolor=theme.muted, linewidth=1)
        if mid is not None:
            add(mid * self.unit, facecolor=theme.line)
            top = max(channels * self.unit, mid * self.unit, _LEAST) / 2
            style = {"ha": "center", "va": "bottom", "color": theme.line}
            self._text(x + width / 2, top + 0.015, f"{mid:,}", **style)

    def _text(self, x: float, y: float, text: str, **style: Any) -> None:
        style.setdefault("color", self.theme.ink)
        self.axes.text(x, y, text, fontsize=9, parse_math=False, **style)


def _listed(blocks: Iterable[Block]) -> list[str]:
    """Say each block in a line or more."""
    lines: list[str] = []
    for block in blocks:
        reads = "×".join(map(str, block.inputs))
        said = f"{block.name}: reads {reads}, {block.macs:,} MACs, {block.params:,} parameters"
        lines += textwrap.wrap(said, _CHARACTERS, subsequent_indent="    ")
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], f"and {len(lines) - _MOST_LINES + 1} lines more"]
    return lines
