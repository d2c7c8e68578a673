"""The queue of replies keeps the order of the assignment, in memory and on the disk."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.server.round.hold import FoldQueue


def run_queue(queue: FoldQueue, order: list[int], absent: set[int]) -> list[tuple[int, int]]:
    """Put replies in an order of arrival; reply k holds k + 1 times the number k."""
    out = []
    for index in order:
        sent = None if index in absent else np.full(index + 1, index, np.float32)
        for turn, ready in queue.put(index, sent):
            assert (ready == turn).all()
            out.append((turn, len(ready)))
    return out


@settings(max_examples=150, deadline=None)
@given(
    order=st.integers(0, 8).flatmap(lambda n: st.permutations(range(n))),
    absent=st.sets(st.integers(0, 7)),
    limit=st.sampled_from([0, 4, 30, 10**6]),
    on_disk=st.booleans(),
)
def test_any_arrival_gives_assignment_order(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[int],
    absent: set[int],
    limit: int,
    on_disk: bool,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "held"
    folder.mkdir(exist_ok=True)
    queue = FoldQueue(limit, folder if on_disk else None)
    found = run_queue(queue, list(order), absent)
    assert found == [(k, k + 1) for k in range(len(order)) if k not in absent]
    assert queue.held_bytes == 0
    assert not list(folder.iterdir())


def test_a_reply_is_handed_on_as_soon_as_its_turn_has_come() -> None:
    queue = FoldQueue(10**6, None)
    assert run_queue(queue, [2], set()) == []
    assert run_queue(queue, [0], set()) == [(0, 1)]
    assert run_queue(queue, [1], {1}) == [(2, 3)]


def test_beyond_the_limit_replies_wait_on_disk(tmp_path: Path) -> None:
    # Replies 3, 2, 1 have 16, 12, 8 bytes: with a limit of 20, 2 goes to disk and 1 does as well.
    queue = FoldQueue(20, tmp_path)
    held = []
    for index in (3, 2, 1):
        assert run_queue(queue, [index], set()) == []
        held.append((queue.held_bytes, len(list(tmp_path.iterdir()))))
    assert held == [(4 * 4, 0), (4 * 4, 1), (4 * 4, 2)]
    assert run_queue(queue, [0], set()) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert not list(tmp_path.iterdir())
    assert queue.held_bytes == 0


def test_without_a_folder_everything_waits_in_memory() -> None:
    queue = FoldQueue(0, None)
    assert run_queue(queue, [1], set()) == []
    assert queue.held_bytes == 2 * 4


@pytest.mark.parametrize("order", [[2, 0, 1], [0, 1, 2]])
def test_out_of_order_everything_passes_through(tmp_path: Path, order: list[int]) -> None:
    queue = FoldQueue(0, tmp_path, in_order=False)
    found = [run_queue(queue, [index], {1}) for index in order]
    assert found == [[] if index == 1 else [(index, index + 1)] for index in order]
    assert not list(tmp_path.iterdir())


def test_what_waits_on_disk_comes_back_bit_for_bit(tmp_path: Path) -> None:
    values = np.array([np.nan, -0.0, 1e-42, np.inf], np.float32)
    queue = FoldQueue(0, tmp_path)
    assert list(queue.put(1, values)) == []
    ((turn, ready),) = queue.put(0, None)
    assert turn == 1
    assert ready.tobytes() == values.tobytes()
