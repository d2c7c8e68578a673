"""Flower's programs, run in this process, and the check that Flower suits the patches.

Flower's SuperNode polls the SuperLink every 3 s, its SuperExec polls the SuperNode every second,
every message gets a fresh Python process, and the SuperNode polls for that process's reply every
0.5 s; a SuperNode that is restarted after a kill exits for as long as the SuperLink believes the
old one alive. No option changes any of this. So Flower's own programs run with some names of
Flower's modules replaced, each in one module here: those of the SuperNode in
:mod:`superfednas.flower.supernode`, those of the SuperExec in :mod:`superfednas.flower.superexec`.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

FLOWER = "1.31."
SUPERNODE = "flwr.supernode.start_client_internal"
SUPEREXEC = "flwr.supercore.superexec.run_superexec"
EXECUTOR = "flwr.supercore.superexec.executor.subprocess_executor"
OPTIONS = ("flwr.supernode.cli.flower_supernode", "_parse_args_run_supernode")
CONFIG = ("flwr.common.config", "parse_config_args")
REPLACED = (
    (SUPERNODE, "time"),
    (SUPERNODE, "subprocess"),
    (SUPERNODE, "_pull_and_store_message"),
    (SUPERNODE, "_make_fleet_connection_retry_invoker"),
    (SUPERNODE, "run_clientappio_api_grpc"),
    (SUPEREXEC, "time"),
    (EXECUTOR, "subprocess"),
)
_PROGRAMS = {
    "flower-supernode": ("flwr.supernode.cli.flower_supernode", "flower_supernode"),
    "flower-superexec": ("flwr.supercore.cli.flower_superexec", "flower_superexec"),
    "flwr-clientapp": ("flwr.supernode.cli.flwr_clientapp", "flwr_clientapp"),
}


def difference() -> str | None:
    """Return what this Flower lacks for these modules, in words; None if nothing."""
    found = version("flwr")
    if not found.startswith(FLOWER):
        return f"Flower {found} is not {FLOWER}x"
    for module, name in (*_PROGRAMS.values(), *REPLACED, OPTIONS, CONFIG):
        try:
            getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            return f"Flower {found} has no {module}.{name}"
    return None


def run(program: str, options: Sequence[str]) -> None:
    """Run one of Flower's programs in this process."""
    sys.argv = [program, *options]
    module, function = _PROGRAMS[program]
    getattr(importlib.import_module(module), function)()
