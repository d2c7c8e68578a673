"""Note when Flower and the app do what: Python imports this where its folder is on the path.

Every line of the file that ``MARKS`` names (with the node's number, where there is one) is one
finished call: its name, when it began and ended (seconds of the clock that all processes share),
the process and its age at the beginning. Nothing of what is measured is changed.
"""

import functools
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time

# module -> functions; Class.method for a method
CALLS = {
    "flwr.supernode.start_client_internal": ["_pull_and_store_message", "_push_messages"],
    "flwr.supernode.runtime.run_clientapp": [
        "run_clientapp",
        "pull_task_input",
        "install_from_fab",
        "push_message",
    ],
    "flwr.clientapp.client_app": ["ClientApp.__call__"],
    "flwr.superlink.grid.grpc_grid": ["GrpcGrid.push_messages", "GrpcGrid.pull_messages"],
    "superfednas.client.subnet_client": ["SubnetClient.fit"],
}
# What is noted before it has ended, since its process leaves without coming back.
ENDLESS = {"run_clientapp"}


def _age() -> float:
    """Return how old this process is, in seconds: exact to a tick of the system."""
    with open("/proc/self/stat") as stat:
        start = int(stat.read().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start / os.sysconf("SC_CLK_TCK")


def _note(name: str, began: float, age: float, result: object = None) -> None:
    row = {
        "call": name,
        "began": began,
        "ended": time.monotonic(),
        "pid": os.getpid(),
        "age": age,
        # How many replies were pulled; whether there was a message.
        "result": len(result) if isinstance(result, list) else result is not None,
    }
    with open(f"{os.environ['MARKS']}-{os.environ.get('NODE', 'server')}", "a") as file:
        file.write(json.dumps(row) + "\n")


def _noted(name, function):
    @functools.wraps(function)
    def call(*values, **named):
        began, age = time.monotonic(), _age()
        if name in ENDLESS:
            _note(name, began, age)
            return function(*values, **named)
        result = function(*values, **named)
        if name == "GrpcGrid.pull_messages":
            result = list(result)
        _note(name, began, age, result)
        return result

    return call


class _Loader(importlib.abc.Loader):
    """Loads a module as its own loader does, then wraps its calls."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module) -> None:
        self.loader.exec_module(module)
        for name in CALLS[module.__name__]:
            owner, _, attribute = name.rpartition(".")
            place = getattr(module, owner) if owner else module
            setattr(place, attribute, _noted(name, getattr(place, attribute)))


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname not in CALLS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


if "MARKS" in os.environ:
    sys.meta_path.insert(0, _Finder())
