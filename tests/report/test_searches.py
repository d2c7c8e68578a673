"""Searches in the report: what plots show, whether names can be read, damaged and foreign plans."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from superfednas.nas.cost.cost import COSTS
from superfednas.nas.cost.costs import Costs
from superfednas.nas.engine.evolution import EvolutionSettings
from superfednas.nas.pipeline import Request, make_plan
from superfednas.nas.plan import Entry, Plan, PlanError
from superfednas.nas.score.measured import ScoreBook
from superfednas.nas.score.regression import design
from superfednas.report import draw_plan, search_page, write_report
from superfednas.report.canvas import DARK, LIGHT, Theme, new_figure
from superfednas.report.labels import Label, place
from superfednas.report.network_plot import network_plot, stages_of
from superfednas.report.search_page import searches_section
from superfednas.report.search_plots import score_plot
from superfednas.report.search_points import Points, front_steps
from superfednas.report.searches import Search, read_searches, standard_error, value_of
from superfednas.supernet import SPACES, Architecture, SearchSpace, load_space
from superfednas.supernet.chain import Block, Chain, Segment
from superfednas.supernet.families.resnet.family import ResNetFamily
from superfednas.supernet.ladder import ladder
from superfednas.tasks.registry import metric_of
from tests.report.test_report import PNG, Page, run_of
from tests.support.pictures import right
from tests.support.spaces import NARROW

pytestmark = pytest.mark.slow

OWN = "tests.report.test_searches:Own"
LINKED = "tests.report.test_searches:Linked"
MILLION = 1e6
RESNETS = [name for name in SPACES if name.startswith("resnet")]


# Plans made by the search itself


def plan_of(name: str = "resnet-tiny", *, images: int = 1000, **asked: Any) -> Plan:
    """Search a space whose accuracies rise with MACs, and waver."""
    space, request = load_space(name), Request(**asked)
    book = None
    if request.score == "regression":
        book, rng = ScoreBook(None, weights="w", data="nodes"), np.random.default_rng(0)
        for arch in design(space, 20, 0):
            accuracy = 0.3 + 0.1 * math.log10(space.macs(arch) / MILLION) + 0.01 * rng.normal()
            book.put(arch, right(images, round(accuracy * images), 1.0))
    options = {"norm": "group", "num_classes": 10, "in_channels": 3, "image_size": 32}
    return make_plan(
        request,
        Costs(space),
        book=book,
        ladder=ladder(space),
        origin={
            "run": "/runs/one",
            "rounds": 7,
            "space": {"space": name, **options},
            "data": {"name": "nodes", "digest": "nodes"} if book else {},
        },
    )


QUICK = EvolutionSettings(population=10, generations=2)
KINDS: dict[str, dict[str, Any]] = {
    "limit": {"limits": {"macs": 10e6}},
    "front": {"against": "macs"},
    "both": {"against": "params", "limits": {"macs": 10e6, "params": 800_000}},
    "far": {"limits": {"macs": 1e9, "memory": 110_000}},
    "memory": {"against": "memory"},
    "macs": {"score": "macs", "against": "params"},
    "zero-cost": {"score": "zero-cost", "engine": "evolution", "evolution": QUICK},
    "wide": {
        "name": "resnet10-26-wide",
        "against": "macs",
        "engine": "evolution",
        "evolution": QUICK,
    },
}


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    return {kind: plan_of(**asked) for kind, asked in KINDS.items()}


@pytest.fixture(scope="module")
def figures(plans: dict[str, Plan]) -> dict[str, Figure]:
    themes = [LIGHT, DARK]
    return {kind: score_plot(p, themes[i % 2]) for i, (kind, p) in enumerate(plans.items())}


# The front as a step line


def at(steps: np.ndarray, cost: float) -> float:
    """Read a step line: the height of its last corner at or below a cost."""
    return float(steps[steps[:, 0] <= cost][-1, 1])


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 50)), min_size=1, max_size=12),
    st.integers(1, 25),
)
def test_the_step_line_is_the_best_score_at_or_below_every_cost(front, end):
    steps = front_steps([(float(c), float(s)) for c, s in front], float(end))
    least, most = min(c for c, _ in front), max(c for c, _ in front)
    assert steps[0, 0] == least and steps[-1, 0] == max(end, most)
    for cost in np.arange(least, steps[-1, 0] + 0.5, 0.5):
        assert at(steps, cost) == max(score for c, score in front if c <= cost)
    moves = np.abs(np.diff(steps, axis=0)) > 0
    assert not moves.all(axis=1).any()  # level or upright, never aslant
    assert (np.diff(steps, axis=0) >= 0).all()


def test_a_step_stands_where_its_network_is():
    """3 at cost 1, 5 at cost 4, drawn to 6: level to 4, up, level to 6."""
    steps = front_steps([(4.0, 5.0), (1.0, 3.0)], 6.0)
    assert steps.tolist() == [[1, 3], [4, 3], [4, 5], [6, 5]]


# What is shown


def test_a_predicted_plan_shows_predictions_and_beside_them_what_was_measured(plans):
    plan = plans["limit"]
    points = Points.of(plan)
    assert points.cost == "macs" and points.limit == 10 and points.metric and points.predicted
    assert points.chosen.x == plan.chosen.costs["macs"] / MILLION
    assert points.chosen.y == plan.chosen.score
    assert [mark.y for mark in points.ladder] == [entry.score for entry in plan.ladder]
    assert [mark.kept for mark in points.ladder] == [
        entry.costs["macs"] <= 10e6 for entry in plan.ladder
    ]
    assert len({mark.kept for mark in points.ladder}) == 2
    for mark, entry in zip(points.measured, plan.measured, strict=True):
        assert entry.measured is not None
        p = entry.measured["accuracy"]
        assert (mark.y, mark.error) == (p, pytest.approx(math.sqrt(p * (1 - p) / 1000)))
    assert all(mark.error == 0 for mark in (points.chosen, *points.ladder, *points.front))


def test_limits_of_every_cost_decide_what_is_outside(plans):
    plan = plans["both"]
    points = Points.of(plan)
    assert points.cost == "params" and points.limit == 0.8
    for mark, entry in zip(points.measured, plan.measured, strict=True):
        kept = entry.costs["macs"] <= 10e6 and entry.costs["params"] <= 800_000
        assert mark.kept == kept
    assert points.chosen.kept and all(mark.kept for mark in points.front)
    assert max(mark.x for mark in points.all) > 0.8 == points.steps[-1, 0]
    everywhere = Points.of(plans["front"])
    assert everywhere.steps[-1, 0] == max(mark.x for mark in everywhere.all)


def with_measured(plan: Plan, **changes: Any) -> Plan:
    """Give the chosen subnet an accuracy of its own."""
    found = {"accuracy": 0.5, "loss": 1.0, "examples": 100}
    chosen = dataclasses.replace(plan.chosen, measured=found)
    return dataclasses.replace(plan, chosen=chosen, **changes)


def test_the_chosen_subnet_is_checked_by_what_was_measured(plans):
    check = Points.of(with_measured(plans["limit"])).check
    assert check is not None
    assert (check.y, check.error) == (0.5, pytest.approx(0.05))


def test_accuracies_have_no_place_on_the_axis_of_another_score(plans):
    for kind in ("zero-cost", "macs"):
        plan = with_measured(plans[kind], measured=plans["limit"].measured)
        points = Points.of(plan)
        assert points.metric is None
        assert points.measured == () and points.check is None and points.chosen.error == 0
    assert Points.of(plans["macs"]).chosen.y == plans["macs"].chosen.costs["macs"] / MILLION
    assert Points.of(plans["zero-cost"]).chosen.y == plans["zero-cost"].chosen.score


def test_a_measured_score_is_shown_once_with_its_error(plans):
    plan = with_measured(plans["limit"], scorer={"name": "measured", "measured": 20})
    points = Points.of(plan)
    assert (points.chosen.y, points.chosen.error, points.check) == (0.5, pytest.approx(0.05), None)
    rungs = [entry for entry in plan.ladder if entry.measured]
    assert 0 < len(rungs) < len(plan.ladder)  # what was not measured has no place
    assert [mark.name for mark in points.ladder] == [entry.name for entry in rungs]
    assert all(mark.error > 0 for mark in points.ladder)


def test_a_chosen_subnet_without_a_score_is_no_plan(plans):
    chosen = dataclasses.replace(plans["limit"].chosen, score=None, measured=None)
    with pytest.raises(ValueError, match="no score"):
        Points.of(dataclasses.replace(plans["limit"], chosen=chosen))


@pytest.mark.parametrize(
    ("accuracy", "images", "said"), [(0.5, 100, "50.00% ± 5.00"), (0.9, 900, "90.00% ± 1.00")]
)
def test_standard_errors_are_binomial(accuracy, images, said):
    found = {"accuracy": accuracy, "examples": images}
    metric = metric_of(None)
    assert value_of(metric, found, standard_error(metric, found)) == said


# Names in the plot


def overlaps(figure: Figure, texts: Sequence[Any]) -> list[tuple[str, str]]:
    """Name the pairs of texts of which one covers the other."""
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    return [
        (one, other)
        for i, (one, a) in enumerate(boxes)
        for other, b in boxes[i + 1 :]
        if min(a.x1, b.x1) > max(a.x0, b.x0) and min(a.y1, b.y1) > max(a.y0, b.y0)
    ]


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=12),
    st.integers(0, 11),
)
def test_names_do_not_cover_each_other_and_needed_ones_are_there(where, needed):
    figure = new_figure(LIGHT, height=3)
    axes = figure.subplots()
    axes.set(xlim=(-1, 11), ylim=(-1, 11))
    labels = [Label(f"name {i}", x, y, "k", needed=i == needed) for i, (x, y) in enumerate(where)]
    place(axes, labels, np.array(where, dtype=float), LIGHT)
    texts = [text for text in axes.texts if text.get_text()]
    assert f"name {needed}" in [t.get_text() for t in texts] or needed >= len(where)
    others = [text for text in texts if text.get_text() != f"name {needed}"]
    assert overlaps(figure, others) == []
    inside = axes.get_window_extent()
    for text in others:
        box = text.get_window_extent()
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1
        assert inside.y0 <= box.y0 and box.y1 <= inside.y1


def test_in_a_heap_of_names_the_first_are_kept_and_the_others_left_out():
    figure = new_figure(LIGHT, height=3)
    axes = figure.subplots()
    axes.set(xlim=(0, 2), ylim=(0, 2))
    names = [f"name {i}" for i in range(30)]
    place(axes, [Label(name, 1, 1, "k") for name in names], np.ones((30, 2)), LIGHT)
    shown = [text.get_text() for text in axes.texts]
    assert shown == names[: len(shown)] and 4 <= len(shown) < 30
    assert overlaps(figure, axes.texts) == []


def test_a_lone_name_stands_close_and_one_in_a_crowd_is_led_to():
    for crowd, leads in ((0, 0), (400, 1)):
        axes = new_figure(LIGHT, height=5).subplots()
        axes.set(xlim=(0, 10), ylim=(0, 10))
        around = np.random.default_rng(0).normal(5, 0.3, (crowd, 2))
        place(axes, [Label("it", 5, 5, "k", needed=True)], np.array([[5, 5], *around]), LIGHT)
        assert len([text for text in axes.texts if not text.get_text()]) == leads


# The plot of scores


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_text_lies_in_the_picture_and_names_cover_nothing_else(figures, kind):
    figure = figures[kind]
    axes = figure.axes[0]
    figure.draw_without_rendering()
    texts = [axes.title, axes._left_title, *axes.texts, *figure.legends[0].get_texts()]
    for text in (*texts, axes.xaxis.label, axes.yaxis.label):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0, text.get_text()
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text.get_text()
    assert overlaps(figure, [axes._left_title, *axes.texts]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_axes_are_logarithmic_beyond_a_decade_and_hold_every_mark(figures, plans, kind):
    axes, points = figures[kind].axes[0], Points.of(plans[kind])
    costs = [mark.x for mark in points.all]
    assert axes.get_xscale() == ("log" if max(costs) > 10 * min(costs) else "linear")
    assert axes.get_xscale() == ("log" if kind == "wide" else "linear")
    for mark in points.all:
        assert axes.get_xlim()[0] < mark.x < axes.get_xlim()[1]
        low, high = axes.get_ylim()
        assert low < mark.y - mark.error <= mark.y + mark.error < high


def said(figure: Figure) -> str:
    """Return all texts of a figure."""
    axes = figure.axes[0]
    texts = [axes._left_title, *axes.texts, axes.xaxis.label, axes.yaxis.label]
    return "\n".join(text.get_text() for text in texts).replace("\n", " ")


def test_the_plot_says_what_it_shows(figures, plans):
    rank = plans["limit"].scorer["rank_correlation"]
    text = said(figures["limit"])
    assert "resnet-tiny: accuracy against MACs" in text
    assert (
        f"regression on 20 measured subnets (cross-validated rank correlation {rank:.2f})" in text
    )
    assert "1,000 validation images of the nodes, not test images" in text
    assert "validation accuracy (%)" in text
    assert "multiply-accumulates of one image (millions)" in text
    assert {"smallest", "largest", "random:0"} < set(text.split())
    chosen = plans["limit"].chosen
    assert f"chosen: {chosen.score:.1%} {chosen.costs['macs'] / 1e6:.2f} MMACs" in text
    for kind in ("zero-cost", "macs"):
        assert "no accuracy" in said(figures[kind]) and "%)" not in said(figures[kind])
    assert "at most 10.00 MMACs" in said(figures["both"])  # no line in the plot


def test_a_limit_is_a_line_where_it_can_be_shown(figures):
    def upright(figure: Figure) -> list[float]:
        lines = (line for line in figure.axes[0].lines if line.get_linestyle() == "--")
        return [float(line.get_xdata()[0]) for line in lines]

    assert upright(figures["limit"]) == [10]
    assert upright(figures["both"]) == [0.8]
    assert upright(figures["front"]) == upright(figures["far"]) == []
    assert "limit 10.00 MMACs" in said(figures["limit"])
    assert "limit 1,000.00 MMACs →" in said(figures["far"])


def test_hollow_marks_are_explained_where_there_are_any(figures):
    def legend(kind: str) -> str:
        return " ".join(text.get_text() for text in figures[kind].legends[0].get_texts())

    assert "ladder, predicted; hollow: outside the limits" in legend("limit")
    assert "20 measured subnets, ± standard error; hollow" in legend("limit")
    assert "hollow" not in legend("front")
    assert "front: best predicted at or below a cost" in legend("front")
    assert "front" not in legend("limit")


def test_a_poor_ranking_is_said(plans):
    poor = dataclasses.replace(
        plans["limit"], scorer={"name": "regression", "measured": 20, "rank_correlation": 0.2}
    )
    assert "it ranks poorly" in said(score_plot(poor, LIGHT))


# The drawing of a network


@dataclass(frozen=True)
class LinkedArchitecture(Architecture):
    """Channels of every link of :class:`Linked`."""

    links: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "links", tuple(self.links))


class Own(SearchSpace):
    """A space that is no chain: two linear layers."""

    name = "own"
    architecture = LinkedArchitecture
    genes = (2,)

    def decode(self, choices: Sequence[int]) -> LinkedArchitecture:
        return LinkedArchitecture((8 * (1 + choices[0]),))

    def module(self, arch: Architecture) -> nn.Module:
        assert isinstance(arch, LinkedArchitecture)
        inputs = self.task.in_channels * self.task.image_size**2
        layers = [nn.Linear(inputs, arch.links[0]), nn.Linear(arch.links[0], self.task.num_classes)]
        return nn.Sequential(nn.Flatten(), *layers)


class Links(Chain):
    """Links of 4 or 8 channels, each a 1×1 convolution on 6×5 pixels, and a head of its own."""

    def __init__(self, links: int, classes: int) -> None:
        options = np.arange(2)
        self._segments = (
            *(Segment(f"link{i}", (4, 8), options, np.empty((2, 0))) for i in range(links)),
            Segment("answer", (classes,), np.zeros(1, int), np.empty((1, 0))),
        )

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self._segments

    def blocks(self, segment: int, state: int, option: int) -> tuple[Block, ...]:
        inputs = 3 if segment == 0 else (4, 8)[state]
        outputs = self._segments[segment].options[option]
        shape = (inputs, 6, 5)
        return (Block(f"{inputs}>{outputs}", shape, 30 * inputs * outputs, 1, 1, nn.Identity),)

    def assemble(self, options: Sequence[int]) -> LinkedArchitecture:
        return LinkedArchitecture(tuple((4, 8)[option] for option in options[:-1]))

    def locate(self, arch: Architecture) -> tuple[int, ...]:
        assert isinstance(arch, LinkedArchitecture)
        return (*((4, 8).index(width) for width in arch.links), 0)


class Linked(Own):
    """A chain of somebody's own, not a ResNet."""

    name = "linked"
    genes = (2, 2, 2)

    @property
    def chain(self) -> Chain:
        return Links(len(self.genes), self.task.num_classes)

    def decode(self, choices: Sequence[int]) -> LinkedArchitecture:
        return LinkedArchitecture(tuple((4, 8)[choice] for choice in choices))

    def module(self, arch: Architecture) -> nn.Module:
        assert isinstance(arch, LinkedArchitecture)
        widths = [self.task.in_channels, *arch.links]
        convs = [nn.Conv2d(a, b, 1) for a, b in pairwise(widths)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], self.task.num_classes)]
        return nn.Sequential(*convs, *head)


