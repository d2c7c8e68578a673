"""Costs by name: a user's own is told, tabled and kept by a search as the others are."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.nas.cost.cost import COSTS, Cost, Macs, add_costs, cost
from superfednas.nas.cost.costs import Costs, NothingFits
from superfednas.nas.engine.choose import search, search_front
from superfednas.supernet.chain import Block
from tests.support.searching import Additive, ToySpace, every
from tests.support.strategies import seeds

toys = st.builds(ToySpace, seeds, st.integers(1, 3))


class Charge(Cost):
    """A sum of tenths, which floats add up to other last digits in another order."""

    name = "charge"
    title, unit, scale = "millijoules an image", "mJ", 1e-3
    base = 0.3

    def of_block(self, block: Block) -> float:
        return 0.1 * block.macs + 0.7 * block.params


class Heat(Cost):
    """A peak that is no whole number, above a base."""

    name = "heat"
    title, unit = "hottest block", "K"
    peak = True
    base = 20.0

    def of_block(self, block: Block) -> float:
        return 0.1 * block.activations


class Nameless(Cost):
    title, unit = "nothing", "1"

    def of_block(self, block: Block) -> float:
        return 0.0


class Shouted(Nameless):
    name = "LOUD"


class Taken(Nameless):
    name = "macs"


class Elsewhere:
    class Charge(Nameless):
        name = "charge"


class Unfinished(Cost):
    name = title = unit = "unfinished"


Another = Elsewhere.Charge


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add both to the costs that there are, for one test."""
    for name, kind in (("charge", Charge()), ("heat", Heat())):
        monkeypatch.setitem(COSTS, name, kind)


@settings(max_examples=60, deadline=None)
@given(of=toys)
def test_tables_add_up_to_what_a_network_costs(of: ToySpace) -> None:
    costs = Costs(of)
    assert costs.names == ("macs", "params", "bytes", "memory", "charge", "heat")
    options = every(of.chain)
    archs = [of.chain.assemble(row) for row in options]
    charge = of.chain.gather(costs.table("charge"), options).sum(axis=0) + costs.base("charge")
    heat = of.chain.gather(costs.table("heat"), options).max(axis=0) + costs.base("heat")
    assert charge == pytest.approx([costs.of("charge", arch) for arch in archs])
    assert heat == pytest.approx([costs.of("heat", arch) for arch in archs])
    assert costs.least("charge") == pytest.approx(charge.min())
    assert costs.least("heat") == pytest.approx(heat.min())


@settings(max_examples=80, deadline=None)
@given(of=toys, seed=seeds, share=st.floats(0, 1), both=st.booleans())
def test_a_search_keeps_a_cost_of_ones_own(
    of: ToySpace, seed: int, share: float, both: bool
) -> None:
    costs, scorer = Costs(of), Additive(of, seed)
    archs = [of.chain.assemble(row) for row in every(of.chain)]
    limits = {}
    for name in ("charge", "heat") if both else ("charge",):
        values = [costs.of(name, arch) for arch in archs]
        limits[name] = float(np.quantile(values, share, method="lower"))  # one keeps it exactly
    fitting = [arch for arch in archs if costs.fits(arch, limits)]
    if not fitting:
        with pytest.raises(NothingFits):
            search(scorer, costs, limits)
        return
    found = search(scorer, costs, limits)
    assert found.exact and costs.fits(found.networks[0][0], limits)
    assert found.networks[0][1] == pytest.approx(max(scorer(fitting)))


@settings(max_examples=30, deadline=None)
@given(of=toys, seed=seeds, name=st.sampled_from(["charge", "heat"]))
def test_a_front_against_a_cost_of_ones_own(of: ToySpace, seed: int, name: str) -> None:
    costs, scorer = Costs(of), Additive(of, seed)
    archs = [of.chain.assemble(row) for row in every(of.chain)]
    front = search_front(scorer, costs, name, {}).networks
    spent = [costs.of(name, arch) for arch, _ in front]
    scores = [score for _, score in front]
    assert all(a < b for a, b in itertools.pairwise(spent))
    assert all(a < b for a, b in itertools.pairwise(scores))
    for arch, score in zip(archs, scorer(archs), strict=True):
        near = [s for s, cost in zip(scores, spent, strict=True)
                if cost <= costs.of(name, arch) * (1 + 1e-9)]  # fmt: skip
        assert max(near) >= score - 1e-9


def test_what_cannot_be_kept_is_said_in_its_own_unit() -> None:
    costs = Costs(ToySpace(0))
    with pytest.raises(NothingFits, match=r"max-charge = [\d.]+ \(asked: 0\.1\)") as caught:
        costs.check({"charge": 0.1})
    costs.check(caught.value.nearest)
    assert COSTS["charge"].say(0.0042) == "4.20 mJ"
    assert costs.own()["charge"] == {"title": "millijoules an image", "unit": "mJ", "scale": 1e-3}
    assert set(costs.own()) == {"charge", "heat"}


def test_costs_are_added_by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(COSTS, "charge")
    with pytest.raises(ValueError, match="cost 'charge': must be one of macs, params"):
        cost("charge")
    add_costs("")
    assert "charge" not in COSTS
    add_costs(f"{__name__}:Charge, {__name__}:Heat")
    add_costs(f"{__name__}:Charge")  # once more is no harm
    assert isinstance(cost("charge"), Charge) and isinstance(cost("heat"), Heat)
    assert isinstance(cost("macs"), Macs)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Nowhere", "cannot be imported"),
        ("ToySpace", "is no subclass of superfednas.nas.cost.cost.Cost"),
        ("Nameless", "lacks name"),
        ("Unfinished", "lacks of_block"),
        ("Shouted", "name = 'LOUD': must be lower-case letters"),
        ("Taken", "there is a cost 'macs' already"),
        ("Another", "there is a cost 'charge' already"),
    ],
)
def test_a_class_that_is_no_cost(name: str, sentence: str) -> None:
    known = dict(COSTS)
    with pytest.raises(ValueError, match=sentence):
        add_costs(f"{__name__}:{name}")
    assert known == COSTS
