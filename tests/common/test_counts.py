"""Counts in words: what is said can be read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superfednas.common.words import counted, prefix_of


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=5), st.sampled_from("GMk"))
def test_the_least_of_some_counts_can_be_read_in_their_prefix(counts: list[int], most: str) -> None:
    prefix = prefix_of(counts, most)
    assert prefix.size <= {"G": 1e9, "M": 1e6, "k": 1e3}[most]
    for count in counts:
        read = float(prefix.say(count).replace(",", "")) * prefix.size
        assert read == pytest.approx(count, rel=0.05)
    assert counted(counts[0], "MACs", most).endswith("MACs")


def test_zeros_do_not_choose_a_prefix_and_a_tenth_of_a_million_is_enough() -> None:
    assert prefix_of([0, 5_000]).letter == "k" and prefix_of([]).letter == "M"
    assert counted(220_000, "MACs") == "0.22 MMACs"
    assert counted(33, "MACs") == "33 MACs"
    assert counted(4_200, "MACs") == "4.20 kMACs"
    assert counted(3_400_000_000, "MAC·images", "G") == "3.40 GMAC·images"