class LongChain(Linked):
    """More links than can be drawn."""

    name = "long"
    genes = (2,) * 15


def drawn(plan: Plan, name: str, text: str, theme: Theme = LIGHT) -> Figure:
    """Draw a network as if it had been chosen in a plan."""
    space = load_space(name)
    chosen = Entry.of(space.parse(text), Costs(space), name="chosen", score=1.0)
    return network_plot(
        dataclasses.replace(plan, space={**plan.space, "space": name}, chosen=chosen), theme
    )


def outputs(space: SearchSpace, arch: Architecture) -> list[tuple[int, int, int]]:
    """Run the module on the meta device and note what stem and blocks really hand on."""
    with torch.device("meta"):
        module = space.module(arch).eval()
        found: list[tuple[int, int, int]] = []
        for part in (module.stem, *(block for stage in module.stages for block in stage)):
            part.register_forward_hook(lambda *call: found.append(tuple(call[2].shape[1:])))
        module(torch.empty(1, space.in_channels, space.image_size, space.image_size))
    return found


@pytest.mark.parametrize("name", [*RESNETS, NARROW])
@pytest.mark.parametrize("text", ["smallest", "largest", "random:1", "random:2"])
def test_stages_are_what_the_module_hands_on(name, text):
    space = load_space(name)
    assert isinstance(space, ResNetFamily)
    arch = space.parse(text)
    stages = stages_of(space, space.chain, arch)
    shapes = space.shapes(arch)
    shown = [(c, *stage.pixels) for stage in stages for c in stage.channels]
    assert shown == outputs(space, arch)
    assert stages[0].mids == (None,)
    for number, stage in enumerate(stages[1:]):
        assert list(stage.mids) == [
            shapes[f"stages.{number}.{block}.conv1.weight"][0]
            for block in range(len(stage.channels))
        ]
        assert len(stage.channels) + stage.missing == 1 + space.depths[-1]
        assert stage.most == space.widths[number]
    head = math.prod(shapes["head.weight"])
    assert sum(stage.macs for stage in stages) == space.macs(arch) - head


