"""Replies of 16 bits are changes: the server's own weights are never rounded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.server.average.overlap import OverlapAverage
from superfednas.server.average.robust import RobustAverage
from superfednas.server.round.decode import incoming
from superfednas.server.round.encode import gather
from superfednas.supernet import State, load_space
from superfednas.supernet.boxes import Cut, extract, shapes_of
from superfednas.wire.flat import numpy_dtype, pack, sends_change, unpack

SPACE = load_space("resnet-tiny", num_classes=10, in_channels=1, image_size=8, norm="group")
STATE = SPACE.init(0)
SHORT = ("float16", "bfloat16")


def cut_of(seed: int) -> Cut:
    arch = SPACE.sample(np.random.default_rng(seed))
    return Cut(shapes_of(STATE), SPACE.boxes(arch))


def reply(cut: Cut, wire: str, seed: int, scale: float = 1e-3) -> tuple[np.ndarray, State]:
    """Give a reply and the change that it holds, as rounded."""
    generator = torch.Generator().manual_seed(seed)
    change = {n: scale * torch.randn(s, generator=generator) for n, s in cut.shapes.items()}
    flat = pack(change, wire)
    return flat, {n: t.float() for n, t in unpack(flat, cut.shapes, wire).items()}


def test_float32_comes_as_it_is() -> None:
    cut = cut_of(0)
    flat = np.arange(sum(np.prod(s, dtype=int) for s in cut.shapes.values()), dtype=np.float32)
    found = incoming(STATE, cut, flat, "float32")
    first = next(iter(found.values()))
    assert first.data_ptr() == flat.ctypes.data and not sends_change("float32")
    assert pack(found).tobytes() == flat.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("wire", SHORT)
@settings(deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_change_is_added_to_what_the_server_has(wire: str, seed: int) -> None:
    """Against the plain way: cut out, then add."""
    cut = cut_of(seed)
    flat, change = reply(cut, wire, seed)
    found = incoming(STATE, cut, flat, wire)
    for name, tensor in extract(STATE, cut).items():
        assert torch.equal(found[name], tensor + change[name])


def test_by_hand() -> None:
    """What bfloat16 cannot hold beside 1 stays: 1 + 1/1024, where whole weights would give 1."""
    state = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    cut = Cut(shapes_of(state), {"w": (2, 1)})
    flat = pack({"w": torch.tensor([[2.0**-10], [-(2.0**-12)]])}, "bfloat16")
    found = incoming(state, cut, flat, "bfloat16")
    assert found["w"].tolist() == [[1 + 2.0**-10], [3 - 2.0**-12]]
    whole = pack({"w": torch.tensor([[1 + 2.0**-10]])}, "bfloat16")
    assert unpack(whole, {"w": (1, 1)}, "bfloat16")["w"].tolist() == [[1.0]]


@pytest.mark.slow
@pytest.mark.parametrize("wire", SHORT)
@settings(deadline=None)
@given(seeds=st.lists(st.integers(0, 2**31), min_size=1, max_size=4))
def test_clients_that_learn_nothing_leave_every_bit(wire: str, seeds: list[int]) -> None:
    """slice∘merge is the identity in 16 bits too, whatever was rounded on the way out."""
    average, robust = OverlapAverage(STATE), RobustAverage(STATE, "median")
    for number, seed in enumerate(seeds):
        cut = cut_of(seed)
        zeros = np.zeros(sum(np.prod(s, dtype=int) for s in cut.shapes.values()), np.uint16)
        flat = zeros.view(numpy_dtype(wire))
        average.add(incoming(STATE, cut, flat, wire), 1.0, cut)
        robust.add(incoming(STATE, cut, flat, wire), 1.0, cut, str(number))
    for merged in (average.result(), robust.result()):
        assert all(torch.equal(merged[name], tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize("wire", SHORT)
def test_a_reply_of_another_length_is_refused(wire: str) -> None:
    cut = cut_of(4)
    with pytest.raises(ValueError, match="in place of"):
        incoming(STATE, cut, np.zeros(3, numpy_dtype(wire)), wire)


def test_what_goes_out_is_rounded_and_what_the_server_keeps_is_not() -> None:
    """One round trip of a client that moves every weight by the same small step."""
    cut, step = Cut(shapes_of(STATE), SPACE.boxes(SPACE.largest)), 2.0**-14
    sent = np.empty(SPACE.params(SPACE.largest), numpy_dtype("bfloat16"))
    gather(STATE, cut, sent, "bfloat16")
    received = {n: t.float() for n, t in unpack(sent, cut.shapes, "bfloat16").items()}
    trained = {n: t + step for n, t in received.items()}
    flat = pack({n: t - received[n] for n, t in trained.items()}, "bfloat16")
    found = incoming(STATE, cut, flat, "bfloat16")
    for name, tensor in STATE.items():
        # Of weights below 2 a float32 holds a step of 2^-14 to within 2^-24.
        assert float((found[name] - tensor - step).abs().max()) <= 2.0**-23
