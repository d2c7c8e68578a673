"""Blocks and networks made ready to be timed on a device, and what that device is."""

import functools
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from nas.latency import LatencyError
from nas.timing import (
    CLOCKS,
    Call,
    Clock,
    Progress,
    Timing,
    keep_memory,
    timed,
    using_threads,
)
from supernet import Architecture, SearchSpace, Shape
from supernet.norms import calibrate

_ALIGNED = 16  # numbers: every tensor starts at a multiple of 64 bytes, as torch's own do
_COARSEST = 1e-6  # seconds between two ticks of a clock that can time a block


class Workbench:
    """Blocks and networks of a space with random weights, one at a time.

    What is loaded takes the place of what was loaded before: all weights lie in one piece of
    memory, however many blocks there are.

    Parameters
    ----------
    space
        The largest network's weights must fit into memory twice.
    device
        As torch names it.

    Raises
    ------
    LatencyError
        Where torch cannot use the device here.
    """

    def __init__(self, space: SearchSpace, device: str) -> None:
        self._space = space
        shapes = space.shapes(space.largest).values()
        numbers = sum(_aligned(math.prod(shape)) for shape in shapes)
        self.device = usable_device(device)
        self._generator = torch.Generator(self.device).manual_seed(0)
        self._noise = self._random(numbers)
        self._weights = torch.empty_like(self._noise)

    def network(self, arch: Architecture, batch: int) -> Call:
        """Return a call of a whole network on ``batch`` images; see :meth:`load`."""
        side = self._space.image_size
        construct = functools.partial(self._space.module, arch)
        return self.load(construct, (self._space.in_channels, side, side), batch)

    def load(self, construct: Callable[[], nn.Module], inputs: Shape, batch: int) -> Call:
        """Return a call of a module in evaluation mode; it ends what was loaded before.

        Parameters
        ----------
        construct
            Makes the module; called under the meta device.
        inputs
            Shape of what it reads, for one image.
        batch
            Images.
        """
        with torch.device("meta"):
            module = construct()
        state, start = {}, 0
        for name, tensor in module.state_dict().items():
            stop = start + tensor.numel()
            weight = self._weights[start:stop].view(tensor.shape)
            if tensor.dim() > 1:  # of a size at which signals neither vanish nor overflow
                scale = math.sqrt(2 * len(tensor) / tensor.numel())
                torch.mul(self._noise[start:stop].view(tensor.shape), scale, out=weight)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            state[name] = weight
            start = _aligned(stop)
        module.load_state_dict(state, assign=True)
        images = self._random(batch, *inputs)
        # Statistics of one image of one pixel are refused; this also sets evaluation mode.
        calibrate(module, [images if batch > 1 else self._random(2, *inputs)])
        return lambda: module(images)

    def timed(
        self,
        makers: Sequence[Callable[[], Call]],
        *,
        seconds: float,
        threads: int,
        clock: str,
        progress: Progress | None = None,
    ) -> list[Timing]:
        """Time calls that :meth:`load` and :meth:`network` make; see :func:`nas.timing.timed`."""
        read = _clock(clock, self.device, threads)
        keep_memory()
        with using_threads(threads), torch.inference_mode():
            return timed(
                makers, seconds=seconds, synchronise=self.synchronise, clock=read, progress=progress
            )

    def synchronise(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._generator, device=self.device)


def usable_device(name: str) -> torch.device:
    """Return a device by the name that torch gives it.

    Raises
    ------
    LatencyError
        Where torch cannot use the device here.
    """
    try:
        device = torch.device(name)
        torch.Generator(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise LatencyError(f"device = {name!r}: torch cannot use it here ({said})") from None
    return device


def describe_device(device: torch.device, name: str = "") -> dict[str, str | int]:
    """Return what a table says of its device, for people."""
    about: dict[str, str | int] = {"name": name} if name else {}
    about |= {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "device": str(device),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        about["accelerator"] = torch.cuda.get_device_name(device)
    return about


def _processor() -> str:
    """Return the processor's (or board's) model name, as far as the system tells it."""
    board, listing = Path("/proc/device-tree/model"), Path("/proc/cpuinfo")
    if board.exists():  # a Raspberry Pi and its like
        return board.read_text().strip("\0\n")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def _clock(name: str, device: torch.device, threads: int) -> Clock:
    if name not in CLOCKS:
        raise LatencyError(f"clock = {name!r}: must be one of {', '.join(CLOCKS)}")
    if name == "cpu":
        if device.type != "cpu" or threads != 1:
            raise LatencyError(
                f"clock = 'cpu': tells the time of one thread on the CPU, not of {threads} on "
                f"{str(device)!r}"
            )
        tick = time.get_clock_info("thread_time").resolution
        if tick > _COARSEST:
            raise LatencyError(f"clock = 'cpu': here it ticks only every {1e3 * tick:g} ms")
    return CLOCKS[name]


def _aligned(numbers: int) -> int:
    return math.ceil(numbers / _ALIGNED) * _ALIGNED
