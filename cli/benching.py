"""The verb ``bench``."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from superfednas.cli.common import Json, app, say
from superfednas.common.terminal import Terminal

if TYPE_CHECKING:
    from superfednas.bench.figures import Effort


@app.command()
def bench(
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURE",
            help="Only this: merge, rounds, wire, training, gpu, search, growth or ray "
            "(repeatable).",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="More turns, and growth and ray: about 10 minutes.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few and small: shows that it runs, not how fast.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for bench.json and bench.md, created if missing.")
    ] = None,
    details: Annotated[
        bool,
        typer.Option(
            "--details",
            help="With one --only: its tables by size, cause and format, as Markdown "
            "(--full and --quick set how many).",
        ),
    ] = False,
    readme: Annotated[
        Path | None, typer.Option(help="Write the table between its two marks in this document.")
    ] = None,
    json_: Json = False,
) -> None:
    """Measure this system's own cost on this machine, in one to two minutes.

    Every figure is a ratio to something measured in the same call: the machine's own copy, a bare
    PyTorch loop, Flower's FedAvg. Unlike milliseconds, ratios can be compared between slow and fast
    machines. Missed targets of the project are marked. Leave the machine otherwise idle meanwhile.
    """
    import psutil

    from superfednas.bench.machine import machine
    from superfednas.bench.suite import chosen, take_apart
    from superfednas.bench.table import (
        LEGEND,
        markdown,
        ratio_text,
        section,
        to_json,
        write_section,
    )

    if full and quick:
        raise ValueError("--full and --quick exclude each other")
    effort: Effort = "full" if full else "quick" if quick else "normal"
    console = Terminal(stderr=True)
    names = chosen(effort, only or [])
    if details:
        _print_details(only or [], effort)
        return
    load = psutil.getloadavg()[0]
    if load > 0.5:
        console.say(
            f"warning: other work is running (load average {load:.1f}): ratios are less exact"
        )
    figures = []
    for number, name in enumerate(names, 1):
        with console.status(f"{name} ({number} of {len(names)})"):
            found = take_apart(name, effort)
        figures += found
        for figure in found:
            verdict = {True: "  ", False: "! ", None: "  "}[figure.kept]
            asked = f" (asked {figure.limit})" if figure.limit else ""
            line = f"{verdict}{figure.what}: {ratio_text(figure)}{asked} against {figure.against}"
            console.say(line)
    command = shlex.join(["superfednas", *sys.argv[1:]])
    where = {"command": command, **machine(), "load": f"{load:.1f}"}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "bench.json").write_text(to_json(where, figures), encoding="utf-8")
        (out / "bench.md").write_text(
            f"# What the system itself costs\n\n{section(where, figures)}\n", encoding="utf-8"
        )
    if readme is not None:
        write_section(readme, where, figures)
    if json_:
        sys.stdout.write(to_json(where, figures))
    else:
        say(*markdown(figures).splitlines(), "", LEGEND)
    if any(figure.failed for figure in figures):
        raise typer.Exit(1)


def _print_details(only: list[str], effort: "Effort") -> None:
    from superfednas.bench.details import details
    from superfednas.bench.machine import describe

    if len(only) != 1:
        raise ValueError("--details: name one measure by --only")
    lines = details(only[0], effort)
    say(describe(), *lines)
