"""Plans, and the way from a request to one."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from superfednas.nas.cost.costs import Costs, NothingFits
from superfednas.nas.engine.evolution import EvolutionSettings
from superfednas.nas.pipeline import Request, make_plan
from superfednas.nas.plan import Entry, Plan, PlanError
from superfednas.nas.score.measured import Measured, ScoreBook
from superfednas.nas.score.regression import Regression, design
from superfednas.nas.score.zero_cost import Fitness
from superfednas.supernet import Architecture
from superfednas.supernet.ladder import ladder
from superfednas.tasks import Tally
from superfednas.tasks.images import ACCURACY, LOSS
from tests.support.pictures import accuracy, right
from tests.support.searching import Dice, mlp_space
from tests.support.strategies import space

IMAGES = 1000
LIMITS = {"macs": 1.0e6}
FEW = EvolutionSettings(population=6, generations=3)


def law(arch: Architecture) -> Tally:
    """Give accuracies that rise with MACs and parameters."""
    of = space()
    share = 0.5 + of.macs(arch) / 1e7 + of.params(arch) / 1e7
    return right(IMAGES, round(share * IMAGES), 1 - share)


def noise(arch: Architecture) -> Tally:
    rng = np.random.default_rng(abs(hash(arch)) % 2**32)
    return right(IMAGES, int(rng.integers(0, IMAGES)), 1.0)


class Oracle(Measured):
    """Measures by a law; notes what it is asked and what of it was new."""

    def __init__(self, of: Callable[[Architecture], Tally] = law) -> None:
        self.book = ScoreBook(None, weights="", data="")
        self.metric = ACCURACY
        self.asked: list[list[Architecture]] = []
        self.ran: list[Architecture] = []
        self._law = of

    def measure(
        self,
        archs: Sequence[Architecture],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Tally]:
        self.asked.append(list(archs))
        new = [arch for arch in dict.fromkeys(archs) if arch not in self.book]
        for number, arch in enumerate(new, start=1):
            self.ran.append(arch)
            self.book.put(arch, self._law(arch))
            if progress is not None:
                progress(number, len(new))
        return [self.book[arch] for arch in archs]


class Listener:
    """Notes what a search says."""

    def __init__(self) -> None:
        self.measured: list[tuple[int, int, str]] = []
        self.notes: list[str] = []

    def measuring(self, done: int, todo: int, why: str) -> None:
        self.measured.append((done, todo, why))

    def note(self, text: str) -> None:
        self.notes.append(text)


def plain(plan: Plan) -> dict[str, Any]:
    """Return a plan without what clocks say."""
    return dataclasses.asdict(dataclasses.replace(plan, seconds={}, created=""))


def parsed(entry: Entry) -> Architecture:
    return space().parse(entry.text)


# Plans


@functools.cache
def sample_plan() -> Plan:
    return make_plan(
        Request(limits=LIMITS, against="params", subnets=20),
        Costs(space(), Dice(space())),
        measured=Oracle(),
        ladder=ladder(space()),
        origin={"run": "/runs/1", "weights": "w" * 64, "rounds": 3, "data": {"images": 7}},
    )


def test_a_plan_comes_back(tmp_path: Path) -> None:
    plan, path = sample_plan(), tmp_path / "deep" / "plan.json"
    plan.save(path)
    again = Plan.load(path)
    assert again == plan
    assert Plan.load(str(path)) == plan
    assert plan.front and plan.ladder and plan.measured
    assert [p.name for p in path.parent.iterdir()] == ["plan.json"]
    assert json.loads(path.read_text())["format"] == 1
    for entry in (again.chosen, *again.front, *again.ladder, *again.measured):
        assert json.loads(parsed(entry).to_json()) == entry.architecture
        assert parsed(entry).to_json() == entry.text


def test_a_plan_is_never_overwritten(tmp_path: Path) -> None:
    plan, path = sample_plan(), tmp_path / "plan.json"
    path.write_text("mine")
    with pytest.raises(PlanError, match="exists already, and nothing is overwritten") as caught:
        plan.save(path)
    assert str(path) in str(caught.value)
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"[]", b"7", b'"plan"', b"null", b"{}", b"\xff\xfe", b'{"weights": "w"}'],
)
def test_foreign_files_are_no_plans(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match="is no plan of this project") as caught:
        Plan.load(path)
    assert str(path) in str(caught.value)


def test_no_file_and_a_folder_are_no_plans(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "is no plan of"), (tmp_path / "missing.json", "no such file")):
        with pytest.raises(PlanError, match=why):
            Plan.load(path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"format": 2}))
    with pytest.raises(PlanError, match="has plan format 2; this version reads 1"):
        Plan.load(path)


@pytest.mark.parametrize(
    "damage",
    [
        {"chosen": None},
        {"chosen": {"architecture": {}}},
        {"chosen": {"architecture": {}, "costs": {}, "colour": "red"}},
        {"front": 3},
        {"measured": [3]},
        {"surprise": 1},
    ],
)
def test_damaged_plans_are_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    path = tmp_path / "plan.json"
    sample_plan().save(path)
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | damage))
    with pytest.raises(PlanError, match="is damaged") as caught:
        Plan.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("missing", ["chosen", "front", "weights", "seed"])
def test_plans_that_lack_something_are_refused(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "plan.json"
    sample_plan().save(path)
    fields = json.loads(path.read_text())
    del fields[missing]
    path.write_text(json.dumps(fields))
    with pytest.raises(PlanError, match=f"is damaged: .*{missing}"):
        Plan.load(path)


# Requests


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"score": "luck"}, "score = 'luck': must be one of regression, measured, zero-cost, macs"),
        ({"engine": "magic"}, "engine = 'magic': must be one of auto, exact, evolution"),
        ({"limits": {"flops": 1}}, "cost 'flops': must be one of macs, params, bytes, memory, lat"),
        ({"against": "joules"}, "cost 'joules': must be one of"),
        ({"limits": {"macs": 0}}, "max-macs = 0: must be above 0"),
        ({"limits": {"latency": float("nan")}}, "max-latency = nan: must be above 0"),
        ({"subnets": 7}, "subnets = 7: must be at least 8"),
        ({"refine": -1}, "refine = -1: must be at least 0"),
        ({"winners": 0}, "winners = 0: must be at least 1"),
    ],
)
def test_wrong_requests(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Request(**wrong)


# From a request to a plan


@pytest.mark.parametrize("score", ["regression", "measured"])
def test_nothing_is_measured_where_nothing_fits(score: str) -> None:
    oracle = Oracle()
    with pytest.raises(NothingFits) as caught:
        make_plan(Request({"macs": 10}, score=score), Costs(space()), measured=oracle)
    assert caught.value.nearest == {"macs": space().macs(space().smallest)}
    assert not oracle.asked


@pytest.mark.parametrize("request_", [{"limits": {"latency": 1.0}}, {"against": "latency"}])
def test_nothing_is_measured_where_latency_cannot_be_told(request_: dict[str, Any]) -> None:
    oracle = Oracle()
    with pytest.raises(ValueError, match="latency cannot be told without a latency table"):
        make_plan(Request(**request_), Costs(space()), measured=oracle)
    assert not oracle.asked


@pytest.mark.parametrize("score", ["regression", "measured"])
def test_measuring_needs_images(score: str) -> None:
    with pytest.raises(ValueError, match=f"score = '{score}' needs a trained supernet and images"):
        make_plan(Request(score=score), Costs(space()))


def test_a_plan_by_regression() -> None:
    oracle, listener = Oracle(), Listener()
    request = Request(LIMITS, subnets=24, winners=5, refine=2, seed=4)
    costs = Costs(space())
    origin = {"run": "here", "weights": "abc", "rounds": 9, "space": {"space": "resnet-tiny"}}
    plan = make_plan(
        request, costs, measured=oracle, ladder=ladder(space()), origin=origin, progress=listener
    )
    assert {name: getattr(plan, name) for name in origin} == origin
    assert plan.limits == LIMITS and plan.against == "" and plan.seed == 4
    assert plan.exact and plan.engine == "exact" and plan.looked_at == 20_736
    assert plan.seconds.keys() == {"scoring", "search"} and plan.created
    assert not plan.front and not listener.notes

    # The design first, then winners that were not measured before; all of it in the plan.
    assert oracle.asked[0] == design(space(), 24, seed=4)
    *refinements, optimum = oracle.asked[1:]
    assert 1 <= len(refinements) <= 2 and len(optimum) == 1
    for number, winners in enumerate(refinements, start=1):
        before = [arch for asked in oracle.asked[:number] for arch in asked]
        assert winners and len(winners) <= 5
        assert not set(winners) & set(before)
        assert all(costs.fits(arch, LIMITS) for arch in winners)
    assert len(oracle.ran) == len(set(oracle.ran)) == plan.scorer["measured"]
    assert [parsed(entry) for entry in plan.measured] == oracle.ran
    assert all(entry.measured and entry.score is None for entry in plan.measured)
    assert plan.scorer["name"] == "regression" and plan.scorer["rank_correlation"] > 0.9
    assert listener.measured[23] == (24, 24, "subnets measured")

    # The chosen one is the best of all by the last regression, and nearly so by the law.
    arch = parsed(plan.chosen)
    assert plan.chosen.name == "chosen" and plan.chosen.costs == costs.all(arch)
    assert costs.fits(arch, LIMITS)
    assert plan.chosen.score == pytest.approx(accuracy(law(arch)), abs=0.01)
    rng = np.random.default_rng(0)
    others = [a for a in (space().sample(rng) for _ in range(2000)) if costs.fits(a, LIMITS)]
    assert accuracy(law(arch)) >= max(accuracy(law(a)) for a in others) - 0.005


def test_the_ladder_of_a_plan() -> None:
    rungs = ladder(space())
    plan = make_plan(
        Request(LIMITS, subnets=8, refine=0), Costs(space()), measured=Oracle(), ladder=rungs
    )
    assert [entry.name for entry in plan.ladder] == list(rungs)
    for entry, arch in zip(plan.ladder, rungs.values(), strict=True):
        assert parsed(entry) == arch and entry.score is not None
    ends = [entry for entry in plan.ladder if entry.name in ("smallest", "largest")]
    assert all(entry.measured is not None for entry in ends)  # a design holds both ends
    assert ends[0].measured == {
        "accuracy": accuracy(law(space().smallest)),
        "loss": law(space().smallest).value(LOSS),
        "examples": IMAGES,
    }


@pytest.mark.parametrize("against", ["macs", "memory"])
def test_a_plan_with_a_front(against: str) -> None:
    costs = Costs(space())
    limits = {"params": 400_000.0}
    request = Request(limits, against=against, subnets=16, winners=3)
    oracle = Oracle()
    plan = make_plan(request, costs, measured=oracle)
    assert plan.against == against and len(plan.front) > 1
    scores = [entry.score or 0.0 for entry in plan.front]
    spent = [entry.costs[against] for entry in plan.front]
    assert spent == sorted(set(spent)) and scores == sorted(set(scores))
    assert all(costs.fits(parsed(entry), limits) for entry in plan.front)
    assert plan.chosen.score is not None and plan.chosen.measured is not None
    taken = (plan.chosen.score + plan.chosen.measured["accuracy"]) / 2
    best = plan.front[-1]  # was measured, so that the two can be compared
    assert best.score is not None and best.measured is not None
    assert taken >= (best.score + best.measured["accuracy"]) / 2
    measured = {entry.text: entry.measured for entry in plan.measured}
    assert [entry.measured for entry in plan.front] == [measured.get(e.text) for e in plan.front]
    assert all(len(winners) <= 3 for winners in oracle.asked[1:])


def test_winners_of_a_front_are_spread_over_it() -> None:
    """The cheapest and the dearest that were not measured are among them."""
    oracle, costs = Oracle(), Costs(space())
    request = Request(against="macs", subnets=16, winners=4, refine=1)
    plan = make_plan(dataclasses.replace(request, refine=0), costs, measured=oracle)
    known = set(oracle.ran)
    new = [parsed(entry) for entry in plan.front if parsed(entry) not in known]
    assert len(new) > 8
    make_plan(request, costs, measured=oracle)
    winners = oracle.asked[-2]  # the optimum comes last
    assert len(winners) == len(set(winners)) == 4
    assert (winners[0], winners[-1]) == (new[0], new[-1])


@pytest.mark.parametrize("refine", [0, 1])
def test_refinements_can_be_left_out(refine: int) -> None:
    oracle = Oracle()
    make_plan(Request(LIMITS, subnets=12, refine=refine), Costs(space()), measured=oracle)
    assert len(oracle.asked) == 1 + 2 * refine  # with it, the optimum is measured in the end


@pytest.mark.parametrize("score", ["regression", "measured"])
def test_a_plan_is_repeatable_whatever_was_measured_before(score: str) -> None:
    request = Request(
        LIMITS, against="macs" if score == "regression" else "", score=score, evolution=FEW
    )
    fresh, full = Oracle(), Oracle()
    full.measure([space().parse(f"random:{seed}") for seed in range(50)])
    full.measure(design(space(), 40, request.seed)[:7])
    ran = len(full.ran)
    first = make_plan(request, Costs(space()), measured=fresh)
    second = make_plan(request, Costs(space()), measured=full)
    assert plain(first) == plain(second)
    assert len(full.ran) - ran <= len(fresh.ran) - (7 if score == "regression" else 0)
    other = make_plan(dataclasses.replace(request, seed=1), Costs(space()), measured=Oracle())
    assert plain(other)["measured"] != plain(first)["measured"]


def test_poor_predictions_are_said_once() -> None:
    listener = Listener()
    plan = make_plan(
        Request(LIMITS, subnets=20), Costs(space()), measured=Oracle(noise), progress=listener
    )
    assert plan.scorer["rank_correlation"] < 0.5
    notes = [note for note in listener.notes if note.startswith("warning")]
    assert len(notes) == 1
    accuracies = [entry.measured["accuracy"] for entry in plan.measured if entry.measured]
    assert "warning: predictions rank subnets poorly (rank correlation " in notes[0]
    assert f"run from {min(accuracies):.1%} to {max(accuracies):.1%} on {IMAGES} " in notes[0]


@pytest.mark.parametrize("refine", [0, 2])
def test_a_subnet_that_measured_far_better_is_taken(refine: int) -> None:
    """No regression on slots can know of one odd subnet; those beyond the limits do not count."""
    costs = Costs(space())
    request = Request(LIMITS, subnets=24, refine=refine)
    designed = design(space(), 24, request.seed)
    odd = next(arch for arch in designed[2:] if costs.fits(arch, LIMITS))
    odder = next(arch for arch in designed[2:] if not costs.fits(arch, LIMITS))
    gifts = {odd: 0.3, odder: 0.35}

    def gifted(arch: Architecture) -> Tally:
        found = law(arch)
        return right(IMAGES, found.sums["accuracy"] + IMAGES * gifts.get(arch, 0.0), 1.0)

    listener = Listener()
    plan = make_plan(request, costs, measured=Oracle(gifted), progress=listener)
    assert parsed(plan.chosen) == odd
    assert sum("measured better" in note for note in listener.notes) == 1
    assert plan.exact


@pytest.mark.parametrize("blur", [0.0, 0.05])
def test_an_optimum_that_nobody_measured_must_be_ahead_by_the_error(blur: float) -> None:
    """The highest of very many predictions is high by luck; scores of nodes add no measurement."""
    costs, rng = Costs(space()), np.random.default_rng(0)
    book = ScoreBook(None, weights="", data="nodes")
    for arch in design(space(), 40, 0):
        share = accuracy(law(arch)) + blur * rng.normal()
        book.put(arch, right(IMAGES, share * IMAGES, 1.0))
    regression = Regression(space(), {arch: accuracy(found) for arch, found in book.items()})
    plan = make_plan(Request(LIMITS), costs, book=book)
    best = max(
        (float(regression([arch])[0]) + accuracy(found)) / 2
        for arch, found in book.items()
        if costs.fits(arch, LIMITS)
    )
    assert plan.chosen.score is not None and (plan.chosen.measured is None) == (blur == 0.0)
    if plan.chosen.measured is None:
        assert plan.chosen.score - regression.error >= best
    else:
        assert (plan.chosen.score + plan.chosen.measured["accuracy"]) / 2 == pytest.approx(best)


def test_of_two_measured_subnets_the_better_mean_is_taken() -> None:
    """Without peculiarities the optimum of the prediction stands, and nothing is said of it."""
    listener = Listener()
    plan = make_plan(
        Request(LIMITS, subnets=40), Costs(space()), measured=Oracle(), progress=listener
    )
    known = [e for e in plan.measured if Costs(space()).fits(parsed(e), LIMITS) and e.measured]
    regressed = Regression(
        space(), {parsed(e): e.measured["accuracy"] for e in plan.measured if e.measured}
    )
    means = [
        (float(regressed([parsed(e)])[0]) + e.measured["accuracy"]) / 2 for e in known if e.measured
    ]
    assert plan.chosen.measured is not None and plan.chosen.score is not None
    assert (plan.chosen.score + plan.chosen.measured["accuracy"]) / 2 >= max(means) - 0.002


def test_equal_scores_are_poor_predictions() -> None:
    listener = Listener()
    oracle = Oracle(lambda _: right(2, 1, 1.0))
    plan = make_plan(Request(subnets=8), Costs(space()), measured=oracle, progress=listener)
    assert plan.scorer["rank_correlation"] == 0.0
    assert "hardly differ" in listener.notes[0]


# Scores that need no measuring, or only measuring


def test_a_plan_by_macs() -> None:
    plan = make_plan(Request(LIMITS, score="macs"), Costs(space()), ladder=ladder(space()))
    assert plan.scorer == {"name": "macs", "measured": 0}
    assert plan.exact and not plan.measured and plan.chosen.measured is None
    assert plan.chosen.score == plan.chosen.costs["macs"] <= LIMITS["macs"]
    assert all(entry.score == entry.costs["macs"] for entry in plan.ladder)


def test_a_plan_by_the_zero_cost_fitness() -> None:
    request = Request(LIMITS, score="zero-cost", evolution=FEW)
    plan = make_plan(request, Costs(space()), ladder=ladder(space()))
    assert plan.scorer == {"name": "zero-cost", "measured": 0}
    assert not plan.exact and plan.engine == "evolution" and plan.looked_at <= 18
    assert plan.chosen.score == Fitness(space())([parsed(plan.chosen)])[0]
    assert plain(plan) == plain(make_plan(request, Costs(space()), ladder=ladder(space())))


def test_a_plan_by_measuring_every_candidate() -> None:
    oracle, listener = Oracle(), Listener()
    request = Request(LIMITS, score="measured", evolution=FEW)
    plan = make_plan(
        request, Costs(space()), measured=oracle, ladder=ladder(space()), progress=listener
    )
    assert not plan.exact and plan.engine == "evolution"
    assert plan.looked_at == plan.scorer["measured"] == len(oracle.ran) == len(plan.measured) <= 18
    assert plan.scorer["name"] == "measured"
    assert plan.chosen.score == max(accuracy(law(arch)) for arch in oracle.ran)
    assert plan.chosen.measured is not None
    assert plan.chosen.measured["accuracy"] == plan.chosen.score
    for entry in plan.ladder:  # no rung is measured for the plan's sake
        assert entry.score is None
        assert (entry.measured is not None) == (parsed(entry) in oracle.ran)
    assert {why for _, _, why in listener.measured} == {"candidates measured"}


def test_measuring_every_candidate_is_bounded_by_default() -> None:
    oracle = Oracle()
    make_plan(Request(LIMITS, score="measured"), Costs(space()), measured=oracle)
    assert 20 <= len(oracle.ran) <= 20 * 10


def test_scores_that_are_there_stand_in_place_of_measuring() -> None:
    book = ScoreBook(None, weights="w", data="nodes")
    scored = design(space(), 20, 7)
    for arch in scored:
        book.put(arch, law(arch))
    plan = make_plan(Request(LIMITS, subnets=8, refine=3), Costs(space()), book=book)
    assert [parsed(entry) for entry in plan.measured] == scored
    assert plan.scorer["name"] == "regression" and plan.scorer["measured"] == 20
    assert Costs(space()).fits(parsed(plan.chosen), LIMITS)


def test_too_few_scores_are_refused() -> None:
    book = ScoreBook(None, weights="w", data="nodes")
    for arch in design(space(), 7, 0):
        book.put(arch, law(arch))
    with pytest.raises(ValueError, match="at least 8 measured subnets, there are 7"):
        make_plan(Request(LIMITS), Costs(space()), book=book)


def test_a_space_without_a_chain() -> None:
    of = mlp_space()
    book = ScoreBook(None, weights="", data="")
    for arch in design(of, 12, 0):
        book.put(arch, right(100_000, of.params(arch), 1.0))
    limits = {"macs": float(of.macs(of.largest)) / 2}
    request = Request(limits, evolution=FEW)
    plan = make_plan(request, Costs(of), book=book)
    assert plan.engine == "evolution" and not plan.exact
    assert plan.chosen.costs["macs"] <= limits["macs"]
    assert plan.chosen.costs.keys() == {"macs", "params", "bytes", "memory"}
    oracle = Oracle()
    with pytest.raises(ValueError, match="the space 'mlp' is no chain of blocks; use evolution"):
        make_plan(Request(limits, engine="exact"), Costs(of), measured=oracle)
    assert not oracle.asked


@pytest.mark.parametrize("count", [np.int64(1_000_000), np.float32(1_000_000), 1_000_000])
def test_limits_may_be_any_numbers(count: Any, tmp_path: Path) -> None:
    plan = make_plan(Request({"macs": count}, score="macs"), Costs(space()))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").limits == {"macs": 1e6}


def test_a_thinned_search_is_no_proof_and_no_evolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superfednas.nas.front._MOST", 3)
    plan = make_plan(Request(LIMITS, score="macs"), Costs(space()))
    assert not plan.exact and plan.engine == "exact"
    assert Costs(space()).fits(parsed(plan.chosen), LIMITS)
