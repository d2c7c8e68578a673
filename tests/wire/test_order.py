"""Orders: there and back as flat scalars, their defaults, what they refuse."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.common.settings import SettingsError, flatten, parse
from superfednas.supernet.norms import NORMS
from superfednas.wire.flat import WIRE_DTYPES
from superfednas.wire.order import (
    PROTOCOL,
    LocalTraining,
    Privacy,
    SpaceOptions,
    TrainOrder,
    decode_list,
    encode_list,
)

orders = st.builds(
    TrainOrder,
    protocol=st.integers(0, 9),
    round=st.integers(0, 10**6),
    seed=st.integers(0, 2**31),
    architecture=st.text(max_size=20),
    wire_dtype=st.sampled_from(WIRE_DTYPES),
    device=st.sampled_from(("auto", "cpu", "cuda")),
    space=st.builds(SpaceOptions, norm=st.sampled_from(NORMS), num_classes=st.integers(0, 99)),
    local=st.builds(
        LocalTraining,
        lr=st.floats(1e-9, 1e9),
        momentum=st.floats(0, 0.999),
        local_steps=st.integers(0, 99),
    ),
    privacy=st.builds(Privacy, dp_clip=st.floats(0, 1e9), dp_noise=st.floats(0, 1e9)),
)


@settings(max_examples=50, deadline=None)
@given(order=orders)
def test_orders_round_trip(order: TrainOrder) -> None:
    flat = flatten(order)
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())
    assert all("_" not in key for key in flat)
    assert parse(TrainOrder, flat) == order


def test_default_order() -> None:
    order = parse(TrainOrder, {})
    assert order == TrainOrder() and order.protocol == PROTOCOL
    assert (order.local.lr, order.local.momentum, order.local.clip_norm) == (0.1, 0.0, 1.0)
    with pytest.raises(SettingsError, match=r"wire-dtype = 'float64': .*float32, float16"):
        parse(TrainOrder, {"wire-dtype": "float64"})


def test_space_options_load() -> None:
    options = SpaceOptions(num_classes=3, in_channels=1, image_size=8, norm="batch")
    loaded = options.load()
    assert loaded.name == "resnet-tiny" and loaded.norm == "batch"
    assert (loaded.num_classes, loaded.in_channels, loaded.image_size) == (3, 1, 8)
    with pytest.raises(ValueError, match="num_classes = 0"):
        SpaceOptions().load()


@given(texts=st.lists(st.text(max_size=9), max_size=4))
def test_lists_round_trip(texts: list[str]) -> None:
    assert decode_list(encode_list(texts)) == texts
