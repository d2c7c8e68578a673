"""Verbs that bring a subnet to a device: export, pictures, classify."""

from pathlib import Path
from typing import Annotated

import typer

from superfednas.cli.common import (
    LATEST,
    Json,
    OpeningCommand,
    OtherData,
    RunDir,
    app,
    say,
    show,
)
from superfednas.cli.limits import LimitedCommand, limits_of


def _menu(file: Path) -> str:
    from superfednas.deploy.device.elastic import ElasticModel
    from superfednas.nas.cost.cost import COSTS

    macs = sorted(int(entry["macs"]) for entry in ElasticModel.load(file).card.menu)
    return f"{len(macs)} subnets, {COSTS['macs'].say(macs[0])} to {COSTS['macs'].say(macs[-1])}"


@app.command(cls=OpeningCommand)
def export(
    run: RunDir = LATEST,
    arch: Annotated[
        str, typer.Option(help="largest, smallest, random:SEED or JSON, of --run.")
    ] = "",
    plan: Annotated[
        Path,
        typer.Option(
            help="A plan of `superfednas search`, if no --arch is given: its chosen subnet. "
            "latest: the newest of --run."
        ),
    ] = LATEST,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="onnx, torch-export, executorch, safetensors, or elastic: the whole supernet in "
            "one file, switching between the subnets of the plan's front.",
        ),
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The file; by default subnet.onnx and so on.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            help="A node's state-dir, instead of --run: its personalised subnet --arch, or else "
            "the best on its validation images."
        ),
    ] = None,
    dataset: OtherData = "",
    json_: Json = False,
) -> None:
    """Write a subnet as a file that runs elsewhere, checked on real examples before it is kept."""
    import superfednas
    from superfednas.common.words import counted
    from superfednas.deploy.device.personal import find_personal
    from superfednas.deploy.device.runtime.model import FORMATS
    from superfednas.nas.plan import Plan
    from superfednas.records.plans import find_plan, open_plan

    opened, trained = None, None
    if state_dir is not None:
        if run != LATEST or plan != LATEST or dataset or format_ not in FORMATS:
            raise ValueError(
                "--state-dir: goes with --arch, --out, --overwrite and --format "
                f"{', '.join(FORMATS)} only"
            )
    elif not arch:
        opened_from = find_plan(plan, run)
        opened = Plan.load(opened_from)
        trained = open_plan(opened, dataset)  # refuses a run that has other weights now
        arch = opened.chosen.text
    elif plan != LATEST:
        raise ValueError("--arch and --plan: only one of them can be given")
    if format_ not in (*FORMATS, "elastic"):
        known = ", ".join([*FORMATS, "elastic"])
        raise ValueError(f"format = {format_!r}: must be one of {known}")
    if format_ == "elastic":
        file = superfednas.export_elastic(
            trained or run,
            out or "supernet.safetensors",
            plan=opened,
            overwrite=overwrite,
            dataset=dataset,
        )
        if json_:
            show({"file": str(file), "format": "elastic", "bytes": file.stat().st_size})
        else:
            say(
                f"{file}: {file.stat().st_size:,} bytes, the whole supernet", f"menu: {_menu(file)}"
            )
        return
    target, about = out or Path(f"subnet{FORMATS[format_]}"), ""
    if state_dir is not None:
        subnet = find_personal(state_dir, arch)
        written = superfednas.export_personal(subnet, target, format=format_, overwrite=overwrite)
        about = subnet.said
    else:
        written = superfednas.export(
            trained or run, arch, target, format=format_, overwrite=overwrite, dataset=dataset
        )
    if opened is not None:
        costs = opened.chosen.costs
        about = (
            f"{opened_from}: {counted(costs['macs'], 'MACs')}, {costs['params']:,.0f} parameters"
        )
    if json_:
        show(
            {
                "file": str(written.path),
                "subnet": about,
                "format": written.format,
                "bytes": written.size,
                "largest_difference": written.difference,
                "tolerance": written.tolerance,
                "images": written.examples,
                "folded_norms": written.folded,
            }
        )
        return
    say(*about.splitlines())
    say(
        f"{written.path}: {written.size:,} bytes; its answers on {written.examples} real examples "
        f"differ by at most {written.difference:.1e} from PyTorch's (allowed: "
        f"{written.tolerance:.0e})"
    )


@app.command(cls=OpeningCommand)
def pictures(
    run: RunDir = LATEST,
    out: Annotated[Path, typer.Option(help="The folder, created if missing.")] = Path("pictures"),
    count: Annotated[int, typer.Option(min=1, help="How many, spread over the classes.")] = 10,
    dataset: OtherData = "",
    json_: Json = False,
) -> None:
    """Write validation images of a run as PNG files, to try an exported subnet on.

    A file's name begins with its class.
    """
    from superfednas.deploy.device.samples import write_pictures
    from superfednas.records.trained import Trained

    written = write_pictures(Trained.open(run, dataset).data, out, count)
    if json_:
        show([str(path) for path in written])
    else:
        say(f"{len(written)} pictures in {out}")


@app.command(cls=LimitedCommand)
def classify(
    ctx: typer.Context,
    model: Annotated[Path, typer.Argument()],  # newer versions of click drop the help given here
    inputs: Annotated[list[Path] | None, typer.Argument()] = None,
    costs: Annotated[
        str, typer.Option(help="Costs of your own, module:Name; each has its --max-NAME.")
    ] = "",
    top: Annotated[int, typer.Option(min=1, help="Classes to print per picture.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 32,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads; small networks gain nothing from more than one.")
    ] = 1,
    json_: Json = False,
) -> None:
    """Run an exported file on pictures (or other inputs), as a device does.

    MODEL is a file of `superfednas export`. INPUTS are pictures or folders of them; for tasks
    without pictures, .npz files of arrays. Without INPUTS, it tells what the file reads and
    answers.

    With a limit, the best subnet of an elastic file within it. A device that runs ONNX files needs
    the folder deploy/device/runtime alone, copied to anywhere, with numpy, pillow and onnxruntime:
    `python -m runtime MODEL INPUTS`.
    """
    from superfednas.common.trust import trusts
    from superfednas.deploy.device.runtime.about import print_about
    from superfednas.deploy.device.runtime.answers import answer
    from superfednas.deploy.device.runtime.model import Model, load

    loaded: Model
    if limits := limits_of(ctx):
        import torch

        from superfednas.deploy.device.elastic import ElasticModel

        if model.suffix != ".safetensors":
            given = ", ".join(f"--max-{name}" for name in limits)
            raise ValueError(f"{model}: {given} need an elastic file (.safetensors)")
        torch.set_num_threads(threads)
        loaded = ElasticModel.load(model).subnet(limits)
    else:
        loaded = load(model, threads=threads, trust_code=trusts())
    if not inputs:
        raise typer.Exit(print_about(loaded.card, as_json=json_))
    raise typer.Exit(answer(loaded, inputs, top=top, batch=batch, as_json=json_))
