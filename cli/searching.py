"""Verbs after training: score, search, test."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from superfednas.cli.common import (
    LATEST,
    Display,
    ImageSize,
    InChannels,
    Json,
    Norm,
    NumClasses,
    OpeningCommand,
    OtherData,
    RunDir,
    app,
    show,
)
from superfednas.cli.limits import PANEL, LimitedCommand, limits_of
from superfednas.common.terminal import Terminal

if TYPE_CHECKING:
    from superfednas.nas.plan import Entry, Plan
    from superfednas.tasks import Metric

_SCORES = "Scores"
_ENGINE = "Search"


def _limit(help_text: str) -> Any:
    return typer.Option(help=help_text, rich_help_panel=PANEL)


@app.command(cls=LimitedCommand)
def search(
    ctx: typer.Context,
    run: RunDir = LATEST,
    costs: Annotated[
        str, _limit("Costs of your own, module:Name (several: comma); each has its --max-NAME.")
    ] = "",
    latency_table: Annotated[
        Path | None, _limit("A table of `superfednas latency`, of this or another device.")
    ] = None,
    batch: Annotated[int, _limit("Images per batch for the latency.")] = 1,
    threads: Annotated[int, _limit("Threads for the latency, on this device.")] = 1,
    pareto: Annotated[
        str,
        typer.Option(
            metavar="COST",
            help="The whole front of the metric against macs, params, bytes, memory, latency or "
            "one of --costs, with plots beside the plan.",
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
            help="Existing scores, so that nothing is measured: kept (from all earlier "
            "searches), nodes (`superfednas score`), or a file.",
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
        int, typer.Option(help="For evolution; 0: the default.", rich_help_panel=_ENGINE)
    ] = 0,
    generations: Annotated[
        int, typer.Option(help="For evolution; 0: the default.", rich_help_panel=_ENGINE)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
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
            help="Search a space before training (with --score zero-cost or macs), "
            "instead of a run.",
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

    Only validation examples are used. The result is written as a plan, which `superfednas test` and
    `export` take.
    """
    import superfednas
    from superfednas.nas.engine.evolution import EvolutionSettings
    from superfednas.nas.pipeline import Request
    from superfednas.wire.order import SpaceOptions

    console = Terminal(stderr=json_)
    evolution = None
    if population or generations:
        default = EvolutionSettings()
        evolution = EvolutionSettings(
            population or default.population, generations or default.generations
        )
    request = Request(
        limits=limits_of(ctx),
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
        console.say(f"{'plan' if file == path else 'plot'}: {file}")


def _draw(plan: "Plan", path: Path) -> list[Path]:
    from superfednas.report import draw_plan

    return draw_plan(plan, path.parent, path.stem)


def _describe(plan: "Plan", console: Terminal) -> None:
    """Print what was found, with which score and in what time."""
    said = [_scoring(plan)]
    proof = "the score's optimum is proven" if plan.exact else "no proof"
    said.append(
        f"searched {plan.looked_at:,} subnets in {plan.seconds['search']:.3f} s ({proof}); scoring "
        f"took {plan.seconds['scoring']:.1f} s"
    )
    for line in said:
        console.say(line)
    table = Table(title="chosen", title_justify="left", show_header=False)
    for row in _rows(plan, plan.chosen):
        table.add_row(*row)
    console.print(table)
    if plan.against:
        console.say(f"front against {plan.against}: {len(plan.front)} subnets, in the plan")
    console.say(plan.chosen.text)


def _scoring(plan: "Plan") -> str:
    scorer, data = plan.scorer, plan.data
    if not data:
        return f"score: {scorer['name']}, no weights and no examples needed"
    examples = (
        f"{data['images']:,} {data['split']} examples of {data['name']}"
        if "images" in data
        else f"scores from {data['name']}"
    )
    text = f"score: {scorer['name']} on {scorer['measured']} measured subnets, {examples}"
    if "rank_correlation" in scorer:
        text += f"; rank correlation {scorer['rank_correlation']:.2f} (cross-validated)"
    return text


def _rows(plan: "Plan", entry: "Entry") -> list[tuple[str, str]]:
    from superfednas.tasks.registry import metric_of

    rows, metric = [], metric_of(plan.scorer.get("metric"))
    if entry.score is not None:
        by_metric = plan.scorer["name"] in ("regression", "measured")
        shown = metric.say(entry.score) if by_metric else f"{entry.score:,.4g}"
        rows.append((f"predicted {metric.name}" if by_metric else plan.scorer["name"], shown))
    if entry.measured is not None:
        rows.append(
            (
                f"measured {metric.name}",
                f"{metric.say(entry.measured[metric.name])} on {entry.measured['examples']:,} "
                "validation examples",
            )
        )
    for name, value in entry.costs.items():
        cost = plan.quantity(name)
        limit = f"  (at most {cost.say(plan.limits[name])})" if name in plan.limits else ""
        title = cost.title
        if name == "latency":
            title += f" of {plan.latency['batch']}" if "batch" in plan.latency else ""
        rows.append((title, cost.say(value) + limit))
    if "measured_ms" in plan.latency:
        timed = f"{plan.latency['measured_ms']:.3g} ms (median {plan.latency['median_ms']:.3g} ms)"
        rows.append(("timed on this device", timed))
    return rows


@app.command(cls=OpeningCommand)
def score(
    run: RunDir = LATEST,
    subnets: Annotated[int, typer.Option(min=8, help="Subnets to score.")] = 40,
    workers: Annotated[int, typer.Option(min=1, help="Clients at a time.")] = 1,
    json_: Json = False,
) -> None:
    """Let the clients score subnets on their own validation examples, in this process.

    On real nodes or under Ray: `flwr run . --run-config "score-run='DIR'"`. No example leaves
    a client: only sums over examples are added up. `superfednas search --scores nodes` uses
    them.
    """
    import superfednas
    from superfednas.server.journal.progress import Progress

    console = Terminal(stderr=json_)
    book = superfednas.score_nodes(
        run, progress=Progress(console), workers=workers, score_subnets=subnets
    )
    if json_:
        show({"scores": str(book.path), "subnets": len(book)})


@app.command(cls=OpeningCommand)
def test(
    run: RunDir = LATEST,
    plan: Annotated[
        Path, typer.Option(help="A plan of `superfednas search`; latest: the newest of --run.")
    ] = LATEST,
    dataset: OtherData = "",
    json_: Json = False,
) -> None:
    """Read the test split once: for a plan's chosen subnet, and for the ladder.

    The result is kept beside the plan; a second call prints it again without reading any example.
    """
    import superfednas
    from superfednas.tasks.registry import metric_of

    console = Terminal(stderr=json_)
    with Display(console) as display:
        result = superfednas.test(plan, run_dir=run, dataset=dataset, progress=display)
    if json_:
        show(result)
        return
    metric = metric_of(result.get("metric"))
    title = f"test {metric.name} on {result['data']['name']}, {result['plan']}"
    table = Table(title=title, title_justify="left")
    rows = {"chosen": result["chosen"], **result["ladder"]}
    known = any(row["standard_error"] is not None for row in rows.values())
    for heading in ("subnet", metric.name, *(["± s.e."] if known else []), "examples"):
        table.add_column(heading)
    for name, row in rows.items():
        error = row["standard_error"]
        said = "" if error is None else metric.say(error)
        value = metric.say(row[metric.name])
        table.add_row(name, value, *([said] if known else []), f"{row['examples']:,}")
    console.print(table)
    for line in _remarks(result, metric):
        console.say(line)
    if result["again"]:
        console.say(f"read on {result['read']}; not read again")


def _remarks(result: dict[str, Any], metric: "Metric") -> list[str]:
    """Say where a cheaper rung of the ladder does as well, as far as these examples can tell."""
    chosen = result["chosen"]
    if chosen["standard_error"] is None:
        return []
    rivals = [
        name
        for name, row in result["ladder"].items()
        if row["macs"] < chosen["macs"]
        and metric.sign * (chosen[metric.name] - row[metric.name]) <= row["standard_error"]
    ]
    if not rivals:
        return []
    return [
        f"on {chosen['examples']:,} examples {metric.name} is known to ± "
        f"{metric.say(chosen['standard_error'], 1)}: {', '.join(rivals)}, which cost less, may "
        "well do as well"
    ]
