"""Tensors spread over threads: each is worked on once, and nothing else of torch is changed."""

import threading
from collections import Counter

import pytest
import torch

import superfednas.server.average.threads
from superfednas.server.average.threads import spread


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("names", [0, 1, 2, 50])
def test_everything_is_done_once(threads: int, names: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superfednas.server.average.threads, "_WORTH", 1)
    done: Counter[str] = Counter()
    sizes = {str(number): 1 + number for number in range(names)}
    spread(lambda name: done.update([name]), sizes, threads)
    assert done == dict.fromkeys(sizes, 1)


def test_as_many_threads_as_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superfednas.server.average.threads, "_WORTH", 100)
    barrier = threading.Barrier(3, timeout=60)  # passed only by three at a time
    spread(lambda name: barrier.wait(), dict.fromkeys("abc", 100), 8)
    used: set[int] = set()
    spread(lambda name: used.add(threading.get_ident()), dict.fromkeys("abc", 66), 8)
    assert used == {threading.get_ident()}


@pytest.mark.parametrize("threads", [1, 4])
def test_torch_computes_on_one_thread_and_has_its_own_back(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superfednas.server.average.threads, "_WORTH", 1)
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        spread(lambda name: seen.append(torch.get_num_threads()), dict.fromkeys("abcd", 9), threads)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_raised_is_raised(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superfednas.server.average.threads, "_WORTH", 1)

    def work(name: str) -> None:
        if name == "c":
            raise ValueError(name)

    with pytest.raises(ValueError, match="c"):
        spread(work, dict.fromkeys("abcdef", 9), threads)
