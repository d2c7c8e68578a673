"""Bytes that a message adds to its subnet's stay within 2% and 4 kB, both ways."""

import pytest

from superfednas.bench.messages import ENVELOPE, one_round
from superfednas.wire.flat import WIRE_DTYPES


@pytest.mark.parametrize("wire_dtype", WIRE_DTYPES)
@pytest.mark.parametrize("architecture", ["smallest", "largest"])
def test_bytes_on_the_wire(architecture: str, wire_dtype: str) -> None:
    size, down, up = one_round("resnet-tiny", architecture, wire_dtype)
    assert size < down <= 1.02 * size + ENVELOPE
    assert size < up <= 1.02 * size + ENVELOPE
