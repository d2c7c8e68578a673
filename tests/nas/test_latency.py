"""Latency: the stopwatch on fake clocks, tables by hand and by law, one small real measurement."""

import functools
import itertools
import json
import math
import platform
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from superfednas.nas.cost.costs import Costs
from superfednas.nas.cost.latency import (
    BatchTable,
    Errors,
    LatencyError,
    LatencyTable,
    Network,
    space_options,
)
from superfednas.nas.cost.profiling import choose, fit_line, measure, measure_network, tabulate
from superfednas.nas.cost.timing import CLOCKS, Timing, keep_memory, timed, using_threads
from superfednas.nas.cost.workbench import Workbench, describe_device
from superfednas.supernet import Architecture, SearchSpace, load_space
from superfednas.tasks.images import Images
from tests.support.spaces import CROWDED, LEVEL, NARROW, Crowded
from tests.support.strategies import architectures, norms, space

FAMILIES = ["resnet-tiny", NARROW, LEVEL, CROWDED]
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with using_threads(1):
        yield


# The stopwatch


class Machine:
    """A machine whose time passes only when it works; its clock ticks every ``tick`` seconds."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now = 100.0
        self.tick = tick
        self.queued = 0.0

    def clock(self) -> float:
        return math.floor(self.now / self.tick) * self.tick if self.tick else self.now

    def work(self, seconds: float) -> None:
        self.now += seconds

    def queue(self, seconds: float) -> None:
        self.queued += seconds

    def synchronise(self) -> None:
        self.now += self.queued
        self.queued = 0.0

    def time(
        self, *makers: Callable[[], Callable[[], object]], seconds: float = 0.0
    ) -> list[Timing]:
        return timed(makers, seconds=seconds, clock=self.clock, synchronise=self.synchronise)


@settings(max_examples=30, deadline=None)
@given(durations=st.lists(st.floats(1e-5, 3.0), min_size=1, max_size=4))
def test_what_always_takes_equally_long_is_told_exactly(durations: list[float]) -> None:
    machine = Machine()
    calls = [functools.partial(machine.work, seconds) for seconds in durations]
    found = machine.time(*(lambda call=call: call for call in calls))
    for timing, seconds in zip(found, durations, strict=True):
        assert timing.fastest_ms == pytest.approx(1e3 * seconds, rel=1e-6)
        assert timing.median_ms == pytest.approx(1e3 * seconds, rel=1e-6)
        assert timing.spread_ms == pytest.approx(0.0, abs=1e-6 * timing.median_ms)
        assert timing.samples >= 3


@pytest.mark.parametrize("seconds", [3e-7, 4e-6, 5e-5, 7e-4])
def test_a_coarse_clock_is_read_no_finer_than_it_ticks(seconds: float) -> None:
    machine = Machine(tick=1e-6)
    (found,) = machine.time(lambda: functools.partial(machine.work, seconds))
    assert found.fastest_ms == pytest.approx(1e3 * seconds, rel=0.01)


def test_everything_is_visited_in_turn() -> None:
    machine, visits = Machine(), []

    def make(name: str) -> Callable[[], object]:
        visits.append(name)
        return functools.partial(machine.work, 0.01)

    machine.time(*(functools.partial(make, name) for name in "abc"))
    assert visits == list("abc" * 3)


def test_a_drift_hits_all_alike() -> None:
    machine = Machine()

    def slower() -> None:  # half as fast after two seconds
        machine.work(0.1 * (1 + (machine.now - 100) / 2))

    a, b = machine.time(lambda: slower, lambda: slower)
    assert b.median_ms / a.median_ms == pytest.approx(1, abs=0.2)


def starting_slowly(machine: Machine, first: float, others: float) -> Callable[[], object]:
    waits = itertools.chain([first], itertools.repeat(others))
    return lambda: machine.work(next(waits))


def test_the_first_call_of_a_visit_is_not_counted() -> None:
    machine = Machine()
    (found,) = machine.time(lambda: starting_slowly(machine, 0.05, 1e-3))
    assert found.fastest_ms == found.median_ms == pytest.approx(1)


def test_a_slow_first_call_does_not_make_samples_too_short_for_the_clock() -> None:
    machine = Machine(tick=1e-6)
    (found,) = machine.time(lambda: starting_slowly(machine, 1e-3, 3e-7))
    assert found.median_ms == pytest.approx(3e-4, rel=0.01)
    assert found.samples == 3 * 5


def test_disturbances_leave_the_fastest_sample_and_show_in_the_spread() -> None:
    machine, visit = Machine(), iter(range(99))

    def make() -> Callable[[], object]:
        seconds = (0.03, 0.02, 0.12)[next(visit)]
        return functools.partial(machine.work, seconds)

    (found,) = machine.time(make)
    assert found.fastest_ms == pytest.approx(20)
    assert found.median_ms == pytest.approx(30)
    assert found.spread_ms == pytest.approx(75 - 25)


def test_a_device_that_works_on_its_own_is_waited_for() -> None:
    machine = Machine()
    (found,) = machine.time(lambda: functools.partial(machine.queue, 3e-5))
    assert found.fastest_ms == found.median_ms == pytest.approx(0.03)

    def make() -> Callable[[], object]:
        machine.queue(9.0)  # what the making left behind is not the call's
        return functools.partial(machine.queue, 1e-3)

    (found,) = machine.time(make)
    assert found.median_ms == pytest.approx(1)


@pytest.mark.parametrize(
    ("seconds", "passes"), [(0.0, 3), (1.0, 3), (7.1, 7), (50.0, 50), (1e6, 100)]
)
def test_the_first_pass_says_how_many_fit(seconds: float, passes: int) -> None:
    machine, told = Machine(), []
    makers = [lambda: functools.partial(machine.work, 0.25)] * 2  # warm up once, measure once
    found = timed(
        makers,
        seconds=seconds,
        clock=machine.clock,
        progress=lambda done, planned: told.append((done, planned)),
    )
    assert [timing.samples for timing in found] == [passes, passes]
    assert [done for done, _ in told] == list(range(1, 2 * passes + 1))
    assert told[0] == (1, 6) and told[-1] == (2 * passes, 2 * passes)


def test_a_timing_by_hand() -> None:
    assert Timing.of([0.005, 0.001, 0.002, 0.004, 0.003]) == Timing(
        fastest_ms=1.0, median_ms=3.0, spread_ms=2.0, samples=5
    )


def test_threads_are_put_back_even_after_an_error() -> None:
    def fail() -> None:
        with using_threads(2):
            assert torch.get_num_threads() == 2
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_is_taken_from_the_system_only_once() -> None:
    import resource

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def cycle() -> None:
        kept = [torch.ones(1 << 20) for _ in range(6)]  # 24 MiB, all free at the end
        del kept

    keep_memory()
    for _ in range(5):
        cycle()
    before = faults()
    cycle()
    assert faults() - before < 1000  # of 6144 pages


# The workbench


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), norm=norms, batch=st.sampled_from([1, 3]))
@every_family
def test_networks_of_every_norm_answer_in_finite_numbers(
    name: str, data: st.DataObject, norm: str, batch: int
) -> None:
    of = space(name, norm=norm)
    bench = Workbench(of, "cpu")
    with torch.inference_mode():
        for arch in (of.largest, data.draw(architectures(of))):
            answer = bench.network(arch, batch)()
            assert isinstance(answer, torch.Tensor)
            assert answer.shape == (batch, 3)
            assert answer.isfinite().all()
            assert answer.abs().max() > 1e-6  # no signal that fades into slow, denormal numbers


@every_family
def test_every_block_runs_on_the_bench(name: str) -> None:
    of = space(name)
    assert of.chain is not None
    bench = Workbench(of, "cpu")
    for block in of.chain.inventory.blocks:
        answer = bench.load(block.module, block.inputs, 2)()
        assert isinstance(answer, torch.Tensor)
        assert len(answer) == 2 and answer.isfinite().all()


def test_one_piece_of_memory_holds_whatever_is_loaded() -> None:
    of = space()
    bench = Workbench(of, "cpu")
    kept: list[nn.Module] = []

    def keep(construct: Callable[[], nn.Module]) -> nn.Module:
        kept.append(construct())
        return kept[-1]

    for arch in (of.largest, of.smallest):
        bench.load(functools.partial(keep, functools.partial(of.module, arch)), (1, 8, 8), 1)
    places = [[weight.data_ptr() for weight in module.parameters()] for module in kept]
    assert places[0][0] == places[1][0]
    assert all(place % 64 == places[0][0] % 64 for both in places for place in both)
    for module, where in zip(kept, places, strict=True):
        assert not module.training
        weights = list(module.parameters())
        ends = [at + 4 * weight.numel() for at, weight in zip(where, weights, strict=True)]
        assert all(end <= start for end, start in zip(ends, where[1:], strict=False))
    assert max(max(both) for both in places) < places[0][0] + 4 * 2 * of.params(of.largest)


def test_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    random.seed(7)
    measure_network(space(), space().smallest, seconds=0.0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("device", ["cuda:77", "abacus"])
def test_a_device_that_is_not_there_is_one_sentence(device: str) -> None:
    with pytest.raises(LatencyError, match=f"device = '{device}': torch cannot use it here"):
        measure_network(space(), space().smallest, device=device)


# The line


positive = st.integers(1, 10_000).map(lambda hundredths: hundredths / 100)


@settings(deadline=None, max_examples=50)
@given(
    constant=st.floats(0.0, 5.0), factor=st.floats(0.1, 10.0), sums=st.sets(positive, min_size=2)
)
def test_a_line_is_found_again(constant: float, factor: float, sums: set[float]) -> None:
    x = np.array(sorted(sums))
    found = fit_line(x, constant + factor * x)
    np.testing.assert_allclose(found[0] + found[1] * x, constant + factor * x, rtol=1e-6)


@pytest.mark.parametrize("index", [0, 5, 11])
@pytest.mark.parametrize("share", [1.2, 3.0, 30.0])
def test_a_network_that_was_disturbed_does_not_move_the_line(index: int, share: float) -> None:
    x = np.linspace(1.0, 6.0, 12)
    y = 0.25 + 1.5 * x
    y[index] *= share
    assert fit_line(x, y) == pytest.approx((0.25, 1.5))


@settings(deadline=None, max_examples=50)
@given(
    steps=st.lists(st.tuples(positive, positive), min_size=2, max_size=9),
    other=st.tuples(st.floats(-50.0, 50.0), st.floats(0.001, 50.0)),
)
def test_no_other_line_is_nearer(
    steps: list[tuple[float, float]], other: tuple[float, float]
) -> None:
    x, y = np.cumsum(steps, axis=0).T  # rising, so the best of all lines rises

    def error(line: tuple[float, float]) -> float:
        return float(np.abs((line[0] + line[1] * x) / y - 1).mean())

    assert error(fit_line(x, y)) <= error(other) + 1e-9


def test_shares_count_and_not_milliseconds() -> None:
    # (-1, 2) is off by 0, 0, 0, 1/6; (0, 1.5), the least in milliseconds, by 1/2, 0, 1/10, 0.
    found = fit_line(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 5.0, 6.0]))
    assert found == pytest.approx((-1.0, 2.0))


def test_networks_of_equal_blocks_make_a_proportional_line() -> None:
    assert fit_line(np.array([2.0, 2.0, 2.0]), np.array([3.0, 5.0, 4.0])) == (0.0, 2.0)


def test_where_larger_is_faster_the_factor_is_still_above_zero() -> None:
    constant, factor = fit_line(np.array([1.0, 2.0]), np.array([2.0, 1.0]))
    assert constant == 0.0 and factor in (0.5, 2.0)


# Tables by hand and by law


def at_best(milliseconds: float) -> Timing:
    return Timing(milliseconds, 2 * milliseconds, 0.5 * milliseconds, 5)


def alone(of: SearchSpace, seed: int = 0) -> dict[str, Timing]:
    """Make up a latency for every block."""
    assert of.chain is not None
    rng = np.random.default_rng(seed)
    return {b.name: at_best(float(rng.uniform(0.1, 9.0))) for b in of.chain.inventory.blocks}


def made_up(of: SearchSpace, constant: float = 0.5, factor: float = 1.25) -> LatencyTable:
    """Make up a table for batches of 1 and 16."""
    network = Network(of.smallest.to_json(), Timing(2.0, 2.5, 0.25, 7), 2.2)
    return LatencyTable(
        space=space_options(of),
        device={"processor": "abacus", "cores": 10},
        threads=1,
        clock="wall",
        batches={
            1: BatchTable(alone(of, 1), constant, factor, (network,), (network, network)),
            16: BatchTable(alone(of, 16), -constant, 2 * factor, (), (network,)),
        },
        seconds=1.5,
    )


@settings(max_examples=25, deadline=None)
@given(data=st.data(), batch=st.sampled_from([1, 16]))
@every_family
def test_a_prediction_is_the_overhead_and_an_entry_a_segment(
    name: str, data: st.DataObject, batch: int
) -> None:
    of = space(name)
    table, arch = made_up(of), data.draw(architectures(of))
    model, chain = table.of(of), of.chain
    assert chain is not None
    tables = model.tables(chain, batch)
    options = np.array([chain.locate(arch)])
    entries = chain.gather(tables, options)[:, 0]
    assert model.predict(arch, batch) == pytest.approx(model.overhead(batch) + entries.sum())

    part = table.batches[batch]
    by_hand = sum(part.blocks[block.name].fastest_ms for block in of.blocks(arch))
    assert model.predict(arch, batch) == pytest.approx(part.constant_ms + part.factor * by_hand)


def test_a_prediction_by_hand() -> None:
    of = space("resnet-tiny")
    table = made_up(of)
    blocks = {name: at_best(0.0) for name in table.batches[1].blocks}
    blocks |= {"stem 1>16 at 8": at_best(1.0), "head 192>3 at 1": at_best(2.0)}
    blocks |= {"block 16>8>24 at 8, stride 2, projected": at_best(4.0)}
    part = replace(table.batches[1], blocks=blocks, constant_ms=0.25, factor=1.5)
    model = replace(table, batches={1: part}).of(of)
    assert model.predict(of.smallest, 1) == 0.25 + 1.5 * (1 + 2 + 4)
    assert model.predict(of.largest, 1) == 0.25 + 1.5 * (1 + 2)
    assert model.overhead(1) == 0.25


def test_search_finds_the_least_latency_of_all_networks() -> None:
    of = space(CROWDED)
    costs = Costs(of, made_up(of).of(of), batch=16)
    every = {of.decode(choices) for choices in np.ndindex(*of.genes)}
    assert costs.least("latency") == pytest.approx(min(costs.of("latency", a) for a in every))


@settings(max_examples=20, deadline=None)
@given(constant=st.floats(0.0, 2.0), factor=st.floats(0.5, 2.0), seed=st.integers(0, 99))
def test_an_affine_law_of_whole_networks_is_learned(
    constant: float, factor: float, seed: int
) -> None:
    of, rng = space(), np.random.default_rng(seed)
    blocks = alone(of, seed)

    def law(arch: Architecture) -> Timing:
        return at_best(constant + factor * sum(blocks[b.name].fastest_ms for b in of.blocks(arch)))

    fitted = [(arch, law(arch)) for arch in (of.smallest, of.largest, of.sample(rng))]
    held_out = [(arch, law(arch)) for arch in (of.sample(rng) for _ in range(5))]
    table = tabulate(of, blocks, fitted, held_out)
    assert (table.constant_ms, table.factor) == pytest.approx(
        (constant, factor), rel=1e-6, abs=1e-6
    )
    assert table.errors.max == pytest.approx(0, abs=1e-9)
    assert [n.architecture for n in table.held_out] == [a.to_json() for a, _ in held_out]
    assert [n.timing for n in table.fitted] == [timing for _, timing in fitted]


def test_networks_that_are_held_out_do_not_change_the_fit_and_tell_its_error() -> None:
    of = space()
    blocks = alone(of)
    total = {
        a: sum(blocks[b.name].fastest_ms for b in of.blocks(a)) for a in (of.smallest, of.largest)
    }
    fitted = [(arch, at_best(2 * total[arch])) for arch in total]
    measured = [2 * total[of.smallest] * share for share in (1.0, 1.25, 0.8, 0.5)]
    table = tabulate(of, blocks, fitted, [(of.smallest, at_best(ms)) for ms in measured])
    assert (table.constant_ms, table.factor) == pytest.approx((0.0, 2.0), abs=1e-9)
    assert [n.error for n in table.held_out] == pytest.approx([0.0, 0.2, 0.25, 1.0])
    assert table.errors.median == pytest.approx(0.225)
    assert table.errors.p90 == pytest.approx(0.775)
    assert table.errors.max == pytest.approx(1.0)
    assert [n.error for n in table.fitted] == pytest.approx([0.0, 0.0])


def test_errors_by_hand() -> None:
    assert Network("{}", Timing(100.0, 999.0, 0.0, 1), 110.0).error == pytest.approx(0.1)
    assert Network("{}", Timing(100.0, 999.0, 0.0, 1), 70.0).error == pytest.approx(0.3)
    assert Errors.of([0.3, 0.1, 0.2]) == Errors(0.2, pytest.approx(0.28), 0.3)


# Files


@every_family
def test_a_table_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    of = space(name)
    table, path = made_up(of), tmp_path / "new" / "table.json"
    table.save(path)
    assert LatencyTable.load(path) == table
    assert list(path.parent.iterdir()) == [path]
    written = json.loads(path.read_text())
    assert written["batches"]["1"]["errors"]["median"] == pytest.approx(0.1)


def test_a_file_is_replaced_only_when_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("precious")
    table = made_up(space())
    with pytest.raises(LatencyError, match=r"table\.json' exists already"):
        table.save(path)
    assert path.read_text() == "precious"
    table.save(path, overwrite=True)
    assert LatencyTable.load(path) == table


def broken(change: Callable[[dict[str, Any]], object]) -> str:
    """Return a table's JSON after a change."""
    fields = json.loads(json.dumps(GOOD))
    change(fields)
    return json.dumps(fields)


