"""Two workers share the cores (pytest-xdist), so each keeps torch to one thread.

``pytest -n 0`` runs everything in one process, for debugging.
"""

import os

import pytest

from superfednas.common import imports, trust
from tests.support.attackers import KIND, PROPERTY, Tried, kind_of, noted, table

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported


IMPLIED = {"faults": "processes", "containers": "processes", "fuzz": "slow", "golden": "slow"}


@pytest.fixture(autouse=True)
def _nobody_has_trusted_anything(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let tests remember trusted modules, and keep what is compiled, in a folder of their own."""
    home = tmp_path_factory.getbasetemp()
    monkeypatch.setattr(trust, "_FILE", home / "trusted.json")
    monkeypatch.setattr(imports, "_COMPILED", home / "compiled")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add what markers imply, and start with the tests that take minutes.

    ``-m`` on the command line replaces the default selection, so whoever asks for ``not slow and
    not processes`` must not get the product of all methods. Neither worker is left alone with one
    long file at the end.
    """
    for item in items:
        for marker, implied in IMPLIED.items():
            if item.get_closest_marker(marker):
                item.add_marker(implied)
        if mark := item.get_closest_marker("attack"):
            item.user_properties.append((KIND, kind_of(item.nodeid.split("::")[0], *mark.args)))
    items.sort(key=lambda item: not any(map(item.get_closest_marker, ("processes", "slow"))))


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Tried:
    """Return what notes tries for the table of attackers."""

    def note(kind, tries, *, touched=0, ended=0, named=None) -> None:
        request.node.user_properties.append(noted(kind, tries, touched, ended, named))

    return note


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table of attackers if they were asked for."""
    if not str(config.option.markexpr).startswith("attack"):
        return
    reports = [
        (report.passed, dict(report.user_properties), notes_of(report))
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if KIND in dict(report.user_properties) and (report.when == "call" or report.failed)
    ]
    if reports:
        terminalreporter.section("attackers")
        terminalreporter.write_line(table(reports))


def notes_of(report: pytest.TestReport) -> list[str]:
    return [str(value) for key, value in report.user_properties if key == PROPERTY]
