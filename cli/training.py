"""Verbs around training: train, evaluate, report, stop."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from superfednas.cli.common import (
    LATEST,
    Arch,
    Json,
    OpeningCommand,
    OtherData,
    RunDir,
    app,
    say,
    show,
)
from superfednas.common.terminal import Terminal

_NAMES = {"from-run": ("--from", "--from-run")}
# The verbs `score` and `personalise` have these.
_ELSEWHERE = (
    *("score-run", "score-subnets", "personalise-run", "personal-subnets"),
    *("fine-tune", "fine-tune-epochs", "fine-tune-lr"),
)
_PANELS = {
    "space": "Search space",
    "local": "Local training",
    "subnets": "Subnets that clients train",
    "tuning": "Personalisation",
    "privacy": "Privacy",
    "data": "Data",
}


def train(json_: bool, workers: int, **given: Any) -> None:
    """Train a supernet in this process, without Ray or gRPC.

    The run folder's path is the last line printed. --resume DIR resumes an interrupted run.

    The same settings are the run-config of `flwr run . --run-config "rounds=200 seed=1"`.
    """
    import superfednas
    from superfednas.records.lines import as_json
    from superfednas.records.rows import SummaryRow, last_test, of_kind
    from superfednas.server.journal.progress import LiveProgress, Progress

    settings = {key: value for key, value in given.items() if value is not None}
    if settings.get("resume") and len(settings) > 1:
        others = ", ".join("--" + key.replace("_", "-") for key in settings if key != "resume")
        raise ValueError(f"--resume goes on with the run's own settings; leave out {others}")
    console = Terminal(stderr=json_)
    live = console.is_terminal
    progress = LiveProgress(console) if live else Progress(console)
    run = superfednas.train(progress=progress, workers=workers, **settings)
    if json_:
        rows = run.rows()
        test, (summary, *_) = last_test(rows), of_kind(rows, SummaryRow)
        show(
            {
                "run": str(run.path),
                "test": None if test is None else as_json(test)["ladder"],
                "summary": as_json(summary),
            }
        )


def _with_settings(function: Any) -> Any:
    """Give ``train`` one option per setting, with its default and the allowed values."""
    from superfednas.common.settings import settings_of
    from superfednas.server.settings import Settings

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
                typer.Option(min=1, help="Clients trained in parallel; the result is the same."),
            ],
        ),
    ]
    for key, setting in settings_of(Settings).items():
        if key in _ELSEWHERE:
            continue
        default = "" if setting.default == "" else f" (default: {setting.default})"
        unsaid = [choice for choice in setting.choices or () if choice not in setting.help]
        choices = f": {', '.join(setting.choices or ())}" if unsaid else ""
        flag = f"--{key}/--no-{key}" if setting.kind is bool else f"--{key}"
        option = typer.Option(
            *_NAMES.get(key, (flag,)),
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


app.command(cls=OpeningCommand)(_with_settings(train))


@app.command(cls=OpeningCommand)
def evaluate(
    arch: Arch,
    run: RunDir = LATEST,
    split: Annotated[
        str, typer.Option(help="validation, or test (for final figures, not for choosing).")
    ] = "validation",
    dataset: OtherData = "",
    json_: Json = False,
) -> None:
    """Measure one subnet of a trained supernet, without retraining."""
    import superfednas
    from superfednas.common.words import counted
    from superfednas.records.trained import Trained

    trained = Trained.open(run, dataset)
    found = superfednas.evaluate(trained, arch, split=split)
    space, metrics = trained.space, trained.space.task.metrics
    architecture = space.parse(arch)
    answer = {
        **found.row(metrics),
        "split": split,
        "trained_rounds": trained.rounds,
        "architecture": json.loads(architecture.to_json()),
        "macs": space.macs(architecture),
        "params": space.params(architecture),
    }
    if json_:
        show(answer)
    else:
        say(
            f"{split} {', '.join(f'{m.name} {m.say(found.value(m))}' for m in metrics)} on "
            f"{found.examples:,} examples after {answer['trained_rounds']} rounds",
            f"{counted(answer['macs'], 'MACs')}, {answer['params']:,} parameters",
            architecture.to_json(),
        )


@app.command(cls=OpeningCommand)
def report(
    run: RunDir = LATEST,
    out: Annotated[Path | None, typer.Option(help="Where to write; by default RUN/report.")] = None,
    json_: Json = False,
) -> None:
    """Draw a run: its metric over rounds and against MACs, and one HTML page."""
    from superfednas.records.folder import RunFolder
    from superfednas.report import write_report

    written = write_report(RunFolder.open(run), out)
    if json_:
        show({key: str(path) for key, path in written.items()})
    else:
        for path in written.values():
            say(str(path))


@app.command()
def stop(
    force: Annotated[bool, typer.Option(help="Even while a run is in progress.")] = False,
    json_: Json = False,
) -> None:
    """Stop the local SuperLink that `flwr run .` leaves running in the background."""
    from superfednas.flower.local_superlink import stop as stop_superlink

    ended = stop_superlink(force=force)
    if json_:
        show({"stopped": ended})
    elif ended:
        say(f"stopped the local SuperLink (process {', '.join(map(str, ended))})")
    else:
        say("no local SuperLink is running")
