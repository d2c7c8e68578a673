"""Two workers share the cores (pytest-xdist), so each keeps torch to one thread.

``pytest -n 0`` runs everything in one process, for debugging.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take minutes: neither worker is then left alone with one."""
    items.sort(key=lambda item: item.get_closest_marker("processes") is None)
