"""The terminal: a rich console that shows every text as it stands, whoever has written it."""

from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from superfednas.common.words import one_line


class Terminal(Console):
    """A console without markup and emoji codes, on which a text is one line.

    That holds for what is printed and for the cells, headings and titles of tables.

    Parameters
    ----------
    file
        Where to; by default standard output.
    stderr
        Standard error instead.
    width
        In characters; by default that of the terminal.
    """

    def __init__(
        self, file: TextIO | None = None, *, stderr: bool = False, width: int | None = None
    ) -> None:
        super().__init__(
            file=file, stderr=stderr, width=width, markup=False, emoji=False, highlight=False
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text without anything that moves the cursor; rich calls this for every text."""
        return super().render_str(one_line(text), **options)

    def say(self, text: str) -> None:
        """Print one line, never folded: others may read it."""
        self.print(text, soft_wrap=True)
