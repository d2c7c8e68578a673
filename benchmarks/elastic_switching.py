"""Measure what one supernet file on a device costs: switching, memory, latency of views.

    python benchmarks/elastic_switching.py

Weights are a supernet's first values: times and bytes do not depend on them. The menu is the ladder
of the space. What is compared is timed in turn, in one process: a first switch with an extraction
of the same subnet, a call on views with a call on a copy.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from superfednas.bench.machine import describe
from superfednas.deploy.device.cards import make_card
from superfednas.deploy.device.elastic import ElasticModel
from superfednas.deploy.device.elastic_file import write_elastic
from superfednas.deploy.device.menu import menu_entry
from superfednas.deploy.device.runtime.card import Card
from superfednas.nas.score.tallies import subnet_module
from superfednas.supernet import Architecture, SearchSpace, load_space
from superfednas.supernet.ladder import ladder
from superfednas.tasks.describe import describe as describe_task
from superfednas.tasks.images import Images

OPTIONS = {"num_classes": 10, "in_channels": 3, "image_size": 32, "norm": "group"}
BATCHES = (1, 64)


def milliseconds(call: Callable[..., object], *values: object, **named: object) -> float:
    start = time.perf_counter()
    call(*values, **named)
    return 1e3 * (time.perf_counter() - start)


def spread(times: list[float]) -> str:
    """Return the median and the range from the 10th to the 90th percentile."""
    low, *_, high = statistics.quantiles(times, n=10)
    return f"{statistics.median(times):.3g} ({low:.3g} to {high:.3g})"


def elastic_card(space: SearchSpace, name: str, menu: dict[str, Architecture]) -> Card:
    described, options = describe_task(Images()), {"space": name, **OPTIONS}
    card = make_card(space, options, space.largest, described, source={})
    return replace(card, menu=tuple(menu_entry(space, arch) for arch in menu.values()))


def switching(model: ElasticModel, state: dict, menu: list[Architecture], repeats: int) -> str:
    """Return the table of switching times."""
    space, rng = model.space, np.random.default_rng(0)
    seen, first, extraction = set(menu), [], []
    while len(first) < repeats:
        arch = space.sample(rng)
        if arch not in seen:
            seen.add(arch)
            extraction.append(milliseconds(subnet_module, space, state, arch))
            first.append(milliseconds(model.use, arch))
    wanted = [menu[n % len(menu)] for n in range(repeats)]
    named = [milliseconds(model.use, arch) for arch in wanted]
    budget = [milliseconds(model.use, max_macs=space.macs(arch)) for arch in wanted]
    base = statistics.median(extraction)
    rows = {
        "extraction with a copy of the weights": extraction,
        "first switch to an architecture outside the menu": first,
        "switch to a built architecture": named,
        "switch by budget": budget,
    }
    lines = ["| | ms: median (10% to 90%) | ÷ extraction |", "|---|---|---|"]
    for what, times in rows.items():
        lines.append(f"| {what} | {spread(times)} | {statistics.median(times) / base:.2g} |")
    return "\n".join(lines)


def latency(model: ElasticModel, state: dict, menu: dict[str, Architecture], repeats: int) -> str:
    """Return the table of what each subnet of the menu costs as views and as a copy."""
    space = model.space
    batches = " | ".join(f"ms on views, batch {n} | ÷ copy" for n in BATCHES)
    lines = [f"| subnet | MMACs | weights, MB | copied a call, MB | at a time, MB | {batches} |"]
    lines.append("|" + "---|" * (5 + 2 * len(BATCHES)))
    for name, arch in menu.items():
        model.use(arch)
        copy = subnet_module(space, state, arch).eval().requires_grad_(False)
        sizes = (4 * space.params(arch), model.active.copied_bytes, model.active.transient_bytes)
        row = f"| {name} | {space.macs(arch) / 1e6:.2f} | "
        row += " | ".join(f"{size / 1e6:.2f}" for size in sizes)
        for count in BATCHES:
            images = torch.randn(count, 3, OPTIONS["image_size"], OPTIONS["image_size"])
            times: dict[str, list[float]] = {"views": [], "copy": []}
            with torch.inference_mode():
                for _ in range(3 + repeats):
                    times["copy"].append(milliseconds(copy, images))
                    times["views"].append(milliseconds(model, images))
            views, copied = (statistics.median(times[how][3:]) for how in ("views", "copy"))
            row += f" | {views:.3g} | {views / copied:.2f}"
        lines.append(row + " |")
    return "\n".join(lines)


def main(
    space: Annotated[str, typer.Option(help="search space")] = "resnet-tiny",
    repeats: Annotated[int, typer.Option(help="times that each thing is timed")] = 200,
    threads: Annotated[int, typer.Option(help="threads of torch")] = 1,
) -> None:
    """Print two Markdown tables and where they were measured."""
    torch.set_num_threads(threads)
    family = load_space(space, **OPTIONS)
    menu = ladder(family)
    state = family.init(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "supernet.safetensors"
        write_elastic(path, family, state, elastic_card(family, space, menu))
        loading = milliseconds(ElasticModel.load, path)
        model = ElasticModel.load(path)
        size = path.stat().st_size
        separate = 4 * sum(map(family.params, menu.values()))
        print(
            f"{describe({'space': f'{space}, {OPTIONS}', 'repeats': repeats})}\n"
            f"One file of {size / 1e6:.2f} MB ({model.weight_bytes / 1e6:.2f} MB of weights) in "
            f"place of {len(menu)} files of {separate / 1e6:.2f} MB together; loaded, with the "
            f"menu built, in {loading:.3g} ms.\n\n"
            f"{switching(model, state, list(menu.values()), repeats)}\n\n"
            f"{latency(model, state, menu, repeats)}"
        )


if __name__ == "__main__":
    typer.run(main)
