"""Common parts of all verbs: the application, its options, its output and its errors.

Slow imports (torch, Flower) are made in the verbs, so that ``--help`` is quick.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from rich.progress import Progress, TaskID
from typer.core import TyperCommand, TyperOption

from superfednas.common.imports import import_from
from superfednas.common.terminal import Terminal
from superfednas.common.trust import OPTION, give, trusting
from superfednas.common.words import one_line, printable_json

if TYPE_CHECKING:
    from superfednas.wire.order import SpaceOptions

LATEST = Path("latest")

app = typer.Typer(
    help="Train a supernet on Flower, and take from it the subnet that fits each device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
RunDir = Annotated[
    Path, typer.Option("--run", help="A run folder (the last line of a training), or latest.")
]
Arch = Annotated[str, typer.Option(help="largest, smallest, random:SEED or JSON.")]
OtherData = Annotated[str, typer.Option("--dataset", help="A data set other than the run's own.")]
SpaceName = Annotated[str, typer.Option(help="A name of `superfednas spaces`, or module:Class.")]
Norm = Annotated[str, typer.Option(help="group, none or batch.")]
NumClasses = Annotated[int, typer.Option(help="Classes.")]
InChannels = Annotated[int, typer.Option(help="Image channels.")]
TaskData = Annotated[
    str,
    typer.Option(
        "--dataset",
        help="The data set whose task the networks are for, as of `superfednas train`, in place of "
        "--num-classes, --in-channels and --image-size.",
    ),
]
ImageSize = Annotated[int, typer.Option(help="Image side in pixels.")]


def main() -> None:
    """Run the command; an error that the user can fix is one sentence and exit status 1."""
    # A user's own modules, named as module:Name, are in the current folder.
    import_from(Path.cwd())
    give(part for argument in sys.argv[1:] for part in (argument, argument.partition("=")[2]))
    try:
        app()
    except Exception as error:
        from superfednas.deploy.fleet.superlink import SuperLinkError
        from superfednas.flower.local_superlink import RunInProgressError
        from superfednas.server.app import USER_ERRORS

        if not isinstance(error, (*USER_ERRORS, RunInProgressError, SuperLinkError)):
            raise
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(1) from None


class OpeningCommand(TyperCommand):
    """A verb that opens files, which may name code: it has ``--trust-code``."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the verb's own options and this one."""
        option = TyperOption(
            param_decls=[OPTION],
            is_flag=True,
            help="Import the modules of a user's own that the run, the plan or the model file "
            "names; they are remembered until they change.",
            expose_value=False,
            callback=_trust,
        )
        *own, last = super().get_params(ctx)
        return [*own, option, last]


def _trust(ctx: click.Context, _option: click.Parameter, value: bool) -> bool:
    if value:
        ctx.with_resource(trusting())
    return value


def show(value: Any) -> None:
    """Print a value as JSON."""
    print(printable_json(value, indent=1))


def say(*lines: str) -> None:
    """Print lines at once, whatever they hold."""
    for line in lines:
        print(one_line(line), flush=True)


def space_options(
    space: str, norm: str, shape: tuple[int, int, int], dataset: str
) -> "SpaceOptions":
    """Return the options of a space for the task of a data set.

    Parameters
    ----------
    space, norm
        The space's name, and its norm.
    shape
        Classes, channels and side of images, where no data set is named.
    dataset
        Its name, or empty.

    Raises
    ------
    DataError
        If the data set cannot be read.
    """
    from superfednas.wire.order import SpaceOptions

    if not dataset:
        return SpaceOptions(space, norm, *shape)
    from superfednas.data import DataSettings, load_dataset

    return SpaceOptions(space, norm).of(load_dataset(DataSettings(dataset=dataset)).task, dataset)


class Display:
    """A progress bar for slow work: a ``superfednas.nas.pipeline.SearchProgress``."""

    def __init__(self, console: Terminal) -> None:
        self._console = console
        self._bar = Progress(console=console, transient=True)
        self._task: TaskID | None = None
        self._why = ""

    def __enter__(self) -> "Display":
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Remove the bar."""
        self._bar.stop()

    def measuring(self, done: int, todo: int, why: str) -> None:
        """Move the bar; without a terminal, print only its end."""
        if not self._console.is_terminal:
            if done == todo:
                self.note(f"{why}: {todo} of {todo}")
            return
        if self._task is None or why != self._why:
            self._task, self._why = self._bar.add_task(why), why
        self._bar.update(self._task, completed=done, total=todo)

    def note(self, text: str) -> None:
        """Say one sentence."""
        self._console.say(text)
