"""Verbs after training: score, search, test."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from nas.plan import Entry, Plan

_LIMITS = "Limits (any of them together)"
_SCORES = "Scores"
_ENGINE = "Search"


def _limit(help_text: str) -> Any:
    return typer.Option(help=help_text, rich_help_panel=_LIMITS)


@app.command()
def search(
    run: RunDir = LATEST,
    max_macs: Annotated[float | None, _limit("Multiply-accumulates of one image.")] = None,
    max_params: Annotated[float | None, _limit("Parameters.")] = None,
    max_bytes: Annotated[float | None, _limit("Bytes of the file (ONNX or safetensors).")] = None,
    max_memory: Annotated[
        float | None, _limit("Peak bytes of activations, one image, float32.")
    ] = None,
    max_latency: Annotated[
        float | None,
        _limit("Milliseconds a batch (a number): on this device, or that of --latency-table."),
    ] = None,
    latency_table: Annotated[
        Path | None, _limit("A table of `superfednas latency`, of this or another device.")
    ] = None,
    batch: Annotated[int, _limit("Images a batch whose latency counts.")] = 1,
    threads: Annotated[int, _limit("Threads whose latency counts, on this device.")] = 1,
    pareto: Annotated[
        str,
        typer.Option(
            metavar="COST",
            help="The whole front of accuracy against macs, params, bytes, memory or latency, with "
            "plots beside the plan.",
        ),
    ] = "",
    score: Annotated[
        str,
        typer.Option(
            help="regression (measure a few, predict the others), measured (measure every "
            "candidate), zero-cost (no weights needed) or macs.",
            rich_help_panel=_SCORES,
        ),
    ] = "regression",
    scores: Annotated[
        str,
        typer.Option(
            help="Scores that are there, so that nothing is measured: kept (all that earlier "
            "searches measured), nodes (`superfednas score`), or a file.",
            rich_help_panel=_SCORES,
        ),
    ] = "",
    subnets: Annotated[
        int, typer.Option(min=8, help="Subnets to measure first.", rich_help_panel=_SCORES)
    ] = 40,
    refine: Annotated[
        int,
        typer.Option(
            min=0,
            help="Times to measure the predicted winners and fit again.",
            rich_help_panel=_SCORES,
        ),
    ] = 2,
    engine: Annotated[
        str,
        typer.Option(
            help="auto, exact (the proven optimum of the score) or evolution.",
            rich_help_panel=_ENGINE,
        ),
    ] = "auto",
    population: Annotated[
        int, typer.Option(help="Of evolution; 0 is its default.", rich_help_panel=_ENGINE)
    ] = 0,
    generations: Annotated[
        int, typer.Option(help="Of evolution; 0 is its default.", rich_help_panel=_ENGINE)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    dataset: OtherData = "",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The plan's file; by default RUN/plans/plan-NNN.json (without a run: plan.json)."
        ),
    ] = None,
    space: Annotated[
        str,
        typer.Option(
            help="Search a space before anything is trained (with --score zero-cost or macs), in "
            "place of a run.",
            rich_help_panel="Without a run",
        ),
    ] = "",
    norm: Norm = "group",
    num_classes: NumClasses = 10,
    in_channels: InChannels = 3,
    image_size: ImageSize = 32,
    json_: Json = False,
) -> None:
    """Find the best subnet within limits, with no retraining.

    Only validation images are looked at. What was found is written as a plan, which `superfednas
    test` and `export` take.
    """
    import superfednas
    from nas.evolution import EvolutionSettings
    from nas.planner import Request
    from supernet.wire import SpaceOptions

    console = Console(stderr=json_, highlight=False)
    limits = {
        name: value
        for name, value in (
            ("macs", max_macs),
            ("params", max_params),
            ("bytes", max_bytes),
            ("memory", max_memory),
            ("latency", max_latency),
        )
        if value is not None
    }
    evolution = None
    if population or generations:
        default = EvolutionSettings()
        evolution = EvolutionSettings(
            population or default.population, generations or default.generations
        )
    request = Request(
        limits=limits,
        against=pareto,
        score=score,
        subnets=subnets,
        refine=refine,
        engine=engine,
        evolution=evolution,
        seed=seed,
    )
    with Display(console) as display:
        if space:
            options = SpaceOptions(space, norm, num_classes, in_channels, image_size)
            plan, path = superfednas.search_space(
                options,
                request=request,
                latency_table=latency_table or "",
                batch=batch,
                out=out or "plan.json",
            )
        else:
            plan, path = superfednas.search(
                run,
                request=request,
                scores=scores,
                latency_table=latency_table or "",
                batch=batch,
                threads=threads,
                dataset=dataset,
                out=out or "",
                progress=display,
            )
    written = [path, *_draw(plan, path)] if pareto else [path]
    if json_:
        show({"plan": str(path), **dataclasses.asdict(plan)})
        return
    _describe(plan, console)
    for file in written:
        console.print(f"{'plan' if file == path else 'plot'}: {file}", markup=False, soft_wrap=True)


def _draw(plan: "Plan", path: Path) -> list[Path]:
    from report import draw_plan

    return draw_plan(plan, path.parent, path.stem)


def _describe(plan: "Plan", console: Console) -> None:
    """Print what was found, by which score, in what time."""
    said = [_scoring(plan)]
    proof = "the score's optimum is proven" if plan.exact else "no proof"
    said.append(
        f"searched {plan.looked_at:,} subnets in {plan.seconds['search']:.3f} s ({proof}); scoring "
        f"took {plan.seconds['scoring']:.1f} s"
    )
    for line in said:
        console.print(line, markup=False, soft_wrap=True)
    table = Table(title="chosen", title_justify="left", show_header=False)
    for row in _rows(plan, plan.chosen):
        table.add_row(*row)
    console.print(table)
    if plan.against:
        console.print(f"front against {plan.against}: {len(plan.front)} subnets, in the plan")
    console.print(plan.chosen.text, markup=False, soft_wrap=True)


def _scoring(plan: "Plan") -> str:
    scorer, data = plan.scorer, plan.data
    if not data:
        return f"score: {scorer['name']}, no weights and no images needed"
    images = (
        f"{data['images']:,} {data['split']} images of {data['name']}"
        if "images" in data
        else f"scores from {data['name']}"
    )
    text = f"score: {scorer['name']} on {scorer['measured']} measured subnets, {images}"
    if "rank_correlation" in scorer:
        text += f"; rank correlation {scorer['rank_correlation']:.2f} (cross-validated)"
    return text


def _rows(plan: "Plan", entry: "Entry") -> list[tuple[str, str]]:
    from nas.costs import COSTS

    rows = []
    if entry.score is not None:
        accuracy = plan.scorer["name"] in ("regression", "measured")
        shown = f"{entry.score:.2%}" if accuracy else f"{entry.score:,.4g}"
        rows.append(("predicted accuracy" if accuracy else plan.scorer["name"], shown))
    if entry.measured is not None:
        rows.append(
            (
                "measured accuracy",
                f"{entry.measured['accuracy']:.2%} on {entry.measured['examples']:,} validation "
                "images",
            )
        )
    for name, value in entry.costs.items():
        limit = f"  (at most {COSTS[name].say(plan.limits[name])})" if name in plan.limits else ""
        title = COSTS[name].title
        if name == "latency":
            title += f" of {plan.latency['batch']}" if "batch" in plan.latency else ""
        rows.append((title, COSTS[name].say(value) + limit))
    if "measured_ms" in plan.latency:
        timed = f"{plan.latency['measured_ms']:.3g} ms (median {plan.latency['median_ms']:.3g} ms)"
        rows.append(("timed on this device", timed))
    return rows


@app.command()
def score(
    run: RunDir = LATEST,
    subnets: Annotated[int, typer.Option(min=8, help="Subnets to score.")] = 40,
    workers: Annotated[int, typer.Option(min=1, help="Clients at a time.")] = 1,
    json_: Json = False,
) -> None:
    """Let the clients score subnets on their own validation images, in this process.

    On real nodes or under Ray: `flwr run . --run-config "score-run='DIR'"`. No image leaves a
    client: right answers are added up. `superfednas search --scores nodes` takes them.
    """
    import superfednas
    from server.progress import Progress

    console = Console(stderr=json_, highlight=False)
    book = superfednas.score_nodes(
        run, progress=Progress(console), workers=workers, score_subnets=subnets
    )
    if json_:
        show({"scores": str(book.path), "subnets": len(book)})


@app.command()
def test(
    run: RunDir = LATEST,
    plan: Annotated[
        Path, typer.Option(help="A plan of `superfednas search`; latest: the newest of --run.")
    ] = LATEST,
    dataset: OtherData = "",
    json_: Json = False,
) -> None:
    """Read the test split once: the chosen subnet of a plan, and the ladder beside it.

    The result is kept beside the plan; asked again, it is told again and no image is read.
    """
    import superfednas

    console = Console(stderr=json_, highlight=False)
    with Display(console) as display:
        result = superfednas.test(plan, run_dir=run, dataset=dataset, progress=display)
    if json_:
        show(result)
        return
    title = f"test accuracy on {result['data']['name']}, {result['plan']}"
    table = Table(title=title, title_justify="left")
    for heading in ("subnet", "accuracy", "± s.e.", "images"):
        table.add_column(heading)
    for name, row in {"chosen": result["chosen"], **result["ladder"]}.items():
        table.add_row(
            name,
            f"{row['accuracy']:.2%}",
            f"{row['standard_error']:.2%}",
            f"{row['examples']:,}",
        )
    console.print(table)
    for line in _remarks(result):
        console.print(line, markup=False, soft_wrap=True)
    if result["again"]:
        console.print(f"read on {result['read']}; not read again", markup=False)


def _remarks(result: dict[str, Any]) -> list[str]:
    """Say where a cheaper rung of the ladder does as well, as far as these images can tell."""
    chosen = result["chosen"]
    rivals = [
        name
        for name, row in result["ladder"].items()
        if row["macs"] < chosen["macs"]
        and row["accuracy"] + row["standard_error"] >= chosen["accuracy"]
    ]
    if not rivals:
        return []
    return [
        f"on {chosen['examples']:,} images an accuracy is known to ± {chosen['standard_error']:.1%}"
        f": {', '.join(rivals)}, which cost less, may well do as well"
    ]
