"""The flat array of a message: identity, rounding, views and refusals."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.supernet import extract
from superfednas.wire.flat import WIRE_DTYPES, numel, numpy_dtype, pack, unpack
from tests.support.strategies import architectures, norms, space

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
shapes_ = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    max_size=5,
)


def bits(count: int, seed: int) -> np.ndarray:
    """Give any bits at all: NaNs, infinities and denormals too."""
    return np.random.default_rng(seed).integers(2**32, size=count, dtype=np.uint32)


# Laws


@settings(max_examples=60, deadline=None)
@given(shapes=shapes_, seed=st.integers(0, 2**31))
def test_float32_keeps_every_bit(shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    flat = bits(numel(shapes), seed).view(np.float32)
    tensors = unpack(flat, shapes)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    assert list(tensors) == list(shapes)
    again = pack(tensors)
    assert again.dtype == np.float32 and again.ndim == 1
    assert again.tobytes() == flat.tobytes()


@settings(max_examples=60, deadline=None)
@given(shapes=shapes_, seed=st.integers(0, 2**31), wire=st.sampled_from(WIRE_DTYPES))
def test_a_round_trip_is_rounding(shapes: dict[str, tuple[int, ...]], seed: int, wire: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    flat = pack(tensors, wire)
    assert flat.dtype == numpy_dtype(wire) and flat.shape == (numel(shapes),)
    found = unpack(flat, shapes, wire)
    for name, tensor in tensors.items():
        assert found[name].dtype == DTYPES[wire]
        assert torch.equal(found[name], tensor.to(DTYPES[wire]))
    assert pack(found, wire).tobytes() == flat.tobytes()  # rounding twice is rounding once


@settings(max_examples=20, deadline=None)
@given(data=st.data(), norm=norms, wire=st.sampled_from(WIRE_DTYPES))
def test_a_subnet_travels_in_the_order_of_its_state(
    data: st.DataObject, norm: str, wire: str
) -> None:
    of = space(norm=norm)
    arch, state = data.draw(architectures(of)), of.init(1)
    flat = pack(extract(state, arch), wire)
    assert flat.shape == (of.params(arch),)
    module = of.build(arch)
    module.load_state_dict(unpack(flat, of.shapes(arch), wire))
    ordered = torch.cat([tensor.flatten() for tensor in module.state_dict().values()])
    assert torch.equal(ordered, torch.from_numpy(pack(unpack(flat, of.shapes(arch), wire))))
    for name, tensor in module.state_dict().items():
        cut = state[name][tuple(map(slice, tensor.shape))]
        assert torch.equal(tensor, cut.to(DTYPES[wire]).float())


# By hand


def test_pack_by_hand() -> None:
    tensors = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T, "b": torch.tensor([0.5])}
    assert pack(tensors).tolist() == [1, 3, 2, 4, 0.5]
    assert pack(tensors, "float16").view(np.float16).tolist() == [1, 3, 2, 4, 0.5]
    assert pack({"one": torch.tensor([1.0])}, "bfloat16").view(np.uint16).tolist() == [0x3F80]
    assert pack({}).shape == (0,)


def test_float16_overflows_to_infinity_and_bfloat16_does_not() -> None:
    large = {"w": torch.tensor([1e5])}
    assert np.isinf(pack(large, "float16").view(np.float16)).all()
    found = unpack(pack(large, "bfloat16"), {"w": (1,)}, "bfloat16")["w"]
    assert float(found) == pytest.approx(1e5, rel=2**-8)


@pytest.mark.parametrize("wire", WIRE_DTYPES)
def test_unpack_gives_views_and_pack_a_new_array(wire: str) -> None:
    flat = pack({"w": torch.zeros(2, 2), "b": torch.zeros(1)}, wire)
    views = unpack(flat, {"w": (2, 2), "b": (1,)}, wire)
    views["w"][0, 1] = 1
    assert np.flatnonzero(flat).tolist() == [1]
    copied = pack(views, wire)
    copied.view(np.uint8)[:] = 0
    assert views["w"][0, 1] == 1


@pytest.mark.parametrize("wire", WIRE_DTYPES)
def test_pack_fills_an_array_that_it_is_given(wire: str) -> None:
    tensors = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T, "b": torch.tensor([0.5])}
    room = pack({"w": torch.full((7,), 9.0)}, wire)
    into = room[1:6]
    assert pack(tensors, wire, into) is into
    assert into.tobytes() == pack(tensors, wire).tobytes()
    assert room[[0, 6]].tobytes() == pack({"w": torch.full((2,), 9.0)}, wire).tobytes()


def test_pack_refuses_an_array_that_does_not_fit() -> None:
    for into in (np.zeros(2, np.float32), np.zeros(3, np.float64), np.zeros((3, 1), np.float32)):
        with pytest.raises(ValueError, match="in place of"):
            pack({"w": torch.ones(3)}, into=into)
    closed = np.frombuffer(bytes(12), np.float32)
    with pytest.raises(ValueError, match="cannot be written to"):
        pack({"w": torch.ones(3)}, into=closed)
    assert not closed.any()


def test_what_cannot_be_written_to_is_unpacked_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = unpack(
            np.frombuffer(np.arange(3, dtype=np.float32).tobytes(), np.float32), {"w": (3,)}
        )
    assert found["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
def test_what_has_16_bits_cannot_be_computed_with(wire: str) -> None:
    flat = pack({"w": torch.ones(3)}, wire)
    for compute in (
        lambda: flat - flat,
        lambda: flat * 1,
        lambda: flat + np.zeros(3),
        lambda: np.add(np.zeros(3), flat),
        lambda: np.linalg.norm(flat),
        lambda: flat.mean(),
    ):
        with pytest.raises((TypeError, ValueError)):
            compute()
    assert pack({"w": torch.ones(3)}, wire).tobytes() == flat.tobytes()


def test_pack_takes_parameters_that_need_gradients() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    flat = pack({"w": weight})
    flat[0] = 9
    assert weight.tolist() == [1, 2] and weight.requires_grad


@pytest.mark.parametrize(
    ("flat", "wire", "sentence"),
    [
        (np.zeros(4, np.float32), "float32", r"shape \(4,\) in place of \(5,\)"),
        (np.zeros(6, np.float32), "float32", r"shape \(6,\) in place of \(5,\)"),
        (np.zeros(0, np.float32), "float32", r"shape \(0,\) in place of \(5,\)"),
        (np.zeros((5, 1), np.float32), "float32", r"shape \(5, 1\) in place of \(5,\)"),
        (np.zeros((), np.float32), "float32", r"shape \(\) in place of \(5,\)"),
        (np.zeros(5), "float32", "dtype float64 in place of float32 for wire-dtype float32"),
        (np.zeros(5, np.float16), "float32", "dtype float16 in place of float32"),
        (np.zeros(5, ">f4"), "float32", "dtype >f4 in place of float32"),
        (np.zeros(5, np.float32), "float16", r"dtype float32 in place of \|V2"),
        (np.zeros(5, np.float16), "float16", r"dtype float16 in place of \|V2"),
        (np.zeros(5, np.uint16), "bfloat16", r"dtype uint16 in place of \|V2"),
        (np.zeros(5, "i1,i1"), "bfloat16", r"dtype .* in place of \|V2"),
        (np.zeros(5, object), "float32", "dtype object in place of float32"),
    ],
)
def test_other_arrays_are_refused(flat: np.ndarray, wire: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        unpack(flat, {"w": (2, 2), "b": (1,)}, wire)


def test_numel() -> None:
    assert numel({"w": (2, 3), "b": (4,), "s": ()}) == 2 * 3 + 4 + 1
    assert numel({}) == 0
