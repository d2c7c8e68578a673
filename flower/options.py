"""Options and configs of nodes, read by Flower's own parsers."""

import importlib
import re
from collections.abc import Sequence
from typing import Any

import click

from superfednas.flower.programs import CONFIG, OPTIONS
from superfednas.flower.refusal import RefusedError

# The same as Flower's own pattern; Flower silently drops what it does not match.
_PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)")


def read_options(options: Sequence[str]) -> Any:
    """Read a command line as ``flower-supernode`` does.

    Raises
    ------
    RefusedError
        If it cannot be read.
    """

    def refuse(message: str) -> None:
        raise RefusedError(
            f"{message}; superfednas node --help has an example, flower-supernode --help every "
            "option",
            2,
        )

    module, name = OPTIONS
    parser: Any = getattr(importlib.import_module(module), name)()
    parser.error = refuse
    return parser.parse_args(list(options))


def read_config(text: str) -> dict[str, bool | int | float | str]:
    """Read a ``--node-config`` (or a ``--run-config``) as Flower does.

    Raises
    ------
    ValueError
        If it cannot be read, or Flower would drop a part of it.
    """
    module, name = CONFIG
    rest = " ".join(_PAIR.sub(" ", text).split())
    if rest and not text.endswith(".toml"):
        raise ValueError(f"{rest!r} is no key=value")
    try:
        found: dict[str, bool | int | float | str] = getattr(importlib.import_module(module), name)(
            [text]
        )
    except OSError as error:
        raise ValueError(f"{error.strerror}") from error
    except click.ClickException as error:
        raise ValueError(f"{error.__cause__}") from error
    return found