GOOD = {
    "kind": "latency table",
    "format": 1,
    "space": {},
    "device": {},
    "threads": 1,
    "clock": "wall",
    "seconds": 1.0,
    "batches": {
        "1": {
            "blocks": {"a": {"fastest_ms": 1, "median_ms": 1.5, "spread_ms": 0, "samples": 3}},
            "constant_ms": -0.5,
            "factor": 1,
            "fitted": [],
            "held_out": [
                {
                    "architecture": "{}",
                    "timing": {"fastest_ms": 2, "median_ms": 2, "spread_ms": 1, "samples": 4},
                    "predicted_ms": 0.5,
                }
            ],
        }
    },
}


def test_the_good_file_is_good(tmp_path: Path) -> None:
    path = tmp_path / "good.json"
    path.write_text(broken(lambda fields: None))
    part = LatencyTable.load(path).batch(1)
    held_out = Network("{}", Timing(2.0, 2.0, 1.0, 4), 0.5)
    assert part == BatchTable({"a": Timing(1.0, 1.5, 0.0, 3)}, -0.5, 1.0, (), (held_out,))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no latency table: "),
        ("{", "holds no latency table: "),
        ("[]", "holds no latency table"),
        ('{"format": 1}', "holds no latency table"),
        (broken(lambda f: f.update(format=2)), "has latency-table format 2; 1 is read"),
        (broken(lambda f: f.pop("batches")), "lacks 'batches'"),
        (broken(lambda f: f["batches"]["1"].pop("factor")), "lacks 'factor'"),
        (broken(lambda f: f["batches"]["1"].update(factor=0)), "is damaged: 0 is not above 0"),
        (broken(lambda f: f["batches"]["1"].update(constant_ms=math.nan)), "nan is no number"),
        (broken(lambda f: f["batches"]["1"].update(constant_ms="1")), "'1' is no number"),
        (broken(lambda f: f["batches"]["1"]["blocks"]["a"].update(fastest_ms=-1)), "damaged: -1 "),
        (broken(lambda f: f["batches"]["1"].update(held_out=[])), "no network is held out"),
        (broken(lambda f: f["batches"]["1"].update(blocks=3)), "is damaged: "),
        (broken(lambda f: f["batches"].update(many={})), "lacks 'blocks'|is damaged"),
        (broken(lambda f: f.update(threads=None)), "is damaged: "),
    ],
)
def test_another_or_a_damaged_file_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(LatencyError, match=said) as caught:
        LatencyTable.load(path)
    assert "table.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        LatencyError, match=r"nothing\.json' holds no latency table: .*No such file"
    ):
        LatencyTable.load(tmp_path / "nothing.json")


