"""Suspects of spoilt sums are found by doing without some: laws over simulated rounds."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.server.secure.suspects import Suspects

FEW = 3


def search(names: list[str], spoilers: set[str], rounds: int) -> tuple[list[str], list[set[str]]]:
    """Run rounds in which ``spoilers`` spoil every sum; return who is named, and who took part.

    Who is named takes no part any more.
    """
    suspects, named, took_part = Suspects(), list[str](), list[set[str]]()
    for number in range(1, rounds + 1):
        there = [name for name in names if name not in named]
        without = suspects.without(there, number)
        taken = set(there) - without
        took_part.append(taken)
        if taken & spoilers:
            alone = suspects.spoil(sorted(taken))
            named += [alone] if alone else []
        else:
            suspects.clear(taken)
    return named, took_part


def clients(count: int) -> list[str]:
    return [f"c{k}" for k in range(count)]


@given(st.integers(4, 64), st.data())
def test_one_spoiler_is_named_soon_and_then_everybody_else_takes_part(count: int, data) -> None:
    names = clients(count)
    spoiler = data.draw(st.sampled_from(names))
    named, took_part = search(names, {spoiler}, rounds := 4 * math.ceil(math.log2(count)) + 6)
    assert named == [spoiler]
    assert took_part[rounds - 1] == set(names) - {spoiler}


@settings(max_examples=50)
@given(st.integers(8, 40), st.data())
def test_several_spoilers_are_named_and_no_honest_client_is(count: int, data) -> None:
    names = clients(count)
    spoilers = set(data.draw(st.lists(st.sampled_from(names), max_size=count // 5, unique=True)))
    named, took_part = search(names, spoilers, 150)
    assert set(named) == spoilers
    assert took_part[-1] == set(names) - spoilers


@given(st.integers(3, 40), st.data())
def test_a_round_keeps_three_and_an_unspoilt_run_keeps_all(count: int, data) -> None:
    names = clients(count)
    suspects = Suspects()
    for number in range(1, 12):
        there = data.draw(st.lists(st.sampled_from(names), min_size=3, unique=True))
        taken = set(there) - suspects.without(there, number)
        assert len(taken) >= FEW
        if data.draw(st.booleans()):
            suspects.spoil(taken)
        else:
            suspects.clear(taken)
    suspects.clear(names)
    assert suspects.without(names, 12) == set()


def test_four_clients_by_hand() -> None:
    suspects = Suspects()
    assert suspects.without(clients(4), 1) == set()
    assert suspects.spoil(clients(4)) is None
    (waiting,) = suspects.without(clients(4), 2)
    rest = [name for name in clients(4) if name != waiting]
    suspects.clear(rest)
    assert suspects.without(clients(4), 3) == set()  # it alone is tried beside the cleared
    assert suspects.spoil(clients(4)) == waiting


def test_three_are_all_needed() -> None:
    suspects = Suspects()
    suspects.spoil(clients(3))
    assert suspects.without(clients(3), 2) == set()
