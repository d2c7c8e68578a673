"""Where something was measured: command, machine, versions, date."""

import datetime
import os
import platform
import sys
from collections.abc import Mapping

import numpy as np
import torch

from nas.workbench import describe_device


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
    """Return the lines that stand above a benchmark's result, as Markdown."""
    found = machine()
    said = "".join(f"- {name}: {value}\n" for name, value in (settings or {}).items())
    return (
        f"- Command: `python {' '.join(sys.argv)}`\n"
        f"- {found['machine']}; torch threads {torch.get_num_threads()}\n"
        f"- {found['versions']}; {found['date']}\n{said}"
    )