def boxes(figure: Figure) -> list[Rectangle]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def test_boxes_are_as_high_as_their_channels_and_filled_by_their_middle(plans):
    """resnet-tiny: image 3, stem 16, stages 24 and 48 and 96 and 192, head 10; mids 8, 8+8, …."""
    arch = '{"depth":[0,1,0,0],"expand":[[0.33],[0.33,1.0],[0.67],[1.0]]}'
    for theme in (LIGHT, DARK):
        found = boxes(drawn(plans["limit"], "resnet-tiny", arch, theme))
        filled = [box for box in found if box.get_facecolor() == to_rgba(theme.line)]
        dashed = [box for box in found if box.get_facecolor()[3] == 0]
        plain = [box for box in found if box not in filled and box not in dashed]
        assert [round(192 * box.get_height()) for box in plain] == [3, 16, 24, 48, 48, 96, 192, 10]
        assert [round(192 * box.get_height()) for box in filled] == [8, 16, 48, 64, 192]
        assert [round(192 * box.get_height()) for box in dashed] == [24, 96, 192]
        for box in found:  # centred
            assert box.get_y() == pytest.approx(-box.get_height() / 2)


@pytest.mark.parametrize("name", RESNETS)
@pytest.mark.parametrize("text", ["smallest", "random:1", "largest"])
def test_labels_of_a_network_can_be_read(plans, name, text):
    figure = drawn(plans["limit"], name, text)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    texts = [axes._left_title, *axes.texts]
    assert overlaps(figure, texts) == []
    for label in texts:
        box = label.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    spans = sorted((box.get_x(), box.get_x() + box.get_width()) for box in boxes(figure))
    starts = sorted({start for start, _ in spans})
    ends = sorted({end for _, end in spans})
    assert all(end < start for end, start in zip(ends, starts[1:], strict=False))
    space = load_space(name)
    arch = space.parse(text)
    shown = "\n".join(label.get_text() for label in texts)
    assert f"{space.macs(arch) / 1e6:,.2f} MMACs" in shown
    assert COSTS["params"].say(space.params(arch)) in shown
    assert ("dashed" in shown) == (text != "largest")


