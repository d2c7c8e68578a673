"""SuperFedNAS: federated supernets on Flower, one subnet a client and round.

The package is lazy: importing it, or one of its rooms (``superfednas.server``,
``superfednas.client``, …), loads neither torch nor Flower. The calls behind the ``superfednas``
command are loaded when the first is asked for (:mod:`superfednas.api`)::

    import superfednas

    run = superfednas.train(rounds=100, clients=10, clients_per_round=5)
    plan, file = superfednas.search(run.path, {"macs": 1_000_000})
    superfednas.export(run.path, plan.chosen.text, "model.onnx")
"""

import sys

# `python -m superfednas.…` puts the current folder first on the path (unless it is told -P), where
# any file would take the place of a module that is imported from here on. While Python looks for
# the module to run, and so imports this package, the first argument is "-m".
if (
    sys.argv[:1] == ["-m"]
    and any(part.removeprefix("-m").startswith("superfednas.") for part in sys.orig_argv)
    and not sys.flags.safe_path
):
    del sys.path[0]

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from superfednas.api import (
        evaluate,
        export,
        export_elastic,
        export_personal,
        personalise,
        score_nodes,
        search,
        search_space,
        subnet,
        test,
        train,
    )

__all__ = [
    "evaluate",
    "export",
    "export_elastic",
    "export_personal",
    "personalise",
    "score_nodes",
    "search",
    "search_space",
    "subnet",
    "test",
    "train",
]

# The folder that must be on the path for this package to be found.
ROOT = Path(__file__).resolve().parent.parent
# A wheel holds the rooms in this folder; in a checkout and in a Flower bundle they are beside it.
if not Path(__file__).with_name("server").exists():
    __path__.append(str(ROOT))


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from superfednas import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
