"""Boxes against index lists, views, and autograd through views of the supernet's parameters."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call
from torch.nn import functional

from superfednas.supernet import State, extract
from superfednas.supernet.boxes import (
    Interval,
    Placement,
    pieces,
    placement_shape,
    prefix_boxes,
    resolve,
)
from tests.support.strategies import architectures, noisy_state, norms, pictures, space

Rolled = tuple[int, int, int]  # length, start and size of a window that may roll over the end


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(float(np.prod(shape))).reshape(shape)


@st.composite
def windows(draw: st.DrawFn) -> Rolled:
    length = draw(st.integers(1, 7))
    return length, draw(st.integers(0, length - 1)), draw(st.integers(1, length))


def intervals(window: Rolled) -> tuple[Interval, ...]:
    length, start, size = window
    stop = start + size
    return ((start, stop),) if stop <= length else ((start, length), (0, stop - length))


def indices(window: Rolled) -> list[int]:
    length, start, size = window
    return [(start + k) % length for k in range(size)]


# Placements against index lists


@settings(max_examples=150, deadline=None)
@given(rolled=st.lists(windows(), min_size=1, max_size=4))
def test_extract_agrees_with_index_lists(rolled: list[Rolled]) -> None:
    whole = numbers(*(length for length, _, _ in rolled))
    placement: Placement = tuple(map(intervals, rolled))
    found = extract({"w": whole}, {"w": placement})["w"]
    expected = whole.numpy()[np.ix_(*map(indices, rolled))]
    assert placement_shape(placement) == expected.shape
    assert np.array_equal(found.numpy(), expected)


@settings(max_examples=150, deadline=None)
@given(rolled=st.lists(windows(), min_size=1, max_size=4))
def test_scattering_back_agrees_with_index_lists(rolled: list[Rolled]) -> None:
    whole = numbers(*(length for length, _, _ in rolled))
    placement = tuple(map(intervals, rolled))
    part = extract({"w": whole}, {"w": placement})["w"].clone()
    unchanged, written, expected = whole.clone(), whole.clone(), whole.numpy().copy()
    expected[np.ix_(*map(indices, rolled))] = -part.numpy() - 1
    for outer, inner in pieces(placement):
        unchanged[outer] = part[inner]
        written[outer] = -part[inner] - 1
    assert torch.equal(unchanged, whole)
    assert np.array_equal(written.numpy(), expected)


@settings(max_examples=100, deadline=None)
@given(rolled=st.lists(windows(), min_size=1, max_size=4))
def test_pieces_cover_every_element_once(rolled: list[Rolled]) -> None:
    placement = tuple(map(intervals, rolled))
    outer_hits = torch.zeros([length for length, _, _ in rolled])
    inner_hits = torch.zeros(placement_shape(placement))
    found = list(pieces(placement))
    for outer, inner in found:
        assert outer_hits[outer].shape == inner_hits[inner].shape
        outer_hits[outer] += 1
        inner_hits[inner] += 1
    assert (inner_hits == 1).all() and outer_hits.max() == 1
    assert len(found) == 2 ** sum(len(parts) == 2 for parts in placement)


def test_rolling_window_by_hand() -> None:
    row = torch.tensor([0.0, 1.0, 2.0])
    placement = (((2, 3), (0, 1)),)
    assert extract({"w": row}, {"w": placement})["w"].tolist() == [2.0, 0.0]
    assert list(pieces(placement)) == [
        ((slice(2, 3),), (slice(0, 1),)),
        ((slice(0, 1),), (slice(1, 2),)),
    ]


def test_kernel_centre() -> None:
    whole = numbers(2, 2, 5, 5)
    centre = (((0, 1),), ((0, 2),), ((1, 4),), ((1, 4),))
    found = extract({"w": whole}, {"w": centre})["w"]
    assert torch.equal(found, whole[:1, :, 1:-1, 1:-1])
    assert found[0, 0, 1, 1] == 5 * 2 + 2
    assert found.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def test_joined_pieces_are_a_copy_of_the_same_type() -> None:
    whole = numbers(4).to(torch.bfloat16)
    found = extract({"w": whole}, {"w": (((3, 4), (0, 1)),)})["w"]
    found.zero_()
    assert found.dtype == torch.bfloat16 and whole.tolist() == [0, 1, 2, 3]


def test_empty_dimension_and_scalar() -> None:
    state = {"w": numbers(3, 2), "s": torch.tensor(4.0)}
    found = extract(state, {"w": (0, 2), "s": ()})
    assert found["w"].shape == (0, 2) and found["s"] == 4


# Subnets


@settings(max_examples=30, deadline=None)
@given(data=st.data(), norm=norms)
def test_architecture_shapes_and_boxes_are_one(data: st.DataObject, norm: str) -> None:
    of = space(norm=norm)
    arch, state = data.draw(architectures(of)), of.init(0)
    by_boxes = extract(state, of.boxes(arch))
    assert list(by_boxes) == list(of.shapes(arch))
    for what in (arch, of.shapes(arch)):
        found = extract(state, what)
        assert list(found) == list(by_boxes)
        assert all(torch.equal(found[name], by_boxes[name]) for name in found)
        assert all(found[name].data_ptr() == by_boxes[name].data_ptr() for name in found)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_subnets_are_views(data: st.DataObject) -> None:
    arch, state = data.draw(architectures(space())), space().init(0)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    subnet = extract(state, arch)
    for name, part in subnet.items():
        assert part.untyped_storage().data_ptr() == state[name].untyped_storage().data_ptr()
        assert tuple(part.shape) == space().shapes(arch)[name]
        part.add_(1)
    for name, tensor in state.items():
        if name in subnet:
            kept[name][tuple(slice(size) for size in subnet[name].shape)] += 1
        assert torch.equal(tensor, kept[name])


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_subnet_of_a_subnet_is_the_subnet(data: st.DataObject) -> None:
    arch, state = data.draw(architectures(space())), space().init(0)
    twice = extract(extract(state, arch), space().smallest)
    once = extract(state, space().smallest)
    assert all(torch.equal(twice[name], once[name]) for name in once) and len(twice) == len(once)


def test_the_largest_is_everything() -> None:
    state = space().init(0)
    assert all(found is not None for found in extract(state, space().largest).values())
    assert list(extract(state, space().largest)) == list(state)


def test_prefix_boxes() -> None:
    assert prefix_boxes({"w": (2, 3), "b": (4,), "s": ()}) == {
        "w": (((0, 2),), ((0, 3),)),
        "b": (((0, 4),),),
        "s": (),
    }


# Training on views


@settings(max_examples=12, deadline=None)
@given(data=st.data(), norm=norms)
def test_training_on_views_is_training_the_subnet(data: st.DataObject, norm: str) -> None:
    of = space(norm=norm)
    arch = data.draw(architectures(of))
    images, labels = pictures(4), torch.tensor([0, 1, 2, 0])
    state = noisy_state(of)

    alone = of.build(arch).train()
    alone.load_state_dict(extract(state, arch))
    expected = alone(images)
    functional.cross_entropy(expected, labels).backward()

    shared: State = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    output = functional_call(of.build(arch).train(), extract(shared, of.boxes(arch)), images)
    functional.cross_entropy(output, labels).backward()

    assert torch.equal(output, expected)
    gradients = {name: parameter.grad for name, parameter in alone.named_parameters()}
    for name, tensor in shared.items():
        if name not in gradients:
            assert tensor.grad is None
            continue
        gradient, scattered = gradients[name], torch.zeros_like(tensor)
        assert gradient is not None and gradient.abs().max() > 0
        scattered[tuple(slice(size) for size in gradient.shape)] = gradient
        assert tensor.grad is not None and torch.equal(tensor.grad, scattered)


# Refusals


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ({"v": (2, 3)}, "'v' is not a tensor of the supernet"),
        ({"w": (3, 3)}, r"'w': \(3, 3\) does not fit inside the supernet's \(2, 3\)"),
        ({"w": (2,)}, "'w': .* does not fit"),
        ({"w": (2, 3, 1)}, "'w': .* does not fit"),
        ({"w": (-1, 3)}, "'w': .* does not fit"),
        ({"w": (((0, 2),), ((1, 4),))}, "'w': .* does not fit"),
        ({"w": (((-1, 1),), ((0, 3),))}, "'w': .* does not fit"),
        ({"w": (((2, 1),), ((0, 3),))}, "'w': .* does not fit"),
        ({"w": (((0, 2),), ((2, 3), (0, 9)))}, "'w': .* does not fit"),
        ({"w": (2, 3), "": (1,)}, "'' is not a tensor"),
    ],
)
def test_boxes_that_do_not_fit(what: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        extract({"w": numbers(2, 3)}, what)
    with pytest.raises(ValueError, match=sentence):
        resolve({"w": (2, 3)}, what)


def test_a_cut_is_checked_once_and_again_where_the_supernet_is_another() -> None:
    of = space()
    within = of.shapes(of.largest)
    cut = resolve(within, of.boxes(of.smallest))
    assert cut == of.boxes(of.smallest)
    assert cut.shapes == of.shapes(of.smallest)
    assert resolve(within, cut) is cut
    assert resolve(dict(within), cut) is cut
    with pytest.raises(ValueError, match="does not fit"):
        resolve(of.shapes(of.smallest), resolve(within, of.boxes(of.largest)))


def test_architectures_that_do_not_fit() -> None:
    of = space()
    small = extract(of.init(0), of.smallest)
    with pytest.raises(ValueError, match=r"stages.* (is not a tensor|does not fit)"):
        extract(small, of.largest)
    with pytest.raises(ValueError, match="not those of a ResNet supernet"):
        extract({"w": numbers(2, 3)}, of.smallest)
    three = {name: tensor for name, tensor in small.items() if not name.startswith("stages.3")}
    with pytest.raises(ValueError, match="the supernet has 3 stages"):
        extract(three, of.smallest)
