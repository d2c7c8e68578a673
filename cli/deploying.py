"""Verbs that bring a subnet to a device: latency, export, classify."""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli.common import (
    LATEST,
    Display,
    ImageSize,
    InChannels,
    Json,
    Norm,
    NumClasses,
    OtherData,
    RunDir,
    app,
    show,
)

if TYPE_CHECKING:
    from nas.latency import LatencyTable

_BUSY = 0.1


@app.command()
def latency(
    run: RunDir = LATEST,
    space: Annotated[
        str, typer.Option(help="A space by name, in place of a run's.", rich_help_panel="Space")
    ] = "",
    norm: Norm = "group",
    num_classes: NumClasses = 10,
    in_channels: InChannels = 3,
    image_size: ImageSize = 32,
    batches: Annotated[str, typer.Option(help="Images a batch, comma-separated.")] = "1,16",
    threads: Annotated[int, typer.Option(min=1, help="Threads an operation.")] = 1,
    networks: Annotated[int, typer.Option(min=3, help="Whole networks to fit to.")] = 12,
    holdout: Annotated[int, typer.Option(min=1, help="Further networks to test on.")] = 10,
    seconds: Annotated[float, typer.Option(help="About how long to measure.")] = 60.0,
    device: Annotated[str, typer.Option(help="As torch names it: cpu, cuda, mps.")] = "cpu",
    clock: Annotated[
        str, typer.Option(help="wall, or cpu: processor time of one thread, for a busy machine.")
    ] = "wall",
    name: Annotated[str, typer.Option(help="What to call the device in the table.")] = "",
    seed: Annotated[int, typer.Option(help="Of the networks to test on.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The table; by default where `superfednas search` looks for this device."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the table.")] = False,
    json_: Json = False,
) -> None:
    """Time this device block by block, so that any subnet's latency can be predicted.

    How far predictions are off is measured on networks that the fit has not seen. The table is a
    JSON file: `superfednas search --latency-table FILE` takes it on another machine.
    """
    from deploy.this_device import table_file
    from deploy.trained import Trained
    from nas.latency import LatencyError
    from nas.profiling import measure
    from supernet.wire import SpaceOptions

    options = SpaceOptions(space, norm, num_classes, in_channels, image_size)
    loaded = options.load() if space else Trained.open(run).space
    sizes = batches.split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise ValueError(f"batches = {batches!r}: must be whole numbers, as in 1,16")
    path = out or table_file(loaded, threads=threads, device=device)
    if path.exists() and not overwrite:
        raise LatencyError(f"{str(path)!r} exists already: name another (--out), or --overwrite")
    console = Console(stderr=json_, highlight=False)
    with Display(console) as display:
        table = measure(
            loaded,
            batches=[int(size) for size in sizes],
            threads=threads,
            networks=networks,
            holdout=holdout,
            seconds=seconds,
            seed=seed,
            device=device,
            clock=clock,
            name=name,
            progress=lambda done, todo: display.measuring(done, todo, "blocks and networks timed"),
        )
    table.save(path, overwrite=overwrite)
    if json_:
        show(
            {
                "table": str(path),
                "seconds": table.seconds,
                "error": {
                    size: {
                        "median": part.errors.median,
                        "p90": part.errors.p90,
                        "max": part.errors.max,
                    }
                    for size, part in table.batches.items()
                },
            }
        )
        return
    console.print(_errors(table))
    console.print("unseen: absolute error of the prediction on networks outside the fit")
    if any(part.errors.median > _BUSY for part in table.batches.values()):
        console.print("the machine was busy: measure again when it is idle, or with --clock cpu")
    console.print(f"table: {path}", markup=False, soft_wrap=True)


def _errors(table: "LatencyTable") -> Table:
    """Return what was measured and how far predictions are off."""
    device = table.device
    shown = Table(
        title=f"{device['processor']} ({device['device']}), threads: {table.threads}, torch "
        f"{device['torch']}, {table.seconds:.0f} s",
        title_justify="left",
    )
    for heading in (
        "batch",
        "blocks",
        "ms",
        "spread",
        "unseen: median",
        "90%",
        "most",
    ):
        shown.add_column(heading, justify="right")
    for size, part in table.batches.items():
        every = [network.timing for network in (*part.fitted, *part.held_out)]
        spread = statistics.median(timing.spread_ms / timing.median_ms for timing in every)
        times = [timing.fastest_ms for timing in every]
        error = part.errors
        shown.add_row(
            str(size),
            str(len(part.blocks)),
            f"{min(times):.3g} to {max(times):.3g}",
            f"{spread:.1%}",
            f"{error.median:.1%}",
            f"{error.p90:.1%}",
            f"{error.max:.1%}",
        )
    return shown


def _menu(file: Path) -> str:
    from deploy.elastic import ElasticModel

    macs = sorted(int(entry["macs"]) for entry in ElasticModel.load(file).card.menu)
    return f"{len(macs)} subnets, {macs[0] / 1e6:.3g} to {macs[-1] / 1e6:.3g} MMACs"


@app.command()
def export(
    run: RunDir = LATEST,
    arch: Annotated[
        str, typer.Option(help="largest, smallest, random:SEED or JSON, of --run.")
    ] = "",
    plan: Annotated[
        Path,
        typer.Option(
            help="A plan of `superfednas search`, where no --arch is given: its chosen subnet. "
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
            help="A node's state-dir in place of --run: what it has personalised, --arch or else "
            "the best on its validation images."
        ),
    ] = None,
    dataset: OtherData = "",
    json_: Json = False,
) -> None:
    """Write a subnet as one file that runs elsewhere, checked on real images before it is kept."""
    import superfednas
    from deploy.personal import find_personal
    from deploy.plans import find_plan, open_plan
    from deploy.runtime import FORMATS
    from nas.plan import Plan

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
            print(f"{file}: {file.stat().st_size:,} bytes, the whole supernet")
            print(f"menu: {_menu(file)}")
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
            f"{opened_from}: {costs['macs'] / 1e6:,.2f} MMACs, {costs['params']:,.0f} parameters"
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
                "images": written.images,
                "folded_norms": written.folded,
            }
        )
        return
    if about:
        print(about)
    print(
        f"{written.path}: {written.size:,} bytes; its logits on {written.images} real images "
        f"differ by at most {written.difference:.1e} from PyTorch's (allowed: "
        f"{written.tolerance:.0e})"
    )


