"""The lines that stand above every result: command, machine, versions, date."""

import datetime
import os
import platform
import sys
from collections.abc import Mapping

import numpy as np
import torch

from nas.workbench import describe_device


def describe(settings: Mapping[str, object] | None = None) -> str:
    """Return the command, the machine, the versions, the date and these settings as Markdown."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    processor = describe_device(torch.device("cpu"))["processor"]
    said = "".join(f"- {name}: {value}\n" for name, value in (settings or {}).items())
    return (
        f"- Command: `python {' '.join(sys.argv)}`\n"
        f"- {processor}, {os.cpu_count()} cores, {device}; torch threads "
        f"{torch.get_num_threads()}\n"
        f"- Python {platform.python_version()}, torch {torch.__version__}, numpy "
        f"{np.__version__}; {datetime.date.today()}\n{said}"
    )