def test_a_chain_of_ones_own_is_drawn_without_middle_channels(plans):
    space = load_space(LINKED)
    assert space.chain is not None
    arch = LinkedArchitecture((4, 8, 4))
    stages = stages_of(space, space.chain, arch)
    assert [stage.channels for stage in stages] == [(4,), (8,), (4,)]  # the head is none
    assert {stage.pixels for stage in stages} == {(6, 5)}
    assert [(stage.mids, stage.most, stage.missing) for stage in stages] == [((None,), 8, 0)] * 3
    figure = drawn(plans["limit"], LINKED, arch.to_json())
    # The 10 classes are the most here.
    assert [round(10 * box.get_height()) for box in boxes(figure)] == [3, 4, 8, 4, 10]
    shares = [stage.macs / space.macs(arch) for stage in stages]
    assert all(f"MACs {share:.1%}" in said(figure) for share in shares)
    assert "6×5" in said(figure) and "middle" not in said(figure) and "dashed" not in said(figure)
    assert overlaps(figure, figure.axes[0].texts) == []


@pytest.mark.parametrize("name", [OWN, "tests.report.test_searches:LongChain"])
def test_what_cannot_be_drawn_as_boxes_is_a_list_of_blocks(plans, name):
    space = load_space(name)
    figure = drawn(plans["limit"], name, "smallest")
    assert boxes(figure) == []
    text = said(figure)
    if space.chain is None:
        assert f"{space.params(space.smallest):,} parameters" in text
    else:
        assert text.count("reads") == 1 + len(LongChain.genes)
    figure.draw_without_rendering()
    for label in figure.axes[0].texts:
        box = label.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert overlaps(figure, [figure.axes[0]._left_title, *figure.axes[0].texts]) == []


