"""Blocks and subnets prepared for timing on a device, and the description of that device."""

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

from superfednas.nas.cost.latency import LatencyError
from superfednas.nas.cost.timing import (
    CLOCKS,
    Call,
    Clock,
    Progress,
    Timing,
    keep_memory,
    timed,
    using_threads,
)
from superfednas.supernet import Architecture, SearchSpace, Shape
from superfednas.supernet.norms import calibrate
from superfednas.tasks import Inputs

_ALIGNED = 16  # numbers: every tensor starts at a multiple of 64 bytes, as torch's own do
_COARSEST = 1e-6  # seconds between two ticks of a clock that can time a block


class Workbench:
    """Blocks and subnets of a space with random weights, one at a time.

    Each load replaces the one before: all weights share one piece of memory, however many blocks
    there are.

    Parameters
    ----------
    space
        The largest subnet's weights must fit into memory twice.
    device
        As torch names it.

    Raises
    ------
    LatencyError
        If torch cannot use the device here.
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
        """Return a call of a whole subnet on ``batch`` images; see :meth:`load`."""
        construct = functools.partial(self._space.module, arch)
        return self._load(
            construct,
            lambda count: self._space.task.example(count, self.device, self._generator),
            batch,
        )

    def load(self, construct: Callable[[], nn.Module], inputs: Shape, batch: int) -> Call:
        """Return a call of a module in evaluation mode; it replaces what was loaded before.

        Parameters
        ----------
        construct
            Makes the module; called under the meta device.
        inputs
            Shape of what it reads, for one image.
        batch
            Images.
        """
        return self._load(construct, lambda count: (self._random(count, *inputs),), batch)

    def _load(
        self, construct: Callable[[], nn.Module], draw: Callable[[int], Inputs], batch: int
    ) -> Call:
        """Return a call of a module on inputs that ``draw`` makes for so many examples."""
        with torch.device("meta"):
            module = construct()
        state, start = {}, 0
        for name, tensor in module.state_dict().items():
            stop = start + tensor.numel()
            weight = self._weights[start:stop].view(tensor.shape)
            if tensor.dim() > 1:  # of a scale at which signals neither vanish nor overflow
                scale = math.sqrt(2 * len(tensor) / tensor.numel())
                torch.mul(self._noise[start:stop].view(tensor.shape), scale, out=weight)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            state[name] = weight
            start = _aligned(stop)
        module.load_state_dict(state, assign=True)
        inputs = draw(batch)
        # Statistics of one image of one pixel are refused; this also sets evaluation mode.
        calibrate(module, [inputs if batch > 1 else draw(2)])
        return lambda: module(*inputs)

    def timed(
        self,
        makers: Sequence[Callable[[], Call]],
        *,
        seconds: float,
        threads: int,
        clock: str,
        progress: Progress | None = None,
    ) -> list[Timing]:
        """Time calls that :meth:`load` and :meth:`network` make; see ``nas.timing.timed``."""
        read = _clock(clock, self.device, threads)
        keep_memory()
        with using_threads(threads), torch.inference_mode():
            return timed(
                makers, seconds=seconds, synchronise=self.synchronise, clock=read, progress=progress
            )

    def synchronise(self) -> None:
        """Wait until the device has finished all its work."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._generator, device=self.device)


def usable_device(name: str) -> torch.device:
    """Return a device by its torch name.

    Raises
    ------
    LatencyError
        If torch cannot use the device here.
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
    """Return a table's description of its device, for human readers."""
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
    """Return the processor's (or board's) model name, as far as the system reports it."""
    board, listing = Path("/proc/device-tree/model"), Path("/proc/cpuinfo")
    if board.exists():  # Raspberry Pi and similar boards
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
