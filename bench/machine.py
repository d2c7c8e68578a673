"""Conditions of a measurement: command, machine, versions, date."""

import datetime
import os
import platform
import sys
from collections.abc import Mapping

import numpy as np
import torch

from superfednas.nas.cost.workbench import describe_device


def machine() -> dict[str, str]:
    """Return the machine, the versions and the date, as lines to print."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    processor = describe_device(torch.device("cpu"))["processor"]
    return {
        "machine": f"{processor}, {os.cpu_count()} cores, {device}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, numpy "
        f"{np.__version__}",
        "date": str(datetime.date.today()),
    }


def describe(settings: Mapping[str, object] | None = None) -> str:
    """Return the lines above a benchmark's result, as Markdown."""
    found = machine()
    script = sys.argv[0].endswith(".py") and "benchmarks" in sys.argv[0]
    command = f"python {' '.join(sys.argv)}" if script else f"superfednas {' '.join(sys.argv[1:])}"
    said = "".join(f"- {name}: {value}\n" for name, value in (settings or {}).items())
    return (
        f"- Command: `{command}`\n"
        f"- {found['machine']}; torch threads {torch.get_num_threads()}\n"
        f"- {found['versions']}; {found['date']}\n{said}"
    )
