"""The table of the device at hand is measured once and kept; what is chosen is timed."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from superfednas.nas import this_device
from superfednas.nas.cost.costs import Costs
from superfednas.nas.cost.latency import LatencyError, LatencyTable
from superfednas.nas.cost.profiling import measure
from superfednas.nas.cost.timing import Timing
from superfednas.nas.pipeline import Request, Silence, make_plan
from superfednas.nas.plan import Plan
from superfednas.nas.this_device import load_table, proven, table, table_file
from tests.support.strategies import space


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def quick() -> LatencyTable:
    """Return a table of resnet-tiny that took no care."""
    return measure(space(), batches=(1,), networks=3, holdout=1, seconds=0.0)


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch, quick: LatencyTable) -> list[dict[str, Any]]:
    """Note what is measured; every measurement gives the quick table's numbers."""
    seen: list[dict[str, Any]] = []

    def noting(of: Any, *, batches: tuple[int, ...], progress: Any, **asked: Any) -> LatencyTable:
        seen.append({"batches": batches, **asked})
        progress(1, 1)
        return dataclasses.replace(
            quick,
            batches=dict.fromkeys(batches, quick.batches[1]),
            threads=asked["threads"],
            clock=asked["clock"],
        )

    monkeypatch.setattr(this_device, "measure", noting)
    return seen


# The table


def test_a_table_is_measured_once_and_batches_gather(
    measurements: list[dict[str, Any]],
) -> None:
    for batch in (1, 1, 8, 1, 8):
        assert batch in table(space(), batch, progress=Silence()).batches
    assert [each["batches"] for each in measurements] == [(1,), (8,)]
    assert sorted(LatencyTable.load(table_file(space())).batches) == [1, 8]


def test_what_is_added_is_timed_by_the_clock_of_what_is_there(
    measurements: list[dict[str, Any]], quick: LatencyTable
) -> None:
    dataclasses.replace(quick, clock="cpu").save(table_file(space()))
    assert table(space(), 4, progress=Silence()).clock == "cpu"
    assert [each["clock"] for each in measurements] == ["cpu"]


def test_tables_of_other_threads_spaces_and_devices_lie_apart(
    measurements: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert table(space(), 1, progress=Silence()).threads == 1
    assert table(space(), 1, threads=2, progress=Silence()).threads == 2
    assert [each["threads"] for each in measurements] == [1, 2]
    assert table_file(space()) != table_file(space("resnet-tiny", norm="none"))
    here = table_file(space())
    about = this_device.describe_device

    def elsewhere(key: str) -> Any:
        return lambda device: {**about(device), key: "another"}

    for key in ("processor", "torch", "device", "accelerator"):
        with monkeypatch.context() as patch:
            patch.setattr(this_device, "describe_device", elsewhere(key))
            assert table_file(space()) != here
    assert table_file(space()) == here


def test_a_device_that_is_not_there() -> None:
    for name in ("nonsense", "cuda:99"):
        with pytest.raises(LatencyError, match=f"device = '{name}': torch cannot use it here"):
            table_file(space(), device=name)


@pytest.mark.parametrize("content", ["", "{}", "nothing"])
def test_a_damaged_table_is_named_and_kept(
    content: str, measurements: list[dict[str, Any]]
) -> None:
    path = table_file(space())
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(LatencyError, match="holds no latency table") as caught:
        table(space(), 1, progress=Silence())
    assert str(path) in str(caught.value)
    assert path.read_text() == content and not measurements


def test_a_table_of_another_space_is_named(tmp_path: Path, quick: LatencyTable) -> None:
    path = tmp_path / "pi.json"
    quick.save(path)
    assert load_table(path, space()) == quick
    with pytest.raises(LatencyError, match="measured for norm = 'group'") as caught:
        load_table(path, space("resnet-tiny", norm="none"))
    assert str(path) in str(caught.value)


# The proof


class Device:
    """A device that is slower than its table by a factor, one for each time that it is asked."""

    def __init__(self, costs: Costs, factors: list[float]) -> None:
        self.costs, self.factors = costs, iter(factors)
        self.asked: list[dict[str, Any]] = []
        self.limits: list[float] = []

    def time(self, of: Any, arch: Any, **asked: Any) -> Timing:
        self.asked.append(asked)
        ms = self.costs.of("latency", arch) * next(self.factors)
        return Timing(fastest_ms=ms, median_ms=1.1 * ms, spread_ms=0.0, samples=3)

    def plan(self, request: Request) -> Plan:
        self.limits.append(request.limits["latency"])
        return make_plan(request, self.costs)


@pytest.fixture
def costs(quick: LatencyTable) -> Iterator[Costs]:
    return Costs(space(), quick.of(space()), 1)


def prove(
    device: Device, table_: LatencyTable, limit: float, monkeypatch: pytest.MonkeyPatch
) -> Plan:
    monkeypatch.setattr(this_device, "measure_network", device.time)
    request = Request(limits={"latency": limit, "macs": 5e6}, score="macs")
    return proven(
        make_plan(request, device.costs), space(), request, table_, 1, device.plan, Silence()
    )


def middle(costs: Costs) -> float:
    return (costs.least("latency") + costs.most("latency")) / 2


def test_what_keeps_the_limit_is_taken_at_once(
    costs: Costs, quick: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, limit = Device(costs, [0.9]), middle(costs)
    plan = prove(device, dataclasses.replace(quick, threads=2, clock="cpu"), limit, monkeypatch)
    assert device.asked == [{"batch": 1, "threads": 2, "clock": "cpu"}] and not device.limits
    said = plan.latency
    assert said["predicted_ms"] == plan.chosen.costs["latency"] <= limit
    assert said["measured_ms"] == pytest.approx(0.9 * said["predicted_ms"])
    assert said["median_ms"] == pytest.approx(0.99 * said["predicted_ms"])


def test_what_is_slower_than_allowed_is_searched_again_below(
    costs: Costs, quick: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, limit = Device(costs, [1.2, 1.2]), middle(costs)
    plan = prove(device, quick, limit, monkeypatch)
    first = make_plan(Request(limits={"latency": limit, "macs": 5e6}, score="macs"), costs)
    slow = 1.2 * first.chosen.costs["latency"]
    assert device.limits == [pytest.approx(0.99 * first.chosen.costs["latency"] * limit / slow)]
    assert plan.latency["measured_ms"] <= limit < slow
    assert plan.limits == {"latency": limit, "macs": 5e6}  # what was asked, not what was searched
    assert plan.chosen.costs["latency"] == plan.latency["predicted_ms"] <= device.limits[0]


def test_every_search_is_timed_and_there_are_five(
    costs: Costs, quick: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last subnet that is searched for is timed as well: nothing is looked for in vain."""
    limit = costs.most("latency")
    device = Device(costs, [1.1, 1.3, 1.5, 1.7, 0.5])
    plan = prove(device, quick, limit, monkeypatch)
    assert len(device.asked) == 5 and len(device.limits) == 4
    assert plan.latency["measured_ms"] <= limit
    device = Device(costs, [1.1, 1.3, 1.5, 1.7, 1.9])
    with pytest.raises(LatencyError, match="too unsteady to find a subnet that keeps it"):
        prove(device, quick, limit, monkeypatch)
    assert len(device.asked) == 5 and len(device.limits) == 4
