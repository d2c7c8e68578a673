"""The place where a client trains: its device, examples that stay there, a stream of its own."""

import contextlib
import functools
import threading

import torch

from superfednas.data import Split

_SHARE = 4  # of the device's free memory, a node's examples may take one part in so many
_local = threading.local()


def choose_device(name: str) -> torch.device:
    """Return the device of ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def usable_precision(name: str, device: torch.device) -> str:
    """Return the precision in which a client trains: on the CPU always ``float32``.

    There bfloat16 is slower than float32, and torch's (oneDNN's) gradient of a convolution on maps
    of a few pixels reads uninitialised memory: weights became NaN once in ten runs.
    """
    return name if device.type == "cuda" else "float32"


def resident(split: Split, device: torch.device) -> Split:
    """Return a split that lies on a device, where there is room for them.

    They are moved once: batches are then drawn and augmented there, and only weights are
    transferred from round to round.
    """
    return split if device.type == "cpu" else _moved(split, device)


@functools.lru_cache(maxsize=1024)
def _moved(split: Split, device: torch.device) -> Split:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if _SHARE * split.nbytes > free:
            return split
    moved = split.to(device)
    if device.type == "cuda":  # clients in other threads use them on their own streams
        torch.cuda.current_stream(device).synchronize()
    return moved


def own_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Run a block on this thread's own GPU stream, concurrently with other threads."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    if not hasattr(_local, "stream"):
        _local.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return torch.cuda.stream(_local.stream)  # type: ignore[no-any-return, unused-ignore]