# Refusals


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_classes", 4, "num_classes = 3, the space has num_classes = 4"),
        ("in_channels", 3, "in_channels = 1, the space has in_channels = 3"),
        ("image_size", 16, "image_size = 8, the space has image_size = 16"),
        ("norm", "none", "norm = 'group', the space has norm = 'none'"),
    ],
)
def test_a_table_of_other_options_is_refused(key: str, value: object, said: str) -> None:
    with pytest.raises(LatencyError, match=f"measured for {said}"):
        made_up(space()).of(space(**{key: value}))


def test_a_table_of_another_space_is_refused() -> None:
    with pytest.raises(LatencyError, match="space = 'narrow', the space has space = 'resnet-tiny'"):
        made_up(space(NARROW)).of(space())


def test_a_table_that_lacks_blocks_is_refused() -> None:
    table = made_up(space())
    fewer = dict(list(table.batches[16].blocks.items())[2:])
    short = replace(
        table, batches=dict(table.batches) | {16: replace(table.batches[16], blocks=fewer)}
    )
    with pytest.raises(
        LatencyError, match=r"lacks 2 blocks .* at batch 16 \('stem 1>16 at 8', …\)"
    ):
        short.of(space())


def test_a_batch_that_was_not_measured_is_refused() -> None:
    of = space()
    model = made_up(of).of(of)
    for ask in (
        lambda: model.predict(of.smallest, 8),
        lambda: model.tables(of.chain, 8),
        lambda: model.overhead(8),
    ):
        with pytest.raises(
            LatencyError, match="batch = 8: the latency table was measured for 1, 16"
        ):
            ask()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batches": ()}, "batches: at least one"),
        ({"batches": (1, 0)}, "batch = 0: must be at least 1"),
        ({"threads": 0}, "threads = 0: must be at least 1"),
        ({"networks": 2}, "networks = 2: must be at least 3"),
        ({"holdout": 0}, "holdout = 0: must be at least 1"),
        ({"clock": "sun"}, "clock = 'sun': must be one of wall, cpu"),
        (
            {"clock": "cpu", "threads": 2},
            "clock = 'cpu': .* one thread on the CPU, not of 2 on 'cpu'",
        ),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LatencyError, match=said):
        measure(space(), **options)