# Files beside a plan


def test_two_pictures_are_written_beside_a_plan(plans, tmp_path):
    files = draw_plan(plans["both"], tmp_path / "plans", "plan-007")
    assert files == [
        tmp_path / "plans" / "plan-007-scores.png",
        tmp_path / "plans" / "plan-007-architecture.png",
    ]
    contents = [file.read_bytes() for file in files]
    assert all(content.startswith(PNG) for content in contents)
    assert contents[0] != contents[1]
    assert sorted((tmp_path / "plans").iterdir()) == sorted(files)
    again = draw_plan(plans["both"], tmp_path / "plans", "plan-007")
    assert [file.read_bytes() for file in again] == contents


def test_a_plan_of_an_unknown_space_writes_nothing(plans, tmp_path):
    plan = dataclasses.replace(plans["limit"], space={"space": "no_such_module:Space"})
    with pytest.raises(ValueError, match="no_such_module"):
        draw_plan(plan, tmp_path / "plans", "plan-001")
    assert not (tmp_path / "plans").exists()


# The page


TEST = {
    "read": "2030-01-02T03:04:05+0000",
    "chosen": {"accuracy": 0.4321, "standard_error": 0.0123, "loss": 1.0, "examples": 1234},
    "ladder": {
        "largest": {"accuracy": 0.5, "standard_error": 0.01, "loss": 1.0, "examples": 1234},
        "smallest": {"accuracy": 0.25, "standard_error": 0.02, "loss": 1.0, "examples": 1234},
    },
}


