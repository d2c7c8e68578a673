"""What a message adds to its subnet's bytes stays within 2% and 4 kB, both ways."""

import sys
from pathlib import Path

import pytest

from supernet.wire import WIRE_DTYPES

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
from wire_bytes import one_round


@pytest.mark.parametrize("wire_dtype", WIRE_DTYPES)
@pytest.mark.parametrize("architecture", ["smallest", "largest"])
def test_bytes_on_the_wire(architecture: str, wire_dtype: str) -> None:
    size, down, up = one_round("resnet-tiny", architecture, wire_dtype)
    assert size < down <= 1.02 * size + 4000
    assert size < up <= 1.02 * size + 4000