@dataclass(frozen=True)
class PlainArchitecture(Architecture):
    width: int


class Plain(SearchSpace):
    """A space of somebody's own, that says nothing of blocks."""

    name = "plain"
    architecture = PlainArchitecture
    genes = (3,)

    def decode(self, choices: Sequence[int]) -> PlainArchitecture:
        return PlainArchitecture(8 * (1 + choices[0]))

    def module(self, arch: Architecture) -> nn.Module:
        assert isinstance(arch, PlainArchitecture)
        inputs = math.prod(self.task.inputs["images"].shape)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, arch.width), nn.ReLU(), nn.Linear(arch.width, 3)
        )


def test_a_space_without_blocks_has_no_table_but_its_networks_are_timed() -> None:
    of = Plain(Images(3, 1, 8))
    for ask in (lambda: measure(of), lambda: made_up(space()).of(of)):
        with pytest.raises(
            LatencyError, match=r"the space 'plain' has no blocks .* `chain` .* Plain"
        ):
            ask()
    found = measure_network(of, of.largest, batch=2, seconds=0.0)
    assert 0 < found.fastest_ms <= found.median_ms and found.samples >= 3


# Real measurements


def test_measuring_a_space_end_to_end(tmp_path: Path) -> None:
    of, told = space(norm="batch"), []
    torch.set_num_threads(2)
    table = measure(
        of,
        batches=(1, 2, 1),
        networks=4,
        holdout=3,
        seconds=0.0,
        threads=1,
        name="bench 7",
        progress=lambda done, planned: told.append((done, planned)),
    )
    assert torch.get_num_threads() == 2
    assert not torch.is_inference_mode_enabled()
    assert table.threads == 1
    assert of.chain is not None
    names = [block.name for block in of.chain.inventory.blocks]
    assert told[-1] == (len(told), len(told)) and len(told) == 3 * 2 * (len(names) + 7)
    assert list(table.batches) == [1, 2]
    for part in table.batches.values():
        assert list(part.blocks) == names
        timings = [*part.blocks.values(), *(n.timing for n in part.fitted + part.held_out)]
        assert all(0 < t.fastest_ms <= t.median_ms and t.spread_ms >= 0 for t in timings)
        assert all(t.samples >= 3 for t in timings)
        assert part.factor > 0
        fitted = [n.architecture for n in part.fitted]
        assert fitted[0] == of.smallest.to_json() and fitted[-1] == of.largest.to_json()
        unseen = [n.architecture for n in part.held_out]
        assert len({*fitted, *unseen}) == 4 + 3
    assert table.device["name"] == "bench 7" and table.seconds > 0

    table.save(tmp_path / "table.json")
    again = LatencyTable.load(tmp_path / "table.json")
    assert again == table
    model = again.of(
        load_space("resnet-tiny", num_classes=3, in_channels=1, image_size=8, norm="batch")
    )
    for part, batch in ((table.batches[1], 1), (table.batches[2], 2)):
        for network in part.fitted + part.held_out:
            arch = of.parse(network.architecture)
            assert model.predict(arch, batch) == pytest.approx(network.predicted_ms)


