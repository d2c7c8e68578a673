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

from superfednas.common.files import write_whole
from superfednas.deploy.doctor.machine import available_memory
from superfednas.nas.cost.cost import BYTES
from superfednas.nas.cost.costs import NothingFits
from superfednas.nas.cost.latency import LatencyError
from superfednas.nas.cost.timing import Call, Progress, keep_memory, timed, using_threads
from superfednas.nas.cost.workbench import describe_device, usable_device
from superfednas.supernet import Architecture, SearchSpace
from superfednas.supernet.ladder import ladder
from superfednas.wire.order import LocalTraining

COPIES = 4
"""Copies of a subnet's weights while it trains: as received, trained, gradients, the reply."""
_HOPELESS = 5.0  # times the seconds of a round; a disturbed step takes a few times too long
_PASSES = 2.0  # every activation is kept for the backward pass, and its gradient too


@dataclass(frozen=True)
class Rung:
    """What one subnet of the ladder requires of this device.

    Parameters
    ----------
    name
        Its name on the ladder.
    macs, params
        Of one image; of its weights.
    step_ms
        Milliseconds of one training step, from the fastest sample.
    seconds
        Of a round's steps.
    bytes
        Estimated bytes that a round needs: weights, gradients and activations.
    """

    name: str
    macs: int
    params: int
    step_ms: float
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Probed:
    """The measurements, and the budget that follows from them.

    Parameters
    ----------
    rungs
        The ladder, by rising MACs.
    max_macs, max_params
        The most MACs up to which the whole ladder trains in time, and the most parameters up to
        which it fits into memory.
    memory
        Free bytes.
    limits
        Seconds, steps, images per step, and the share of the memory that may be used.
    device
        What was measured, for human readers.
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
        """Write everything as JSON, atomically.

        Raises
        ------
        FileExistsError
            If the file exists and ``overwrite`` is False.
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
        A round of ``steps`` must take at most ``seconds``.
    local
        Images per step and optimiser, as in the run; by default a run's defaults.
    rungs
        Subnets on the ladder, at least 2.
    threads
        Threads per operation, as the run's ``torch-threads``.
    device
        The device's torch name.
    memory
        Bytes that a node may use in total; by default the device's free memory.
    share
        The share of that memory that may be used.
    measuring
        Approximate seconds to measure; every subnet takes at least three steps.
    progress
        Called after every visit with the visits made and those planned.

    Raises
    ------
    LatencyError
        For a number out of range, or a device that torch cannot use.
    NothingFits
        If not even the smallest subnet keeps time and memory.
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
    # What does not fit is not tried: it could bring the machine down.
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

    A budget bounds one cost, so everything within it must fit.
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
    """Return whether two steps show that a subnet is far too slow to be worth careful timing."""
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
    """Estimate the bytes that training a subnet needs in addition to the program itself.

    The weights received, the weights trained, their gradients and the reply (momentum adds one
    copy); and for every image of a step what the forward pass keeps: the output of every layer, and
    as much again for its gradient.
    """
    copies = COPIES + (local.momentum > 0)
    kept = _PASSES * local.batch_size * kept_numbers(space, arch)
    return int(BYTES * (copies * space.params(arch) + kept))


def kept_numbers(space: SearchSpace, arch: Architecture) -> int:
    """Count the numbers kept by one image's forward pass: the outputs of all layers."""
    with torch.device("meta"):
        module = space.module(arch).train()
        inputs = space.task.example(2, "meta")
    total = sum(tensor.numel() for tensor in inputs)

    def count(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel()

    for layer in module.modules():
        if not list(layer.children()):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module(*inputs)
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
    inputs = space.task.example(local.batch_size, device)

    def step() -> None:
        # Any scalar will do: a loss costs nothing beside the network.
        loss = module(*inputs).float().square().mean()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if local.clip_norm:
            nn.utils.clip_grad_norm_(parameters, local.clip_norm)
        optimiser.step()

    return step


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()


def _synchronise(device: torch.device) -> None:
    torch.accelerator.synchronize(device)
