"""Labels of points, each placed where it covers the least."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from superfednas.report.canvas import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP = 7.0  # points between a name and its point
_REACHES = (1, 3, 6)  # times that distance for a needed name, if it covers less there
# Below, above, right, left, then the corners: x and y from -1 to 1.
_PLACES = [(0, -1), (0, 1), (1, 0), (-1, 0), (1, -1), (-1, -1), (1, 1), (-1, 1)]
_SIDES = {-1: "right", 0: "center", 1: "left"}
_LEVELS = {-1: "top", 0: "center", 1: "bottom"}
_MARK = 8.0  # pixels from the centre of a marker to its edge
_HIT = 1000.0  # covering another name, or leaving the axes, is worse than covering any points


@dataclass(frozen=True)
class Label:
    """A label of a point.

    Parameters
    ----------
    text
        The name.
    x, y
        The point, in data coordinates.
    colour
        Of the text.
    needed
        Whether it is drawn even if it must cover another.
    above
        Whether the place above is tried first.
    """

    text: str
    x: float
    y: float
    colour: str
    needed: bool = False
    above: bool = False


def place(axes: "Axes", labels: Sequence[Label], covered: np.ndarray, theme: Theme) -> None:
    """Write labels where they cover the least; drop labels that would cover another.

    Axes must have their final limits. Earlier labels choose first.

    Parameters
    ----------
    axes
        Where.
    labels
        What to write.
    covered
        (points, 2) in data coordinates: markers and points of lines that should stay visible.
    theme
        Gives the halo of the texts.
    """
    from matplotlib.patheffects import withStroke

    figure: Any = axes.figure
    figure.draw_without_rendering()  # fixes the position of the axes
    points = axes.transData.transform(covered)
    inside = np.array(axes.get_window_extent().extents)
    taken: list[np.ndarray] = []
    for label in labels:
        places = [_PLACES[1], _PLACES[0], *_PLACES[2:]] if label.above else _PLACES
        text: Any = axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(0, 0),
            textcoords="offset points",
            color=label.colour,
            fontsize=9,
            parse_math=False,
            path_effects=[withStroke(linewidth=2.5, foreground=theme.paper)],
            in_layout=False,
        )
        reaches = _REACHES if label.needed else _REACHES[:1]
        found = []
        for reach, (x, y) in itertools.product(reaches, places):
            style = {
                "position": (x * reach * _GAP, y * reach * _GAP),
                "ha": _SIDES[x],
                "va": _LEVELS[y],
            }
            text.set(**style)
            box = np.array(text.get_window_extent().extents)
            found.append((_penalty(box, taken, points, inside), box, style, reach))
        penalty, box, style, reach = min(found, key=lambda one: one[0])  # the first of equals
        if penalty >= _HIT and not label.needed:
            text.remove()
            continue
        text.set(**style)
        taken.append(box)
        if reach > 1:
            _lead(axes, label, style["position"])


def _lead(axes: "Axes", label: Label, position: Any) -> None:
    """Draw a line from a point to a label at a distance."""
    axes.annotate(
        "",
        (label.x, label.y),
        xytext=position,
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.8, "shrinkA": 0},
        in_layout=False,
    )


def _penalty(
    box: np.ndarray, taken: Sequence[np.ndarray], points: np.ndarray, inside: np.ndarray
) -> float:
    """Count what a box (left, bottom, right, top; pixels) covers."""
    outside = (box[:2] < inside[:2]).any() or (box[2:] > inside[2:]).any()
    hits = sum(bool((box[:2] < b[2:]).all() and (b[:2] < box[2:]).all()) for b in taken)
    hidden = ((points > box[:2] - _MARK) & (points < box[2:] + _MARK)).all(axis=1).sum()
    return float(_HIT * (hits + outside) + hidden)