class Instant:
    """A stopwatch that says 1 ms of everything and notes what it was asked."""

    def __call__(self, makers: Sequence[object], **options: Any) -> list[Timing]:
        self.options = options
        return [at_best(1.0)] * len(makers)


def test_measuring_keeps_memory(instant: Instant, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[None] = []
    monkeypatch.setattr("superfednas.nas.cost.workbench.keep_memory", lambda: kept.append(None))
    measure(space())
    measure_network(space(), space().smallest)
    assert len(kept) == 2


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> Instant:
    watch = Instant()
    monkeypatch.setattr("superfednas.nas.cost.workbench.timed", watch)
    return watch


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(networks=st.integers(3, 12), holdout=st.integers(1, 40), seed=st.integers(0, 99))
@every_family
def test_networks_held_out_are_never_fitted(
    name: str, networks: int, holdout: int, seed: int
) -> None:
    of = space(name)  # where several architectures may be one network
    assert of.chain is not None
    fitted, held_out = choose(of, networks, holdout, seed)
    located = [of.chain.locate(arch) for arch in fitted + held_out]
    assert len(located) == len(set(located))
    assert fitted[0] == of.smallest and fitted[-1] == of.largest
    if of.size > 1000:
        assert (len(fitted), len(held_out)) == (networks, holdout)
    assert 1 <= len(held_out) <= holdout and 2 <= len(fitted) <= networks
    macs = [of.macs(arch) for arch in fitted]
    assert macs == sorted(macs)
    assert choose(of, networks, holdout, seed) == (fitted, held_out)


def test_networks_to_fit_to_lie_where_most_networks_are() -> None:
    of = space()
    fitted, _ = choose(of, 12, 1, seed=0)
    rng = np.random.default_rng(1)
    every = np.array([of.macs(of.sample(rng)) for _ in range(2000)])
    quantiles = [(every < of.macs(arch)).mean() for arch in fitted[1:-1]]
    np.testing.assert_allclose(quantiles, (np.arange(10) + 0.5) / 10, atol=0.1)


def test_the_seed_chooses_the_networks() -> None:
    of = space()
    (fitted, held_out), (other_fitted, other_held_out) = (choose(of, 4, 4, s) for s in (5, 6))
    assert fitted != other_fitted and held_out != other_held_out


@pytest.mark.usefixtures("instant")
def test_a_table_has_as_many_networks_as_are_asked_for() -> None:
    for part in measure(space()).batches.values():
        assert (len(part.fitted), len(part.held_out)) == (12, 10)


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_a_table_says_by_which_clock_it_was_measured(instant: Instant, clock: str) -> None:
    table = measure(space(), clock=clock, seconds=7.0)
    assert instant.options["clock"] is CLOCKS[clock] and instant.options["seconds"] == 7.0
    assert table.clock == clock


class Single(Crowded):
    """A space of one network."""

    name = "single"
    depths = (0,)
    ratios = (0.5,)


def test_a_space_of_no_more_networks_than_are_fitted_is_refused() -> None:
    with pytest.raises(LatencyError, match="the space 'single' has only its smallest and largest"):
        measure(Single(Images()), networks=3)


def test_a_network_is_timed_by_the_clock_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()

    def ticking() -> float:
        machine.work(0.5)
        return machine.clock()

    for name in CLOCKS:
        monkeypatch.setitem(CLOCKS, name, ticking)
        found = measure_network(space(), space().smallest, seconds=0.0, clock=name)
        assert found == Timing(500.0, 500.0, 0.0, 3)


def test_a_thread_clock_that_ticks_too_seldom_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = SimpleNamespace(resolution=0.015625)
    monkeypatch.setattr("time.get_clock_info", lambda name: coarse)
    with pytest.raises(LatencyError, match=r"clock = 'cpu': here it ticks only every 15\.625 ms"):
        measure_network(space(), space().smallest, clock="cpu")


def test_a_device_says_nothing_of_its_user_or_host() -> None:
    about = describe_device(torch.device("cpu"))
    assert set(about) == {
        *("processor", "cores", "device", "platform", "python", "torch", "date"),
    }
    assert about["processor"] and about["cores"] >= 1 and about["device"] == "cpu"
    assert platform.node() not in about.values()
    assert describe_device(torch.device("cpu"), "kitchen")["name"] == "kitchen"
