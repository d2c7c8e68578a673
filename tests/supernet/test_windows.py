"""Windows over channels: they roll, they nest, and what they cut out is a network of its own."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from superfednas.supernet import Architecture, SearchSpace, extract
from superfednas.supernet.boxes import (
    Boxes,
    Interval,
    centre,
    inside,
    pieces,
    placement_shape,
    window,
)
from superfednas.supernet.families.mobilenet.spaces import MobileNetArchitecture
from superfednas.supernet.families.resnet.wide import WideResNetArchitecture
from tests.support.spaces import NARROW, POCKET
from tests.support.strategies import architectures, choices, noisy_state, norms, pictures, space

TINY = "mobilenetv1-tiny"
NESTING = [TINY, "resnet-tiny", NARROW]
ROLLING = [TINY, NARROW]
shifts = st.integers(-20, 20).map(lambda step: 8 * step)


def indices(intervals: tuple[Interval, ...]) -> list[int]:
    return list(itertools.chain(*itertools.starmap(range, intervals)))


# Windows of one axis


@settings(max_examples=200, deadline=None)
@given(data=st.data(), full=st.integers(1, 40), shift=st.integers(-100, 100))
def test_a_window_is_the_start_of_the_rolled_axis(
    data: st.DataObject, full: int, shift: int
) -> None:
    size = data.draw(st.integers(1, full))
    found = window(size, full, shift)
    assert all(0 <= start < stop <= full for start, stop in found)
    assert placement_shape((found,)) == (size,)
    rolled = np.roll(np.arange(full), -shift if size < full else 0)
    assert indices(found) == rolled[:size].tolist()
    assert window(size, full) == ((0, size),)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), full=st.integers(1, 40), first=st.integers(-50, 50))
def test_consecutive_shifts_cover_an_axis_evenly(
    data: st.DataObject, full: int, first: int
) -> None:
    size = data.draw(st.integers(1, full))
    held = [indices(window(size, full, first + step)) for step in range(full)]
    assert np.bincount(np.concatenate(held)).tolist() == [size] * full
    firsts = [each[0] for each in held]
    expected = range(full) if size < full else [0] * full
    assert sorted(firsts) == list(expected)


@pytest.mark.parametrize(
    ("size", "full", "shift", "expected"),
    [
        (8, 32, 24, ((24, 32),)),
        (16, 32, 24, ((24, 32), (0, 8))),
        (16, 32, 32, ((0, 16),)),
        (16, 32, -8, ((24, 32), (0, 8))),
        (16, 24, 40, ((16, 24), (0, 8))),
        (32, 32, 8, ((0, 32),)),
    ],
)
def test_windows_by_hand(size: int, full: int, shift: int, expected: object) -> None:
    assert window(size, full, shift) == expected


@given(half=st.integers(0, 9), edge=st.integers(0, 9))
def test_a_centre_has_equal_edges(half: int, edge: int) -> None:
    size, full = 1 + 2 * half, 1 + 2 * half + 2 * edge
    ((start, stop),) = centre(size, full)
    assert (start, full - stop, stop - start) == (edge, edge, size)


# Subnets of subnets


def at_most(mine: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Compare the layers of a stage: no more, and none with more."""
    return len(mine) <= len(theirs) and all(a <= b for a, b in zip(mine, theirs, strict=False))


def is_inside(inner: Architecture, outer: Architecture) -> bool:
    """Say the same as ``inside`` from what architectures hold."""
    if isinstance(inner, MobileNetArchitecture) and isinstance(outer, MobileNetArchitecture):
        # A shallower stage may hand on more channels than a deeper one does.
        handed = all(a[-1] <= b[-1] for a, b in zip(inner.width, outer.width, strict=True))
        return handed and all(
            map(at_most, (*inner.width, *inner.kernel), (*outer.width, *outer.kernel))
        )
    assert isinstance(inner, WideResNetArchitecture) and isinstance(outer, WideResNetArchitecture)
    if inner.stem > outer.stem or not at_most(inner.width, outer.width):
        return False
    return all(map(at_most, inner.mid, outer.mid))


