"""The lines that stand above every result: command, machine, versions, date."""

import datetime
import os
import platform
import sys
from collections.abc import Mapping

import numpy as np
import torch


def describe(settings: Mapping[str, object] | None = None) -> str:
    """Return the command, the machine, the versions, the date and these settings as Markdown."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    said = "".join(f"- {name}: {value}\n" for name, value in (settings or {}).items())
    return (
        f"- Command: `python {' '.join(sys.argv)}`\n"
        f"- {_processor()}, {os.cpu_count()} cores, {device}; torch threads "
        f"{torch.get_num_threads()}\n"
        f"- Python {platform.python_version()}, torch {torch.__version__}, numpy "
        f"{np.__version__}; {datetime.date.today()}\n{said}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
