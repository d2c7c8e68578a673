"""The ``superfednas`` command: parses, calls, prints.

What takes seconds to import (torch, Flower) is imported in the verbs, so that ``--help`` is quick.
"""

import dataclasses
import inspect
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    help="Train a supernet on Flower, and take from it the subnet that fits each device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of text.")]
RunDir = Annotated[Path, typer.Option("--run", help="A run folder (the last line of a training).")]
Norm = Annotated[str, typer.Option(help="group, none or batch.")]
NumClasses = Annotated[int, typer.Option(help="Classes.")]
InChannels = Annotated[int, typer.Option(help="Image channels.")]
ImageSize = Annotated[int, typer.Option(help="Image side in pixels.")]
_NAMES = {"from-run": ("--from", "--from-run")}
_PANELS = {
    "space": "Search space",
    "local": "Local training",
    "data": "Data",
}


def main() -> None:
    """Run the command; what a user can mend is one sentence and exit status 1."""
    sys.path.insert(0, "")  # a user's own modules, named as module:Name, lie in the current folder
    try:
        app()
    except Exception as error:
        from deploy.local_superlink import RunInProgressError
        from server.app import USER_ERRORS

        if not isinstance(error, (*USER_ERRORS, RunInProgressError)):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _show(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def train(json_: bool, workers: int, **given: Any) -> None:
    """Train a supernet in this process, without Ray or gRPC.

    The run folder's path is the last line printed. An interrupted run goes on by --resume DIR.

    The same settings are the run-config of `flwr run . --run-config "rounds=200 seed=1"`.
    """
    import superfednas
    from server.progress import LiveProgress, Progress

    settings = {key: value for key, value in given.items() if value is not None}
    if settings.get("resume") and len(settings) > 1:
        others = ", ".join("--" + key.replace("_", "-") for key in settings if key != "resume")
        raise ValueError(f"--resume goes on with the run's own settings; leave out {others}")
    console = Console(stderr=json_, highlight=False)
    live = console.is_terminal
    progress = LiveProgress(console) if live else Progress(console)
    run = superfednas.train(progress=progress, workers=workers, **settings)
    if json_:
        rows = run.rows()
        _show(
            {
                "run": str(run.path),
                "test": next((r["ladder"] for r in rows if r["kind"] == "test"), None),
                "summary": next(r for r in rows if r["kind"] == "summary"),
            }
        )


def _with_settings(function: Any) -> Any:
    """Give ``train`` one option for every setting, with its default and what is allowed."""
    from server.settings import Settings
    from supernet.config import settings_of

    panels: dict[str, str] = {}
    for field in dataclasses.fields(Settings):
        if field.name in _PANELS:
            kind = field.default_factory
            panels |= dict.fromkeys(settings_of(kind), _PANELS[field.name])  # type: ignore[arg-type]
    parameters = [
        inspect.Parameter("json_", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json),
        inspect.Parameter(
            "workers",
            inspect.Parameter.KEYWORD_ONLY,
            default=1,
            annotation=Annotated[
                int,
                typer.Option(min=1, help="Clients trained at a time; the result is the same."),
            ],
        ),
    ]
    for key, setting in settings_of(Settings).items():
        default = "" if setting.default == "" else f" (default: {setting.default})"
        unsaid = [choice for choice in setting.choices or () if choice not in setting.help]
        choices = f": {', '.join(setting.choices or ())}" if unsaid else ""
        option = typer.Option(
            *_NAMES.get(key, (f"--{key}",)),
            help=setting.help + choices + default,
            rich_help_panel=panels.get(key, "Run"),
            show_default=False,
        )
        parameters.append(
            inspect.Parameter(
                key.replace("-", "_"),
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[setting.kind | None, option],
            )
        )
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


app.command()(_with_settings(train))


@app.command()
def evaluate(
    run: RunDir,
    arch: Annotated[str, typer.Option(help="largest, smallest, random:SEED or JSON.")],
    split: Annotated[
        str, typer.Option(help="validation, or test (for final figures, not for choosing).")
    ] = "validation",
    dataset: Annotated[str, typer.Option(help="Another data set than the run's own.")] = "",
    json_: Json = False,
) -> None:
    """Measure the accuracy of one subnet of a trained supernet, without retraining."""
    import superfednas
    from server.run_folder import RunFolder

    found = superfednas.evaluate(run, arch, split=split, dataset=dataset)
    opened = RunFolder.open(run)
    space = superfednas.run_space(opened)
    architecture = space.parse(arch)
    answer = {
        "accuracy": found.accuracy,
        "loss": found.loss,
        "examples": found.examples,
        "split": split,
        "trained_rounds": opened.info["round"],
        "architecture": json.loads(architecture.to_json()),
        "macs": space.macs(architecture),
        "params": space.params(architecture),
    }
    if json_:
        _show(answer)
    else:
        print(
            f"{split} accuracy {found.accuracy:.2%} (loss {found.loss:.3f}, {found.examples} "
            f"images) after {answer['trained_rounds']} rounds\n"
            f"{answer['macs'] / 1e6:.2f} MMACs, {answer['params']:,} parameters\n"
            f"{architecture.to_json()}"
        )


@app.command()
def spaces(
    check: Annotated[
        str, typer.Option(metavar="MODULE:CLASS", help="Check a space of your own, or a name.")
    ] = "",
    norm: Norm = "group",
    num_classes: NumClasses = 10,
    in_channels: InChannels = 3,
    image_size: ImageSize = 32,
    json_: Json = False,
) -> None:
    """List the search spaces, or check that one keeps the contract."""
    from supernet import SPACES, load_space
    from supernet.check import check_space

    options: dict[str, Any] = {
        "norm": norm,
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": image_size,
    }
    if check:
        results = check_space(load_space(check, **options))
        broken = [result for result in results if result.problem]
        if json_:
            _show([dataclasses.asdict(result) for result in results])
        else:
            for result in results:
                print(f"{'FAILS' if result.problem else 'holds'}  {result.promise}")
                if result.problem:
                    print(f"       {result.problem}")
        raise typer.Exit(1 if broken else 0)
    table = Table("space", "subnets", "MMACs", "parameters", "what it is")
    rows = []
    for name, family in sorted(SPACES.items()):
        space = load_space(name, **options)
        ends = (space.smallest, space.largest)
        macs, params = [space.macs(a) for a in ends], [space.params(a) for a in ends]
        about = (inspect.getdoc(family) or "").splitlines()[0]
        rows.append({"name": name, "size": space.size, "macs": macs, "params": params})
        table.add_row(
            name,
            f"{space.size:,}",
            f"{macs[0] / 1e6:.2f} to {macs[1] / 1e6:.2f}",
            f"{params[0]:,} to {params[1]:,}",
            about,
        )
    if json_:
        _show(rows)
    else:
        Console(highlight=False).print(table)


@app.command()
def cost(
    space: Annotated[str, typer.Option(help="A name of `superfednas spaces`, or module:Class.")],
    arch: Annotated[str, typer.Option(help="largest, smallest, random:SEED or JSON.")],
    norm: Norm = "group",
    num_classes: NumClasses = 10,
    in_channels: InChannels = 3,
    image_size: ImageSize = 32,
    json_: Json = False,
) -> None:
    """Count MACs (of one image) and parameters of an architecture, with no module built."""
    from supernet import load_space

    loaded = load_space(
        space, norm=norm, num_classes=num_classes, in_channels=in_channels, image_size=image_size
    )
    architecture = loaded.parse(arch)
    macs, params = loaded.macs(architecture), loaded.params(architecture)
    if json_:
        _show(
            {
                "macs": macs,
                "params": params,
                "architecture": json.loads(architecture.to_json()),
                "space": space,
                "norm": norm,
            }
        )
    else:
        print(f"{macs:,} MACs, {params:,} parameters\n{architecture.to_json()}")


@app.command()
def report(
    run: RunDir,
    out: Annotated[Path | None, typer.Option(help="Where to write; by default RUN/report.")] = None,
    json_: Json = False,
) -> None:
    """Draw a run: accuracy over rounds, accuracy against MACs, and one HTML page."""
    from report import write_report
    from server.run_folder import RunFolder

    written = write_report(RunFolder.open(run), out)
    if json_:
        _show({key: str(path) for key, path in written.items()})
    else:
        for path in written.values():
            print(path)


@app.command()
def stop(
    force: Annotated[bool, typer.Option(help="Also while a run is going on.")] = False,
    json_: Json = False,
) -> None:
    """End the local SuperLink that `flwr run .` leaves running in the background."""
    from deploy.local_superlink import stop as stop_superlink

    ended = stop_superlink(force=force)
    if json_:
        _show({"stopped": ended})
    elif ended:
        print(f"stopped the local SuperLink (process {', '.join(map(str, ended))})")
    else:
        print("no local SuperLink is running")


if __name__ == "__main__":
    main()