@pytest.mark.slow
@pytest.mark.parametrize("name", NESTING)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_subnet_cut_out_of_a_subnet_is_the_supernets(name: str, data: st.DataObject) -> None:
    of = space(name)
    genes = data.draw(choices(of))
    more = [data.draw(st.integers(g, n - 1)) for g, n in zip(genes, of.genes, strict=True)]
    small, large = of.decode(genes), of.decode(more)
    assume(name != TINY or is_inside(small, large))
    inner, outer, state = of.boxes(small), of.boxes(large), noisy_state(of)
    within = inside(inner, outer)
    assert within is not None
    once, twice = extract(state, inner), extract(extract(state, outer), within)
    assert list(twice) == list(once)
    assert all(torch.equal(twice[name], once[name]) for name in once)


@pytest.mark.parametrize("name", [TINY, POCKET, NARROW])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_inside_says_none_where_anything_is_larger(name: str, data: st.DataObject) -> None:
    of = space(name)
    genes = data.draw(choices(of))
    other = list(genes)  # near, as of two unrelated draws hardly one ever lies in the other
    for gene in data.draw(st.lists(st.integers(0, len(genes) - 1), max_size=3)):
        other[gene] = data.draw(st.integers(0, of.genes[gene] - 1))
    one, two = of.decode(genes), of.decode(other)
    assert (inside(of.boxes(one), of.boxes(two)) is not None) == is_inside(one, two)
    assert (inside(of.boxes(two), of.boxes(one)) is not None) == is_inside(two, one)


MIDDLE = MobileNetArchitecture(((16,), (32,), (64,)), ((5,), (5,), (5,)))


@pytest.mark.parametrize(
    ("width", "kernel", "fits"),
    [
        (((16,), (32,), (64,)), ((5,), (5,), (5,)), True),
        (((8,), (32,), (32,)), ((3,), (5,), (3,)), True),
        (((24,), (32,), (64,)), ((5,), (5,), (5,)), False),
        (((16,), (32,), (96,)), ((5,), (5,), (5,)), False),
        (((16,), (32,), (64,)), ((5,), (7,), (5,)), False),
        (((8,), (16, 16), (32,)), ((3,), (3, 3), (3,)), False),
    ],
    ids=["itself", "smaller", "wider", "wider at the end", "larger kernel", "deeper"],
)
def test_nesting_by_hand(
    width: tuple[tuple[int, ...], ...], kernel: tuple[tuple[int, ...], ...], fits: bool
) -> None:
    of = space(TINY)
    found = inside(of.boxes(MobileNetArchitecture(width, kernel)), of.boxes(MIDDLE))
    assert (found is not None) == fits


def test_a_kernel_of_three_lies_amid_one_of_five() -> None:
    of = space(TINY)
    found = inside(of.boxes(of.smallest), of.boxes(MIDDLE))
    assert found is not None
    assert found["stages.1.0.depthwise.weight"] == (((0, 8),), ((0, 1),), ((1, 4),), ((1, 4),))
    assert found["stages.1.0.pointwise.weight"] == (((0, 16),), ((0, 8),), ((0, 1),), ((0, 1),))


def test_a_shifted_window_lies_in_another_unless_either_rolls_over() -> None:
    of, state = space(TINY), noisy_state(space(TINY))
    quarter, half, whole = of.at_width(0.25), of.at_width(0.5), of.boxes(of.largest)
    outer = of.rolled(half, 8)
    inner = of.rolled(quarter, 16)  # of 32 channels 16 to 24 out of 8 to 24, and so on
    found = inside(inner, outer)
    assert found is not None
    assert found["stages.0.0.pointwise.weight"][0] == ((8, 16),)
    assert found["stages.2.1.pointwise.weight"][:2] == (((8, 40),), ((8, 40),))
    once, twice = extract(state, inner), extract(extract(state, outer), found)
    assert all(torch.equal(twice[name], once[name]) for name in once)
    assert inside(of.rolled(quarter, 0), outer) is None  # starts before it
    assert inside(inner, whole) == inner
    assert inside(of.rolled(half, 24), whole) is None  # 24 to 32 and 0 to 8
    assert inside(of.rolled(half, 24), of.rolled(half, 24)) is None
    assert inside(of.rolled(quarter, 24), of.rolled(half, 24)) is None


