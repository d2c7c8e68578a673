"""Verbs around training: train, evaluate, report, stop."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cli.common import LATEST, Arch, Json, OtherData, RunDir, app, show

_NAMES = {"from-run": ("--from", "--from-run")}
# The verbs `score` and `personalise` have them.
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
        show(
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


app.command()(_with_settings(train))


@app.command()
def evaluate(
    arch: Arch,
    run: RunDir = LATEST,
    split: Annotated[
        str, typer.Option(help="validation, or test (for final figures, not for choosing).")
    ] = "validation",
    dataset: OtherData = "",
    json_: Json = False,
) -> None:
    """Measure the accuracy of one subnet of a trained supernet, without retraining."""
    import superfednas
    from deploy.trained import Trained

    trained = Trained.open(run, dataset)
    found = superfednas.evaluate(trained, arch, split=split)
    space = trained.space
    architecture = space.parse(arch)
    answer = {
        "accuracy": found.accuracy,
        "loss": found.loss,
        "examples": found.examples,
        "split": split,
        "trained_rounds": trained.rounds,
        "architecture": json.loads(architecture.to_json()),
        "macs": space.macs(architecture),
        "params": space.params(architecture),
    }
    if json_:
        show(answer)
    else:
        print(
            f"{split} accuracy {found.accuracy:.2%} (loss {found.loss:.3f}, {found.examples} "
            f"images) after {answer['trained_rounds']} rounds\n"
            f"{answer['macs'] / 1e6:.2f} MMACs, {answer['params']:,} parameters\n"
            f"{architecture.to_json()}"
        )


@app.command()
def report(
    run: RunDir = LATEST,
    out: Annotated[Path | None, typer.Option(help="Where to write; by default RUN/report.")] = None,
    json_: Json = False,
) -> None:
    """Draw a run: accuracy over rounds, accuracy against MACs, and one HTML page."""
    from report import write_report
    from server.run_folder import RunFolder

    written = write_report(RunFolder.open(run), out)
    if json_:
        show({key: str(path) for key, path in written.items()})
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
        show({"stopped": ended})
    elif ended:
        print(f"stopped the local SuperLink (process {', '.join(map(str, ended))})")
    else:
        print("no local SuperLink is running")