def put(folder: Path, number: int, plan: Plan, **changes: Any) -> Path:
    """Write a plan as a search does, ``number`` its minute."""
    path = folder / "plans" / f"plan-{number:03d}.json"
    created = f"2030-01-01T00:{number:02d}:00+0000"
    dataclasses.replace(plan, **{"created": created, **changes}).save(path)
    return path


def test_without_plans_there_is_no_section(tmp_path):
    assert searches_section(tmp_path / "plans") == []
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "plan-001.test.json").write_text(json.dumps(TEST))
    assert searches_section(tmp_path / "plans") == []


def test_the_page_tells_a_plan_and_its_test(plans, tmp_path):
    run = run_of(tmp_path)
    plan = with_measured(plans["limit"])
    path = put(run.path, 3, plan)
    path.with_name("plan-003.test.json").write_text(json.dumps(TEST))
    page = Page(write_report(run)["html"])
    assert page.source.index("<h2>Searches") < page.source.index("<h2>The run")
    chosen = plan.chosen
    for text in (
        "plan-003",
        "at most 10.00 MMACs",
        "regression on 20 measured subnets",
        "exact: the score's optimum within the limits is proven, over 20,736 subnets",
        chosen.text,
        f"{COSTS['macs'].say(chosen.costs['macs'])}, {COSTS['params'].say(chosen.costs['params'])}",
        f"{chosen.score:.2%} predicted",
        "50.00% ± 5.00 on the validation images that chose it",
        "43.21% ± 1.23 (standard error) on 1,234 test images",
        "of the weights after round 7",
        "Accuracy on the test split, read 2030-01-02T03:04:05+0000",
    ):
        assert text in page.text, text
    tested = page.tables[-1]
    assert tested[0] == ["subnet", "MMACs", "test accuracy", "images"]
    assert [line[0] for line in tested[1:]] == ["smallest", "chosen", "largest"]  # by MACs
    assert tested[2] == ["chosen", f"{chosen.costs['macs'] / 1e6:.2f}", "43.21% ± 1.23", "1,234"]
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4 and all(image["alt"] for image in images)