# Rolled windows


@pytest.mark.parametrize("name", ROLLING)
@settings(max_examples=30, deadline=None)
@given(data=st.data(), shift=shifts)
def test_rolled_boxes_are_ordinary_ones_of_rolled_weights(
    name: str, data: st.DataObject, shift: int
) -> None:
    of = space(name)
    arch, state = data.draw(architectures(of)), noisy_state(of)
    assert of.rolled(arch, 0) == of.boxes(arch)
    shapes, boxes = of.shapes(arch), of.rolled(arch, shift)
    assert [(name, placement_shape(box)) for name, box in boxes.items()] == list(shapes.items())
    turned = {}
    for tensor_name, tensor in state.items():
        own = shapes.get(tensor_name, tuple(tensor.shape))
        # An axis of which the subnet holds all stays; the last two are a kernel's.
        axes = [axis for axis in range(min(2, tensor.dim())) if own[axis] < tensor.shape[axis]]
        rolled = np.roll(tensor.numpy(), [-shift] * len(axes), axes) if axes else tensor.numpy()
        turned[tensor_name] = torch.as_tensor(rolled)
    found, expected = extract(state, boxes), extract(turned, of.boxes(arch))
    assert all(torch.equal(found[name], expected[name]) for name in shapes)


@pytest.mark.parametrize("name", ROLLING)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), norm=norms, shift=shifts)
def test_a_rolled_subnet_answers_as_the_supernet_with_nothing_else_in_it(
    name: str, data: st.DataObject, norm: str, shift: int
) -> None:
    """So every layer reads the channels that the one before writes, and norm groups stay whole."""
    of = space(name, norm=norm)
    genes = data.draw(choices(of))
    stages = 2 if name == NARROW else 3
    arch = of.decode([*(number - 1 for number in of.genes[:stages]), *genes[stages:]])
    boxes = of.rolled(arch, shift)
    subnet = {n: tensor.double() for n, tensor in extract(noisy_state(of), boxes).items()}
    state = {n: torch.zeros(shape).double() for n, shape in of.shapes(of.largest).items()}
    for tensor_name, box in boxes.items():
        for outer, inner in pieces(box):
            state[tensor_name][outer] = subnet[tensor_name][inner]
    answers = []
    for each, weights in ((arch, subnet), (of.largest, state)):
        module = of.build(each).double().train()
        module.load_state_dict(weights)
        answers.append(module(pictures(3).double()).detach())
    torch.testing.assert_close(*answers, rtol=1e-9, atol=1e-9)
    assert answers[0].std() > 0


def narrowed(of: SearchSpace, boxes: Boxes) -> Iterator[tuple[tuple[Interval, ...], int]]:
    """Yield the window and the length of every axis of which a subnet holds a part."""
    for name, shape in of.shapes(of.largest).items():
        for intervals, full in zip(boxes[name], shape, strict=True):
            if placement_shape((intervals,)) < (full,):
                yield intervals, full


