"""Flat arrays as Flower's bytes: written as Flower writes them, read as views, nothing guessed."""

import io

import numpy as np
import pytest
from flwr.app import Array

from superfednas.wire.npy import flat_fields, flat_view

FLATS = {
    "float32": np.arange(7, dtype=np.float32),
    "opaque": np.arange(7, dtype=np.uint16).view("V2"),
    "empty": np.empty(0, np.float32),
    "long": np.ones(100_003, np.float32),
    "every second": np.arange(14, dtype=np.float32)[::2],
}


@pytest.mark.parametrize("flat", FLATS.values(), ids=FLATS)
def test_what_is_written_is_flowers_to_the_byte(flat: np.ndarray) -> None:
    assert Array(*flat_fields(flat)) == Array(flat)


@pytest.mark.parametrize("flat", FLATS.values(), ids=FLATS)
def test_what_flower_wrote_is_read_as_a_view(flat: np.ndarray) -> None:
    data = Array(flat).data
    found = flat_view(data, flat.dtype)
    assert found is not None and found.dtype == flat.dtype and not found.flags.writeable
    assert found.tobytes() == flat.tobytes()
    assert np.shares_memory(found, np.frombuffer(data, np.uint8)) or not flat.size


def saved(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, array, version)
    return content.getvalue()


NUMBERS = np.arange(4, dtype=np.float32)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        saved(NUMBERS)[:-1],
        saved(NUMBERS) + b"\0",
        saved(NUMBERS, (2, 0)),
        saved(NUMBERS.reshape(2, 2)),
        saved(NUMBERS.astype(">f4")),
        saved(NUMBERS.astype(np.int32)),
        saved(NUMBERS)[:128],
        saved(NUMBERS[:3])[:128] + bytes(16),
    ],
)
def test_whatever_differs_is_not_read(data: bytes) -> None:
    assert flat_view(data, np.dtype(np.float32)) is None
