"""`superfednas probe`: what a node can hold and train in time, measured on the node itself."""

import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from deploy.machine import available_memory
from nas.costs import BYTES, NothingFits
from nas.ladder import ladder
from nas.latency import LatencyError
from nas.timing import Call, Progress, keep_memory, timed, using_threads
from nas.workbench import describe_device, usable_device
from supernet import Architecture, SearchSpace
from supernet.files import write_whole
from supernet.wire import LocalTraining

COPIES = 4
"""Copies of a subnet's weights while it trains: as received, trained, gradients, the reply."""
_HOPELESS = 5.0  # times the seconds of a round; what is disturbed takes a few times too long
_PASSES = 2.0  # every activation is kept for the backward pass, and so is its gradient


@dataclass(frozen=True)
class Rung:
    """What one subnet of the ladder asks of this device.

    Parameters
    ----------
    name
        Its name on the ladder.
    macs, params
        Of one image; of its weights.
    step_ms
        Milliseconds of one training step, of the fastest sample.
    seconds
        Of a round's steps.
    bytes
        That a round needs, by estimate: weights, gradients and activations.
    """

    name: str
    macs: int
    params: int
    step_ms: float
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Probed:
    """What was measured, and the budget that follows.

    Parameters
    ----------
    rungs
        The ladder, by rising MACs.
    max_macs, max_params
        The most MACs up to which the whole ladder keeps the time, and the most parameters up to
        which it fits the memory.
    memory
        Bytes that were free.
    limits
        Seconds, steps, images a step, and the share of the memory that may be used.
    device
        What was measured, for people.
    """

    rungs: tuple[Rung, ...]
    max_macs: int
    max_params: int
    memory: int
    limits: dict[str, float]
    device: dict[str, str | int]

    @property
    def node_config(self) -> str:
        """The budget as ``flower-supernode --node-config`` takes it."""
        return f"max-macs={self.max_macs} max-params={self.max_params}"

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Write all of it as JSON, whole.

        Raises
        ------
        FileExistsError
            Where there is a file and ``overwrite`` is False.
        """
        text = json.dumps({"node-config": self.node_config, **asdict(self)}, indent=1)
        write_whole(path, text, overwrite=overwrite)


def probe(
    space: SearchSpace,
    *,
    steps: int,
    seconds: float,
    local: LocalTraining | None = None,
    rungs: int = 5,
    threads: int = 1,
    device: str = "cpu",
    memory: int | None = None,
    share: float = 0.8,
    measuring: float = 10.0,
    progress: Progress | None = None,
) -> Probed:
    """Time training steps of a ladder of subnets and choose this device's budget.

    Parameters
    ----------
    space
        The search space.
    steps, seconds
        A round of so many steps is to take at most so many seconds.
    local
        Images a step and optimiser, as the run's; by default those of a run's defaults.
    rungs
        Subnets on the ladder, at least 2.
    threads
        Threads an operation, as the run's ``torch-threads``.
    device
        As torch names it.
    memory
        Bytes that a node may use in all; by default what is free on the device.
    share
        Of that memory, how much may be used.
    measuring
        About how many seconds to measure; every subnet takes at least three steps.
    progress
        Called after every visit with the visits made and those planned.

    Raises
    ------
    LatencyError
        For a number out of range, or a device that torch cannot use.
    NothingFits
        Where not even the smallest subnet keeps time and memory.
    """
    for key, value in (("steps", steps), ("seconds", seconds), ("threads", threads)):
        if value <= 0:
            raise LatencyError(f"{key} = {value}: must be above 0")
    if not 0 < share <= 1:
        raise LatencyError(f"share = {share}: must be above 0 and at most 1")
    local = local or LocalTraining()
    place = usable_device(device)
    free = free_memory(place) if memory is None else memory
    every = {name: a for name, a in ladder(space, rungs).items() if not name.startswith("random")}
    needs = {name: training_bytes(space, arch, local) for name, arch in every.items()}
    # What does not fit is not tried: it could take the machine down.
    fitting = up_to(every, space.params, lambda name: needs[name] <= share * free)
    if not fitting:
        least = min(needs.values())
        raise NothingFits(
            f"memory = {free:,} bytes: no subnet of {space.name} trains in {share:.0%} of it; the "
            f"smallest needs about {least:,}",
            {"memory": least / share},
        )

    keep_memory()
    with using_threads(threads):
        names = sorted(fitting, key=lambda name: space.macs(every[name]))
        slow = partial(_too_slow, space, local, place, steps, _HOPELESS * seconds)
        tried = [names[0], *itertools.takewhile(lambda name: not slow(every[name]), names[1:])]
        makers = [partial(training_step, space, every[name], local, place) for name in tried]
        wait = (lambda: None) if place.type == "cpu" else partial(_synchronise, place)
        timings = timed(makers, seconds=measuring, synchronise=wait, progress=progress)
    found = [
        Rung(
            name,
            space.macs(every[name]),
            space.params(every[name]),
            timing.fastest_ms,
            steps * timing.fastest_ms / 1e3,
            needs[name],
        )
        for name, timing in zip(tried, timings, strict=True)
    ]
    kept = list(itertools.takewhile(lambda rung: rung.seconds <= seconds, found))
    if not kept:
        raise NothingFits(
            f"seconds = {seconds:g}: no subnet of {space.name} trains {steps} steps in that time "
            f"here; the smallest takes {found[0].seconds:.3g} s",
            {"seconds": found[0].seconds},
        )
    return Probed(
        rungs=tuple(found),
        max_macs=kept[-1].macs,
        max_params=max(space.params(arch) for arch in fitting.values()),
        memory=free,
        limits={"seconds": seconds, "steps": steps, "batch-size": local.batch_size, "share": share},
        device=describe_device(place),
    )


def up_to(
    archs: Mapping[str, Architecture],
    cost: Callable[[Architecture], int],
    fits: Callable[[str], bool],
) -> dict[str, Architecture]:
    """Return the subnets, by rising cost, before the first that does not fit.

    A budget is a bound on one cost, so all within it must fit.
    """
    rising = sorted(archs, key=lambda name: cost(archs[name]))
    return {name: archs[name] for name in itertools.takewhile(fits, rising)}


def _too_slow(
    space: SearchSpace,
    local: LocalTraining,
    device: torch.device,
    steps: int,
    seconds: float,
    arch: Architecture,
) -> bool:
    """Say whether two steps show that a subnet is far too slow to be timed with care."""
    step = training_step(space, arch, local, device)
    for _ in range(2):  # the first one may have to compile kernels
        started = time.perf_counter()
        step()
        if device.type != "cpu":
            _synchronise(device)
        if steps * (time.perf_counter() - started) <= seconds:
            return False
    return True


def training_bytes(space: SearchSpace, arch: Architecture, local: LocalTraining) -> int:
    """Estimate the bytes that training a subnet needs beside the program itself.

    Weights as received, trained, their gradients and the reply (momentum adds one copy), and for
    every image of a step what the forward pass keeps: the output of every layer, and as much again
    for its gradient.
    """
    copies = COPIES + (local.momentum > 0)
    kept = _PASSES * local.batch_size * kept_numbers(space, arch)
    return int(BYTES * (copies * space.params(arch) + kept))


def kept_numbers(space: SearchSpace, arch: Architecture) -> int:
    """Count the numbers that one image's forward pass keeps: the outputs of all layers."""
    with torch.device("meta"):
        module = space.module(arch).train()
        images = torch.empty(2, space.in_channels, space.image_size, space.image_size)
    total = images.numel()

    def count(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel()

    for layer in module.modules():
        if not list(layer.children()):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module(images)
    return total // 2


def training_step(
    space: SearchSpace, arch: Architecture, local: LocalTraining, device: torch.device
) -> Call:
    """Return a call that makes one training step of a subnet with random weights."""
    module = space.build(arch)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
        else:
            nn.init.constant_(parameter, 0.5)
    module = module.to(device).train()
    parameters = list(module.parameters())
    optimiser = torch.optim.SGD(parameters, local.lr, local.momentum, 0.0, local.weight_decay)
    shape = (local.batch_size, space.in_channels, space.image_size, space.image_size)
    images = torch.randn(shape, device=device)
    labels = torch.arange(local.batch_size, device=device) % space.num_classes

    def step() -> None:
        loss = functional.cross_entropy(module(images), labels)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if local.clip_norm:
            nn.utils.clip_grad_norm_(parameters, local.clip_norm)
        optimiser.step()

    return step


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()


def _synchronise(device: torch.device) -> None:
    torch.accelerator.synchronize(device)