def test_without_a_test_nothing_is_said_of_one(plans, tmp_path):
    put(tmp_path, 1, plans["limit"])
    search = Search.read(tmp_path / "plans" / "plan-001.json")
    assert "test accuracy" not in dict(search.facts)
    assert "not test images" in dict(search.facts)["scored by"]
    assert search.line[5] == "–" and not search.test_lines


def test_the_newest_are_drawn_and_all_stand_in_the_table(plans, tmp_path, monkeypatch):
    pictures: list[str] = []
    monkeypatch.setattr(search_page, "_picture", lambda what, draw: pictures.append(what) or "")
    for number in range(1, 8):
        put(tmp_path, number, plans["front" if number % 2 else "zero-cost"])
    (tmp_path / "plans" / "notes.json").write_text("{}")
    (tmp_path / "page.html").write_text("".join(searches_section(tmp_path / "plans")))
    page = Page(tmp_path / "page.html")
    assert [line[0] for line in page.table("plan")] == [f"plan-{n:03d}" for n in range(7, 0, -1)]
    assert page.table("plan")[1][6] == "evolution" and page.table("plan")[0][6] == "exact"
    assert page.table("plan")[0][1] == "front against MACs"
    told = [line.split("<")[0] for line in page.source.split("<h3>")[1:]]
    assert told == [f"plan-{n:03d}" for n in range(7, 2, -1)]
    assert len(pictures) == 10


def test_plans_are_ordered_by_when_they_were_made(plans, tmp_path):
    put(tmp_path, 1, plans["limit"], created="2030-01-09T00:00:00+0000")
    for number in (2, 3):
        put(tmp_path, number, plans["limit"], created="2030-01-08T00:00:00+0000")
    searches, problems = read_searches((tmp_path / "plans").glob("*.json"))
    assert [search.name for search in searches] == ["plan-001", "plan-003", "plan-002"]
    assert problems == []


