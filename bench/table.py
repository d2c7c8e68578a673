"""Figures as JSON and as Markdown, and the README's table, which is generated from them."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from superfednas.bench.figures import Figure

BEGIN = "<!-- figures: made by `superfednas bench --readme`; do not edit -->"
END = "<!-- figures end -->"
LEGEND = (
    "A ratio is ours over the other's. Of speeds more is better; where it says bytes, memory, time "
    "or bookkeeping, less is."
)


def ratio_text(figure: Figure) -> str:
    """Return a ratio with the digits that count, or a dash."""
    if figure.ratio is None:
        return "–"
    if figure.ratio >= 100:
        return f"{figure.ratio:,.0f}"
    return f"{figure.ratio:.3f}" if figure.ratio < 2 else f"{figure.ratio:.1f}"


def markdown(figures: Sequence[Figure]) -> str:
    """Lay figures out as one table."""
    lines = ["| what | ratio | asked | ours | against | its |", "|---|---|---|---|---|---|"]
    for figure in figures:
        ratio = ratio_text(figure)
        if figure.kept is False:
            ratio += " (missed)"
        cells = (figure.what, ratio, figure.limit, figure.ours, figure.against, figure.other)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def to_json(where: Mapping[str, str], figures: Sequence[Figure]) -> str:
    """Return the conditions and all figures as JSON."""
    rows = [dataclasses.asdict(figure) for figure in figures]
    return json.dumps({**where, "figures": rows}, indent=1, ensure_ascii=False) + "\n"


def from_json(text: str) -> tuple[dict[str, str], list[Figure]]:
    """Undo :func:`to_json`."""
    where = json.loads(text)
    return where, [Figure(**row) for row in where.pop("figures")]


def section(where: Mapping[str, str], figures: Sequence[Figure]) -> str:
    """Return a README's section: the table and its conditions."""
    said = f"`{where['command']}` on {where['machine']}; {where['versions']}; {where['date']}."
    return f"{BEGIN}\n{markdown(figures)}\n\n{LEGEND} {said}\n{END}"


def write_section(path: Path, where: Mapping[str, str], figures: Sequence[Figure]) -> None:
    """Write the section between its two marks in a document.

    Raises
    ------
    ValueError
        If the document does not have both marks, once each and in order.
    """
    text = path.read_text(encoding="utf-8")
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended or BEGIN in after or END in after:
        raise ValueError(f"{path}: must have the lines {BEGIN!r} and {END!r}, once each")
    path.write_text(before + section(where, figures) + after, encoding="utf-8")
