"""What all verbs share: the application, its options, how it prints and how it fails.

What takes seconds to import (torch, Flower) is imported in the verbs, so that ``--help`` is quick.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

LATEST = Path("latest")

app = typer.Typer(
    help="Train a supernet on Flower, and take from it the subnet that fits each device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of text.")]
RunDir = Annotated[
    Path, typer.Option("--run", help="A run folder (the last line of a training), or latest.")
]
Arch = Annotated[str, typer.Option(help="largest, smallest, random:SEED or JSON.")]
OtherData = Annotated[str, typer.Option("--dataset", help="Another data set than the run's own.")]
SpaceName = Annotated[str, typer.Option(help="A name of `superfednas spaces`, or module:Class.")]
Norm = Annotated[str, typer.Option(help="group, none or batch.")]
NumClasses = Annotated[int, typer.Option(help="Classes.")]
InChannels = Annotated[int, typer.Option(help="Image channels.")]
ImageSize = Annotated[int, typer.Option(help="Image side in pixels.")]


def main() -> None:
    """Run the command; what a user can mend is one sentence and exit status 1."""
    sys.path.insert(0, "")  # a user's own modules, named as module:Name, lie in the current folder
    try:
        app()
    except Exception as error:
        from deploy.local_superlink import RunInProgressError
        from deploy.superlink import SuperLinkError
        from server.app import USER_ERRORS

        if not isinstance(error, (*USER_ERRORS, RunInProgressError, SuperLinkError)):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def show(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


class Display:
    """A bar while something takes its time: a ``nas.planner.SearchProgress``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(console=console, transient=True)
        self._task: TaskID | None = None
        self._why = ""

    def __enter__(self) -> "Display":
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Take the bar away."""
        self._bar.stop()

    def measuring(self, done: int, todo: int, why: str) -> None:
        """Move the bar; where output is no terminal, only say where it ends."""
        if not self._console.is_terminal:
            if done == todo:
                self.note(f"{why}: {todo} of {todo}")
            return
        if self._task is None or why != self._why:
            self._task, self._why = self._bar.add_task(why), why
        self._bar.update(self._task, completed=done, total=todo)

    def note(self, text: str) -> None:
        """Say one sentence."""
        self._console.print(text, markup=False, soft_wrap=True)
