"""Costs one network at a time, as tables, and what is possible at all."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.nas.cost.cost import BYTES, COSTS, FILE
from superfednas.nas.cost.costs import Costs, NothingFits
from superfednas.supernet import SearchSpace
from tests.support.searching import Dice, ToySpace, every, mlp_space
from tests.support.spaces import CROWDED, NARROW
from tests.support.strategies import architectures, seeds, space

toys = st.builds(ToySpace, seeds, st.integers(1, 4))
Spent = dict[str, np.ndarray]


def spent(costs: Costs) -> Spent:
    """Return every cost of every network of a space, one network at a time."""
    assert costs.space.chain is not None
    archs = [costs.space.chain.assemble(options) for options in every(costs.space.chain)]
    return {name: np.array([costs.of(name, arch) for arch in archs]) for name in costs.names}


@functools.cache
def tiny() -> tuple[Costs, Spent]:
    """Return resnet-tiny with a latency by the die, and what its 20,736 networks cost."""
    of = space()
    assert of.chain is not None
    costs, options = Costs(of, Dice(of), batch=2), every(of.chain)
    found = {
        name: of.chain.gather(costs.table(name), options).sum(axis=0) + costs.base(name)
        for name in costs.names
        if name != "memory"
    }
    return costs, found | {"memory": of.chain.gather(costs.table("memory"), options).max(axis=0)}


# One network


def test_costs_of_a_network() -> None:
    of = space()
    latency = Dice(of)
    costs, arch = Costs(of, latency, batch=3), of.parse("random:1")
    assert costs.all(arch) == {
        "macs": of.macs(arch),
        "params": of.params(arch),
        "bytes": 50_000 + 4 * of.params(arch),
        "memory": 4 * of.activations(arch),
        "latency": latency.predict(arch, 3),
    }
    assert tuple(COSTS) == costs.names == tuple(costs.all(arch))
    assert Costs(of).names == ("macs", "params", "bytes", "memory")
    assert set(Costs(of).all(arch)) == set(Costs(of).names)


def test_without_a_table_there_is_no_latency() -> None:
    costs = Costs(space())
    for ask in (
        lambda: costs.of("latency", space().smallest),
        lambda: costs.least("latency"),
        lambda: costs.check({"latency": 1.0}),
        lambda: costs.sums({"latency": 1.0}),
    ):
        with pytest.raises(ValueError, match="latency cannot be told without a latency table"):
            ask()


@pytest.mark.parametrize("latency", [None, Dice(space())])
def test_a_cost_that_is_none(latency: Dice | None) -> None:
    costs = Costs(space(), latency)
    with pytest.raises(ValueError, match="cost 'flops'"):
        costs.of("flops", space().smallest)
    with pytest.raises(ValueError, match="cost 'flops'"):
        costs.check({"flops": 1.0})
    with pytest.raises(ValueError, match="cost 'flops'"):
        costs.table("flops")


def test_fits() -> None:
    costs, arch = Costs(space()), space().smallest
    macs = space().macs(arch)
    assert costs.fits(arch, {})
    assert costs.fits(arch, {"macs": macs, "params": np.inf})
    assert not costs.fits(arch, {"macs": macs - 1, "params": np.inf})
    assert not costs.fits(arch, {"params": np.inf, "memory": 4 * space().activations(arch) - 1})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("macs", 2_345_678, "2.35 MMACs"),
        ("params", 1_500_000, "1.50 M parameters"),
        ("bytes", 6_000_000, "6.00 MB"),
        ("memory", 2_048, "2.05 kB"),
        ("latency", 1.5, "1.50 ms"),
    ],
)
def test_costs_in_words(name: str, value: float, said: str) -> None:
    assert COSTS[name].say(value) == said


# Tables


@pytest.mark.parametrize("name", ["resnet-tiny", NARROW, CROWDED])
@settings(max_examples=20, deadline=None)
@given(data=st.data(), batch=st.integers(1, 4))
def test_tables_add_up_to_a_networks_costs(name: str, data: st.DataObject, batch: int) -> None:
    of = space(name)
    assert of.chain is not None
    arch = data.draw(architectures(of))
    costs = Costs(of, Dice(of), batch)
    options = np.array([of.chain.locate(arch)])
    for cost in ("macs", "params", "bytes", "latency"):
        total = costs.base(cost) + float(of.chain.gather(costs.table(cost), options).sum())
        assert total == pytest.approx(costs.of(cost, arch), rel=1e-12)
    assert of.chain.gather(costs.table("memory"), options).max() == costs.of("memory", arch)


def test_files_and_latency_have_a_base() -> None:
    costs = Costs(space(), Dice(space(), overhead=0.7))
    assert {name: costs.base(name) for name in COSTS} == dict.fromkeys(COSTS, 0) | {
        "latency": 0.7,
        "bytes": FILE,
    }


def test_limits_as_tables() -> None:
    costs = Costs(space(), Dice(space(), overhead=0.5))
    tables, room = costs.sums({"macs": 7.0, "memory": 9.0, "latency": 2.0})
    assert room == [7.0, pytest.approx(1.5, rel=1e-6)]
    for table, name in zip(tables, ("macs", "latency"), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(table, costs.table(name), strict=True))
    assert costs.allowed({"macs": 7.0}) is None
    most = float(np.median(costs.table("memory")[1]))
    masks = costs.allowed({"memory": most, "macs": 1.0})
    assert masks is not None
    for mask, peak in zip(masks, costs.table("memory"), strict=True):
        assert np.array_equal(mask, peak <= most)


def test_a_space_without_a_chain_has_no_tables() -> None:
    with pytest.raises(TypeError, match="the space 'mlp' is no chain"):
        Costs(mlp_space()).table("macs")
    with pytest.raises(TypeError, match="the space 'mlp' is no chain"):
        Costs(mlp_space()).table("memory")


# What is possible


@settings(max_examples=60, deadline=None)
@given(of=toys, seed=seeds)
def test_the_least_of_each_cost(of: ToySpace, seed: int) -> None:
    costs = Costs(of, Dice(of, seed))
    for name, values in spent(costs).items():
        assert costs.least(name) == pytest.approx(values.min(), rel=1e-12)
        assert costs.most(name) == costs.of(name, of.largest)


def test_the_least_of_resnet_tiny_is_the_smallest() -> None:
    costs, values = tiny()
    smallest = costs.space.smallest
    for name in ("macs", "params", "bytes", "memory"):
        assert costs.least(name) == values[name].min() == costs.of(name, smallest)
    assert costs.least("latency") == pytest.approx(values["latency"].min(), rel=1e-12)


@pytest.mark.parametrize("name", ["macs", "params", "bytes", "memory"])
def test_one_limit(name: str) -> None:
    costs, values = tiny()
    least = float(values[name].min())
    costs.check({name: least})
    with pytest.raises(NothingFits) as caught:
        costs.check({name: least - 1, "latency": np.inf})
    assert caught.value.nearest == {name: least}
    unit = " bytes" if name in ("bytes", "memory") else ""
    assert str(caught.value) == (
        f"no subnet of resnet-tiny is that small: the least possible is max-{name} = "
        f"{least:,.0f}{unit} (asked: {least - 1:,.0f})"
    )


def expected(values: Spent, limits: Mapping[str, float]) -> dict[str, float] | None:
    """Return what ``nearest`` should be, by enumeration; None where something fits."""
    fits = {name: values[name] <= most for name, most in limits.items()}
    if np.all(list(fits.values()), axis=0).any():
        return None
    alone = {name: values[name].min() for name in limits if not fits[name].any()}
    if alone:
        return alone
    beside = {}
    for name in limits:
        others = np.all([fits[other] for other in limits if other != name], axis=0)
        if others.any():
            beside[name] = values[name][others].min()
    return beside


def check(costs: Costs, values: Spent, limits: Mapping[str, float]) -> dict[str, float] | None:
    """Hold a check against enumeration, and return what it should say."""
    nearest = expected(values, limits)
    if nearest is None:
        costs.check(limits)
        return None
    with pytest.raises(NothingFits) as caught:
        costs.check(limits)
    assert caught.value.nearest == pytest.approx(nearest, rel=1e-12)
    for name in nearest:
        assert f"max-{name} = " in str(caught.value)
    return nearest


def limits_for(values: Spent, names: Any, *, low: float = 0.0, high: float = 0.5) -> Any:
    """Draw limits on some costs around the lower values that networks take."""

    def limit(name: str) -> st.SearchStrategy[float]:
        return st.floats(low, high).map(
            lambda q: float(np.quantile(values[name], q, method="lower"))
        )

    def limits(chosen: tuple[str, ...]) -> st.SearchStrategy[dict[str, float]]:
        # Latencies between what networks take: sums are rounded in another order elsewhere.
        return st.fixed_dictionaries({name: limit(name) for name in chosen}).map(
            lambda drawn: {n: v + 1e-7 if n == "latency" else v for n, v in drawn.items()}
        )

    return st.permutations(list(names)).flatmap(
        lambda order: st.integers(1, len(order)).flatmap(lambda k: limits(tuple(order[:k])))
    )


@settings(max_examples=120, deadline=None)
@given(of=toys, seed=seeds, data=st.data())
def test_limits_together(of: ToySpace, seed: int, data: st.DataObject) -> None:
    costs = Costs(of, Dice(of, seed))
    values = spent(costs)
    check(costs, values, data.draw(limits_for(values, costs.names)))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_limits_together_on_resnet_tiny(data: st.DataObject) -> None:
    costs, values = tiny()
    check(costs, values, data.draw(limits_for(values, costs.names, high=0.2)))


def test_two_limits_that_exclude_each_other() -> None:
    costs, values = tiny()
    quick = float(values["latency"].min()) + 0.01
    beside = float(values["macs"][values["latency"] <= quick].min())
    limits = {"macs": beside - 1, "latency": quick}
    nearest = check(costs, values, limits)
    assert nearest is not None and nearest["macs"] == beside
    check(costs, values, {"memory": np.inf, **limits})  # a further limit changes nothing
    with pytest.raises(NothingFits, match="keeps all limits together") as caught:
        costs.check(limits)
    relaxed = [limits | {name: value} for name, value in caught.value.nearest.items()]
    assert len(relaxed) == 2
    for each in relaxed:
        costs.check({name: value * (1 + 1e-12) for name, value in each.items()})


def test_three_limits_of_which_no_two_go_together() -> None:
    """Then raising one limit does not help, and no value is promised."""
    for seed in range(500):
        of = ToySpace(seed, 2)
        costs = Costs(of)
        values = spent(costs)
        limits = {name: float(values[name].min()) for name in ("macs", "params", "memory")}
        if expected(values, limits) == {}:
            break
    else:
        raise AssertionError("no such space was found")
    assert check(costs, values, limits) == {}
    with pytest.raises(NothingFits, match="keeps all limits together, nor all but one"):
        costs.check(limits)


@pytest.mark.slow
def test_what_is_not_proven_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where networks were left out for want of room, others may fit: no least value is claimed."""
    for name in ("_MOST", "_MOST_OF_SEVERAL"):
        monkeypatch.setattr("superfednas.nas.front." + name, 2)
    said, rng = 0, np.random.default_rng(0)
    for seed in range(400):
        of = ToySpace(seed, 4)
        costs = Costs(of, Dice(of, seed))
        values = spent(costs)
        names = rng.permutation(list(values))[: rng.integers(2, 5)]
        limits = {n: float(np.quantile(values[n], rng.uniform(0, 0.4))) + 1e-7 for n in names}
        try:
            costs.check(limits)
        except NothingFits as error:
            nearest = error.nearest
        else:
            continue
        said += 1
        assert expected(values, limits) == pytest.approx(nearest, rel=1e-12)
    assert said > 10


def test_the_least_latency_said_can_be_asked() -> None:
    """What is said is rounded, and never to less than is possible."""
    for seed in range(20):
        costs = Costs(space(), Dice(space(), seed))
        with pytest.raises(NothingFits) as caught:
            costs.check({"latency": 0.1})
        words = str(caught.value)
        said = float(words.split("max-latency = ")[1].split()[0])
        costs.check({"latency": said})
        costs.check({"latency": caught.value.nearest["latency"]})
        assert said == pytest.approx(caught.value.nearest["latency"], rel=2e-3)


def test_a_space_without_a_chain_is_checked_by_its_smallest() -> None:
    costs = Costs(mlp_space())
    least = costs.of("macs", costs.space.smallest)
    costs.check({"macs": least, "params": 1e9})
    with pytest.raises(NothingFits, match="no subnet of mlp is that small") as caught:
        costs.check({"macs": least - 1, "params": 1e9})
    assert caught.value.nearest == {"macs": least}


def test_bytes_are_of_float32() -> None:
    of: SearchSpace = space()
    assert (BYTES, FILE) == (4, 50_000)
    assert Costs(of).of("bytes", of.largest) == FILE + sum(
        4 * int(np.prod(shape)) for shape in of.shapes(of.largest).values()
    )
