"""`superfednas doctor`: what is wrong with this machine, or with a superlink, and the remedy.

If torch or Flower cannot even be imported, `python -P -m superfednas.deploy.doctor.main` still
checks the machine.
"""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from superfednas.common.words import one_line
from superfednas.deploy.doctor import faults, leftovers, machine
from superfednas.deploy.doctor.finding import FAULT, WARNING, Finding
from superfednas.deploy.doctor.superlink import superlink
from superfednas.flower.api import CONTROL, FLEET, Address
from superfednas.records.index import newest_first

Check = Callable[[], list[Finding]]
LOOPBACK = ("127.0.0.1", "localhost")


def machine_checks() -> dict[str, Check]:
    """Return the checks of this machine by name."""
    return {
        "versions": machine.versions,
        "torch": machine.torch_computes,
        "cores": machine.cores,
        "memory": machine.memory,
        "disk": machine.disk,
        "ports": machine.ports,
        "proxy": functools.partial(machine.proxies, LOOPBACK, os.environ),
        "FLWR_HOME": leftovers.flower_folder,
        "installed apps": leftovers.installed_apps,
        "processes": leftovers.processes,
        "Ray sessions": leftovers.ray_sessions,
        "torn files": leftovers.torn_files,
        "unfinished runs": leftovers.unfinished_runs,
        "newest run": _newest_run,
    }


def superlink_checks(
    fleet: str, control: str, certificates: Path | None, key: Path | None
) -> dict[str, Check]:
    """Return the checks of a superlink by name.

    Parameters
    ----------
    fleet, control
        ``HOST:PORT`` of what nodes and what ``flwr`` connect to; empty to skip.
    certificates
        The CA's certificate, for TLS.
    key
        A node's private key.

    Raises
    ------
    ValueError
        If an address is not one.
    """
    checks: dict[str, Check] = {}
    given = [
        Address.parse(api, text, certificates)
        for api, text in ((FLEET, fleet), (CONTROL, control))
        if text
    ]
    hosts = tuple(dict.fromkeys(address.host for address in given))
    if hosts:
        checks["proxy"] = functools.partial(machine.proxies, hosts, os.environ)
    for address in given:
        checks[address.api] = functools.partial(superlink, address, key)
    return checks


def log_checks(logs: Sequence[Path]) -> dict[str, Check]:
    """Return a check for each log of a superlink, a node or a run."""
    return {str(log): functools.partial(faults.log_faults, log) for log in logs}


def run_checks(runs: Sequence[Path]) -> dict[str, Check]:
    """Return a check for each run folder.

    Raises
    ------
    RunFolderError
        If one of them is not a run folder.
    """
    from superfednas.records.folder import RunFolder  # which imports torch

    folders = [RunFolder.open(run).path for run in runs]
    return {str(path): functools.partial(_run, path) for path in folders}


def examine(checks: dict[str, Check]) -> list[Finding]:
    """Run checks one after another; a check that cannot be made is a finding too."""
    found: list[Finding] = []
    for name, check in checks.items():
        try:
            found += check()
        except Exception as error:  # noqa: BLE001 (a broken machine breaks checks in its own ways)
            said = (str(error) or type(error).__name__).splitlines()[0]
            found.append(Finding(name, WARNING, f"could not be looked at: {said}"))
    return found


def status(found: Sequence[Finding]) -> int:
    """Return the exit status: 1 if there is a fault."""
    return int(any(finding.state == FAULT for finding in found))


def describe(found: Sequence[Finding]) -> str:
    """Return findings as lines, each remedy below its finding."""
    lines = []
    for finding in found:
        lines.append(one_line(f"{finding.state:8}{finding.name}: {finding.found}"))
        if finding.remedy:
            lines.append(one_line(f"{'':8}→ {finding.remedy}"))
    return "\n".join(lines)


def _newest_run() -> list[Finding]:
    """Check the newest run of all, not `latest`, which skips runs that trained nothing."""
    return [each for run in newest_first()[:1] for each in _run(run)]


def _run(path: Path) -> list[Finding]:
    return faults.failure(path) + faults.refusals(path)


if __name__ == "__main__":
    results = examine(machine_checks())
    print(describe(results))
    raise SystemExit(status(results))
