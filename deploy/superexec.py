"""The SuperExec of ``superfednas node``: its ClientApps are forked, not started from nothing."""

import sys

from deploy.flower_internals import run_clientapp, run_superexec
from deploy.nursery import Nursery


def main() -> None:
    """Run ``flower-superexec`` beside a nursery for ClientApps."""
    import flwr.supernode.cli.flwr_clientapp  # noqa: F401 (what every child needs)

    nursery = Nursery(run_clientapp)  # first of all: the SuperExec has gRPC's threads
    run_superexec(sys.argv[1:], nursery.launch)


if __name__ == "__main__":
    main()
