"""The verb ``bench``."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli.common import Json, app


@app.command()
def bench(
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURE",
            help="Only this: merge, rounds, wire, training, gpu, search, growth or ray "
            "(may be given several times).",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="More turns, and growth and ray: about 10 minutes.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small and few: shows that it runs, not how fast.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for bench.json and bench.md, made if missing.")
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(help="Write the table between its two marks in this document.")
    ] = None,
    json_: Json = False,
) -> None:
    """Measure this system's own cost on this machine, in one to two minutes.

    Every figure is a ratio to something measured in the same call: the machine's
    own copy, a bare PyTorch loop, Flower's FedAvg. So a slow and a fast machine
    can be compared, which milliseconds cannot. What the project asks of itself is
    marked where it is missed. Leave the machine alone meanwhile.
    """
    import psutil

    from bench.figures import Effort
    from bench.machine import machine
    from bench.suite import chosen, take_apart
    from bench.table import LEGEND, markdown, ratio_text, section, to_json, write_section

    if full and quick:
        raise ValueError("--full and --quick exclude each other")
    effort: Effort = "full" if full else "quick" if quick else "normal"
    console = Console(stderr=True, highlight=False)
    names = chosen(effort, only or [])
    load = psutil.getloadavg()[0]
    if load > 0.5:
        console.print(
            f"warning: other work is running (load average {load:.1f}): ratios are less exact",
            markup=False,
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
            console.print(line, markup=False, soft_wrap=True)
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
        print(f"{markdown(figures)}\n\n{LEGEND}")
    if any(figure.failed for figure in figures):
        raise typer.Exit(1)