def test_a_cycle_of_shifts_covers_every_channel_alike() -> None:
    of = space(TINY)
    quarter = of.at_width(0.25)
    cycle = [list(narrowed(of, of.rolled(quarter, shift))) for shift in range(0, 128, 8)]
    axes = list(zip(*cycle, strict=True))
    assert {len(indices(windows[0][0])) for windows in axes} == {8, 16, 32}
    assert len(axes) == 5 * 3 + 4 * 4 + 1  # what each layer writes; what all but one read; head
    for windows in axes:
        full = windows[0][1]
        held = [indices(intervals) for intervals, _ in windows]
        assert np.bincount(np.concatenate(held)).tolist() == [4] * full
        once = held[: full // 8 : full // 32]  # shifts by the window's own size
        assert sorted(itertools.chain(*once)) == list(range(full))


def test_rolled_boxes_by_hand() -> None:
    of = space(NARROW)
    half = of.at_width(0.5)
    assert half == WideResNetArchitecture(8, (16, 24), ((16, 16), (24, 24)))
    boxes = of.rolled(half, 24)
    out, mid = ((24, 32), (0, 8)), ((24, 48),)  # of 32 and of 48 channels
    assert boxes["stem.conv.weight"][:2] == (((8, 16),), ((0, 1),))  # 24 is 8 of 16
    assert boxes["stages.0.1.conv1.weight"] == (out, out, ((0, 3),), ((0, 3),))
    assert boxes["stages.1.0.conv1.weight"] == (mid, out, ((0, 3),), ((0, 3),))
    assert boxes["stages.1.0.shortcut.conv.weight"] == (mid, out, ((0, 1),), ((0, 1),))
    assert boxes["head.weight"] == (((0, 3),), mid)
    assert of.rolled(of.largest, 24) == of.boxes(of.largest)


def test_widths_of_the_real_space() -> None:
    of = space("resnet10-26-wide")
    mids = tuple((mid,) * 3 for mid in (32, 64, 128, 256))
    assert of.at_width(0.5) == WideResNetArchitecture(32, (128, 256, 512, 1024), mids)
    assert of.at_width(1.0) == of.largest and len(of.width_shares) == 10
    with pytest.raises(ValueError, match=r"^width 0.55 is none of the space 'resnet10-26-wide': 0"):
        of.at_width(0.55)


def test_a_space_of_fixed_widths_has_nothing_to_roll() -> None:
    of = space("resnet-tiny")
    with pytest.raises(ValueError, match="'resnet-tiny' has no windows that could roll"):
        of.rolled(of.largest, 8)


@pytest.mark.parametrize("dimension", ["depth", "kernel"])
def test_a_mobilenet_of_fixed_widths_has_nothing_to_roll(dimension: str) -> None:
    of = space(f"{TINY}-{dimension}")
    assert of.width_shares == ()
    with pytest.raises(ValueError, match=f"'{TINY}-{dimension}' has no windows that could roll"):
        of.rolled(of.smallest, 8)


# Draws from within a subnet


@pytest.mark.parametrize("name", [*NESTING, POCKET])
@settings(max_examples=30, deadline=None)
@given(data=st.data(), seed=st.integers(0, 99))
def test_a_draw_from_within_lies_within(name: str, data: st.DataObject, seed: int) -> None:
    of = space(name)
    outer = data.draw(architectures(of))
    found = of.sample_inside(outer, np.random.default_rng(seed))
    of.validate(found)
    assert inside(of.boxes(found), of.boxes(outer)) is not None
    within_all = of.sample_inside(of.largest, np.random.default_rng(seed))
    assert within_all == of.sample(np.random.default_rng(seed))
    assert of.sample_inside(of.smallest, np.random.default_rng(seed)) == of.smallest


@pytest.mark.slow
@pytest.mark.parametrize("index", range(20))
def test_draws_from_within_reach_all_that_lies_there(index: int) -> None:
    of = space(POCKET)
    every = sorted(set(map(of.decode, itertools.product(*map(range, of.genes)))), key=str)
    outer, rng = every[index], np.random.default_rng(0)
    inner = {arch for arch in every if is_inside(arch, outer)}
    drawn = {of.sample_inside(outer, rng) for _ in range(400)}
    assert drawn == inner and {outer, of.smallest} <= drawn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "outer"),
    [
        (f"{TINY}-depth", [0, 1, 0, *[0] * 10]),
        (f"{TINY}-kernel", [0, 0, 0, 0, 2, *[0, 1] * 4]),
        ("resnet-tiny", [1, 0, 0, 0, *[1] * 8]),
        (NARROW, [0, 0, *[2] * 4, 2, 1, 2]),
    ],
)
def test_draws_from_within_reach_both_ends(name: str, outer: list[int]) -> None:
    of, rng = space(name), np.random.default_rng(0)
    arch = of.decode(outer)
    assert of.smallest != arch != of.largest
    drawn = {of.sample_inside(arch, rng) for _ in range(1000)}
    assert {of.smallest, arch} <= drawn
