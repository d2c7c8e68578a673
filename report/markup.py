"""Pieces of HTML from untrusted texts."""

import base64
from collections.abc import Sequence
from html import escape

from superfednas.common.words import one_line


def text_of(text: str) -> str:
    """Return a text as HTML that shows it on one line, whatever it contains."""
    return escape(one_line(text), quote=True)


def definitions(pairs: Sequence[tuple[str, str]]) -> str:
    """Return names and values as a list."""
    inner = "".join(f"<dt>{text_of(key)}</dt><dd>{text_of(value)}</dd>\n" for key, value in pairs)
    return f"<dl>\n{inner}</dl>"


def table(headings: Sequence[str], lines: Sequence[Sequence[str]], caption: str = "") -> str:
    """Return a table; the first cell of a line is its name."""
    head = "".join(f'<th scope="col">{text_of(heading)}</th>' for heading in headings)
    # bdi: a name with a right-to-left mark must not reverse the figures beside it.
    body = "".join(
        f"<tr><td><bdi>{text_of(first)}</bdi></td>"
        + "".join(f"<td>{text_of(cell)}</td>" for cell in rest)
        + "</tr>\n"
        for first, *rest in lines
    )
    said = f"<caption>{text_of(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide"><table>{said}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def image(plots: tuple[bytes, bytes], alt: str) -> str:
    """Return an embedded picture (PNG for light and for dark paper)."""
    light, dark = ("data:image/png;base64," + base64.b64encode(plot).decode() for plot in plots)
    return (
        '<figure><picture><source media="screen and (prefers-color-scheme: dark)" '
        f'srcset="{dark}"><img src="{light}" alt="{text_of(alt)}"></picture></figure>'
    )