def test_a_damaged_plan_is_named_and_the_others_are_told(plans, tmp_path, monkeypatch):
    monkeypatch.setattr(search_page, "_picture", lambda what, draw: "")
    run = run_of(tmp_path)
    put(run.path, 1, plans["limit"])
    for number, text in ((2, '{"format": 1,'), (3, "[]"), (4, '{"format": 99}'), (5, "\ud800")):
        file = run.path / "plans" / f"plan-{number:03d}.json"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
    page = Page(write_report(run)["html"])
    for number in (2, 3, 4, 5):
        assert f"plan-{number:03d}.json" in page.text
    assert page.text.count("Unreadable") == 4
    assert "at most 10.00 MMACs" in page.text


@pytest.mark.parametrize("wrong", [None, 3, "text", [1], {"a": []}, float("nan")])
def test_no_wrong_value_in_a_plan_breaks_the_report(plans, tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(search_page, "_picture", lambda what, draw: "")
    whole = json.loads(json.dumps(dataclasses.asdict(plans["both"])))
    (tmp_path / "plans").mkdir()
    fields = [(key,) for key in whole] + [
        (part, key) for part in ("chosen", "scorer", "seconds", "data") for key in whole[part]
    ]
    for number, keys in enumerate(fields):
        damaged = json.loads(json.dumps(whole))
        part = damaged
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = wrong
        path = tmp_path / "plans" / f"plan-{number:03d}.json"
        path.write_text(json.dumps({"format": 1, **damaged}))
    page = "".join(searches_section(tmp_path / "plans"))
    named = page.count("Unreadable") + page.count("<td><bdi>plan-")
    assert named == len(fields)
    assert page.count("Unreadable") > 3


def test_a_picture_that_cannot_be_made_says_why(plans, tmp_path):
    space = {**plans["limit"].space, "space": "no-such-space"}
    put(tmp_path, 1, plans["limit"], space=space, limits={"macs": float("nan")})
    page = "".join(searches_section(tmp_path / "plans"))
    assert "<img" not in page
    assert "cost: cannot be drawn (a cost, score or limit is no number)" in page
    assert "blocks: cannot be drawn" in page and "no-such-space" in page
    assert plans["limit"].chosen.text.replace('"', "&quot;") in page


@pytest.mark.parametrize("text", ["{", "[]", '{"chosen": {}}', '{"chosen": {"accuracy": "a"}}'])
def test_a_damaged_test_is_said_and_the_plan_is_told(plans, tmp_path, text):
    path = put(tmp_path, 1, plans["limit"])
    path.with_name("plan-001.test.json").write_text(text)
    search = Search.read(path)
    facts = dict(search.facts)
    assert facts["test accuracy"].startswith("plan-001.test.json is damaged")
    assert facts["chosen"] == plans["limit"].chosen.text
    assert not search.test_lines and search.line[5] == "unreadable"


def test_a_damaged_plan_raises_one_sentence_with_its_name(plans, tmp_path):
    path = put(tmp_path, 1, plans["limit"], scorer={})
    with pytest.raises(PlanError, match=r"plan-001\.json' is damaged"):
        Search.read(path)


def test_texts_of_strangers_in_a_plan_are_only_text(plans, tmp_path):
    hostile = "<script>alert('$x_{')</script>"
    entries = tuple(dataclasses.replace(entry, name=hostile) for entry in plans["limit"].ladder)
    changes = {"ladder": entries, "created": hostile, "latency": {hostile: hostile}}
    path = put(tmp_path, 1, plans["limit"], **changes)
    path.with_name("plan-001.test.json").write_text(
        json.dumps({**TEST, "ladder": {hostile: TEST["chosen"]}, "read": hostile})
    )
    (tmp_path / "page.html").write_text("".join(searches_section(tmp_path / "plans")))
    page = Page(tmp_path / "page.html")
    assert not any(tag == "script" for tag, _ in page.tags)
    assert f"{hostile} {hostile}" in page.text and f"read {hostile}" in page.text
    assert hostile in [line[0] for line in page.table("subnet")]
    assert sum(tag == "img" for tag, _ in page.tags) == 2


def test_every_cost_of_a_search_has_its_texts():
    from superfednas.report import search_plots, searches

    assert set(COSTS) == set(searches.SHORT) == set(search_plots._TITLES)
