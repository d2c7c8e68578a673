"""Axes: what follows from them in every family, and what a space that names none has."""

import itertools
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.supernet import SPACES, Architecture, SearchSpace
from superfednas.supernet.axes import (
    Axis,
    Kind,
    Trait,
    axes_by_name,
    lies_within,
    permuted,
    shapes_of_axes,
    weight_bytes,
)
from superfednas.supernet.boxes import (
    Boxes,
    Interval,
    centre,
    extract,
    inside,
    prefix_boxes,
    window,
)
from superfednas.supernet.contract import PROMISES, check_space
from superfednas.supernet.families.mobilenet.spaces import MobileNetArchitecture, MobileNetSpace
from superfednas.tasks.images import Images
from tests.support.spaces import NARROW, POCKET, TWIN
from tests.support.strategies import architectures, noisy_state, norms, pictures, space

EVERY = [*SPACES, NARROW, POCKET, TWIN]
SMALL = ["resnet-tiny", NARROW, "mobilenetv1-tiny", POCKET]
shifts = st.integers(-20, 20).map(lambda step: 8 * step)


def by_hand(of: MobileNetSpace, arch: Architecture, shift: int) -> Boxes:
    """Place a MobileNet's tensors one by one."""
    assert isinstance(arch, MobileNetArchitecture)

    def whole(*sizes: int) -> tuple[tuple[Interval, ...], ...]:
        return tuple(((0, size),) for size in sizes)

    def norm(name: str) -> None:
        if of.norm != "none":
            boxes[f"{name}.weight"] = boxes[f"{name}.bias"] = (channels,)

    (channels,) = whole(of.stem)
    boxes: Boxes = {"stem.conv.weight": (channels, *whole(of.in_channels, 3, 3))}
    norm("stem.norm")
    for stage, (widths, kernels) in enumerate(zip(arch.width, arch.kernel, strict=True)):
        for layer, (outputs, side) in enumerate(zip(widths, kernels, strict=True)):
            name, before = f"stages.{stage}.{layer}", channels
            kernel = centre(side, of.kernel_sizes[-1])
            boxes[f"{name}.depthwise.weight"] = (channels, *whole(1), kernel, kernel)
            norm(f"{name}.norm1")
            channels = window(outputs, of.widths[stage], shift)
            boxes[f"{name}.pointwise.weight"] = (channels, before, *whole(1, 1))
            norm(f"{name}.norm2")
    boxes["head.weight"] = (*whole(of.num_classes), channels)
    boxes["head.bias"] = whole(of.num_classes)
    return boxes


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=10, deadline=None)
@given(data=st.data(), norm=norms, shift=shifts)
def test_boxes_from_axes_are_those_written_by_hand(
    name: str, data: st.DataObject, norm: str, shift: int
) -> None:
    of = space(name, norm=norm)
    arch = data.draw(architectures(of))
    with torch.device("meta"):
        built = {n: tuple(t.shape) for n, t in of.module(arch).state_dict().items()}
    assert list(of.shapes(arch).items()) == list(built.items())
    if isinstance(of, MobileNetSpace):
        assert list(of.boxes(arch).items()) == list(by_hand(of, arch, 0).items())
        if of.width_shares:
            assert of.rolled(arch, shift) == by_hand(of, arch, shift)
    else:
        assert list(of.boxes(arch).items()) == list(prefix_boxes(built).items())


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), norm=norms)
def test_permuting_an_axis_keeps_what_the_network_answers(
    name: str, data: st.DataObject, norm: str
) -> None:
    of = space(name, norm=norm)
    arch = data.draw(architectures(of))
    axes = of.axes(arch)
    assert axes is not None
    named = axes_by_name(axes)
    axis = named[
        data.draw(st.sampled_from([n for n, a in named.items() if a.kind is Kind.CHANNELS]))
    ]
    # Norm groups stay together: groups change places, and channels within each.
    groups = data.draw(st.permutations(range(axis.size // 8)))
    order = [8 * g + c for g in groups for c in data.draw(st.permutations(range(8)))]
    state = {n: t.double() for n, t in extract(noisy_state(of), of.boxes(arch)).items()}
    answers = []
    for weights in (state, permuted(state, axes, axis.name, order)):
        module = of.build(arch).double().train()
        module.load_state_dict(weights)
        answers.append(module(pictures(3).double()).detach())
    torch.testing.assert_close(*answers, rtol=1e-9, atol=1e-9)
    assert answers[0].std() > 0


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_permuting_moves_every_dimension_of_the_axis_and_no_other(data: st.DataObject) -> None:
    a, b = Axis("a", 3), Axis("b", 2)
    axes = {"w": (a, b), "v": (b, a, a), "u": (b,)}
    order = data.draw(st.permutations(range(3)))
    state = {n: torch.arange(float(np.prod(s))).reshape(s) for n, s in shapes_of_axes(axes).items()}
    moved = permuted(state, axes, "a", order)
    assert torch.equal(moved["w"], state["w"][order])
    assert torch.equal(moved["v"], state["v"][:, order][:, :, order])
    assert torch.equal(moved["u"], state["u"])
    back = permuted(moved, axes, "a", np.argsort(order).tolist())
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


# Lies inside


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_containing_is_an_order_and_agrees_with_boxes(name: str, data: st.DataObject) -> None:
    of = space(name)
    a, b, c = (data.draw(architectures(of)) for _ in range(3))
    inner = of.sample_inside(a, np.random.default_rng(data.draw(st.integers(0, 99))))
    assert of.contains(a, a) and of.contains(of.largest, a) and of.contains(a, of.smallest)
    for one, two in itertools.permutations((a, b, c, inner), 2):
        within = of.within(one, two)
        assert of.contains(one, two) == (within is not None)
        assert within == inside(of.boxes(two), of.boxes(one))
        shapes, outer = of.shapes(two), of.shapes(one)  # all windows of these spaces nest
        assert of.contains(one, two) == all(
            n in outer and all(x <= y for x, y in zip(shape, outer[n], strict=True))
            for n, shape in shapes.items()
        )
        assert (of.contains(one, two) and of.contains(two, one)) == (shapes == outer)
    for one, two, three in itertools.permutations((a, b, c, inner), 3):
        if of.contains(one, two) and of.contains(two, three):
            assert of.contains(one, three)


# A space that names no axes, and one that names them wrongly


class Unnamed(MobileNetSpace):
    """A MobileNet of one kernel size that leaves its shapes to its modules."""

    name = "unnamed"
    stem = 8
    widths = (16,)
    layers = ((1, 2),)
    strides = (2,)
    shares = (0.5, 1.0)
    kernels = (3,)

    def axes(self, arch: Architecture) -> None:  # type: ignore[override]
        return None


class Misnamed(Unnamed):
    """The same, with the depthwise convolution's channels under the name of what it hands on."""

    name = "misnamed"

    def axes(self, arch: Architecture) -> dict[str, tuple[Axis, ...]]:  # type: ignore[override]
        axes = dict(MobileNetSpace.axes(self, arch))
        first, *rest = axes["stages.0.0.depthwise.weight"]
        axes["stages.0.0.depthwise.weight"] = (first._replace(name="other"), *rest)
        return axes


def test_a_space_that_names_no_axes_has_the_shapes_of_its_modules() -> None:
    of = Unnamed(Images(3, 1, 8))
    assert not [found for found in check_space(of, samples=3) if found.problem]
    for arch in map(of.decode, itertools.product(*map(range, of.genes))):
        with torch.device("meta"):
            built = {n: tuple(t.shape) for n, t in of.module(arch).state_dict().items()}
        assert of.boxes(arch) == prefix_boxes(built)
    with pytest.raises(ValueError, match="'unnamed' has no windows that could roll"):
        of.rolled(of.smallest, 8)


def test_the_contract_finds_an_axis_of_two_names() -> None:
    of = cast(SearchSpace, Misnamed(Images(3, 1, 8)))
    broken = {found.promise for found in check_space(of, samples=2) if found.problem}
    assert broken == {list(PROMISES)[4]}


# Traits

levels = st.dictionaries(st.sampled_from("abc"), st.builds(Trait, st.integers(1, 4)))


@settings(max_examples=200, deadline=None)
@given(a=levels, b=levels, c=levels)
def test_lying_within_by_traits_is_an_order(
    a: dict[str, Trait], b: dict[str, Trait], c: dict[str, Trait]
) -> None:
    assert lies_within(a, a) and lies_within({}, a)
    assert (lies_within(a, b) and lies_within(b, a)) == (a == b)
    if lies_within(a, b) and lies_within(b, c):
        assert lies_within(a, c)
    assert lies_within(a, b) == (
        a.keys() <= b.keys() and all(t.level <= b[n].level for n, t in a.items())
    )


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    bits=st.integers(1, 32),
    kept=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_weight_bytes_are_whole_bytes_a_tensor(sizes: list[int], bits: int, kept: float) -> None:
    shapes = {str(number): (size,) for number, size in enumerate(sizes)}
    assert weight_bytes(shapes, {}) == 4 * sum(sizes)
    traits = {"bits": Trait(bits, ("0",), bits / 32), "kept": Trait(kept, ("0",), kept)}
    first = -(-int(4 * kept) * bits * sizes[0] // 32)  # quarters of bits, rounded up to bytes
    assert weight_bytes(shapes, traits) == first + 4 * sum(sizes[1:])


def test_weight_bytes_by_hand() -> None:
    traits = {"bits": Trait(4, ("a",), 4 / 32)}
    assert weight_bytes({"a": (3, 3), "b": (2,)}, traits) == 5 + 8  # 36 bits, two float32