@app.command()
def pictures(
    run: RunDir = LATEST,
    out: Annotated[Path, typer.Option(help="The folder, made where it is not there.")] = Path(
        "pictures"
    ),
    count: Annotated[int, typer.Option(min=1, help="How many, spread over the classes.")] = 10,
    dataset: OtherData = "",
    json_: Json = False,
) -> None:
    """Write validation images of a run as PNG files, to try an exported subnet on.

    A file's name begins with its class.
    """
    from deploy.pictures import write_pictures
    from deploy.trained import Trained

    written = write_pictures(Trained.open(run, dataset).data, out, count)
    if json_:
        show([str(path) for path in written])
    else:
        print(f"{len(written)} pictures in {out}")


@app.command()
def classify(
    model: Annotated[Path, typer.Argument(help="A file of `superfednas export`.")],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to name a picture.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 32,
    threads: Annotated[int, typer.Option(min=0, help="0: as the runtime likes.")] = 0,
    max_macs: Annotated[
        int | None, typer.Option(help="Elastic files: the best subnet within these MACs.")
    ] = None,
    max_params: Annotated[
        int | None, typer.Option(help="Elastic files: the best subnet within these parameters.")
    ] = None,
    json_: Json = False,
) -> None:
    """Classify pictures with an exported file, as a device does.

    A device needs deploy/runtime.py and deploy/card.py alone: `python -m deploy.runtime MODEL
    PICTURE`, with numpy, pillow and onnxruntime.
    """
    from deploy import runtime

    if max_macs is None and max_params is None:
        loaded = runtime.load(model, threads=threads)
    else:
        from deploy.elastic import ElasticModel

        if model.suffix != ".safetensors":
            raise ValueError(
                f"{model}: --max-macs and --max-params need an elastic file (.safetensors)"
            )
        loaded = ElasticModel.load(model)
        loaded.use(max_macs=max_macs, max_params=max_params)
    results = runtime.classify_paths(loaded, pictures, batch)
    raise typer.Exit(runtime.print_results(results, top=top, as_json=json_))
