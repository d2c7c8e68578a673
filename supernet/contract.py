"""A contract checker for search spaces: what every family promises, tried on real draws."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import nn

from superfednas.supernet.architecture import Architecture
from superfednas.supernet.axes import Kind, axes_by_name, permuted, shapes_of_axes
from superfednas.supernet.boxes import extract, prefix_boxes, resolve
from superfednas.supernet.norms import GROUP_CHANNELS, calibrate
from superfednas.supernet.space import SearchSpace, State, count_macs


@dataclass(frozen=True)
class CheckResult:
    """One promise and how it went; ``problem`` is empty where it is kept."""

    promise: str
    problem: str = ""


class _Broken(Exception):  # noqa: N818 (caught here, never seen outside)
    pass


def _require(kept: bool, problem: str) -> None:
    if not kept:
        raise _Broken(problem)


def check_space(space: SearchSpace, *, samples: int = 20, seed: int = 0) -> list[CheckResult]:
    """Hold a space against the contract that all else relies on.

    Parameters
    ----------
    space
        The space to check.
    samples
        Random architectures tried beside the smallest and the largest.
    seed
        Seed of these draws.

    Returns
    -------
    list of CheckResult
        One a promise, in the order of :data:`PREMISES` and :data:`PROMISES`. After a premise that
        is broken nothing more is tried, because all else would fail for the same reason.
    """
    try:
        _has_genes(space)
        rng = np.random.default_rng(seed)
        drawn = [space.smallest, space.largest, *(space.sample(rng) for _ in range(samples))]
    except Exception as error:  # noqa: BLE001 (a stranger's code may raise anything)
        return [CheckResult("architectures can be drawn", _said(error))]
    results = []
    for promise, holds in (PREMISES | PROMISES).items():
        problem = ""
        try:
            for arch in drawn:
                holds(space, arch)
        except Exception as error:  # noqa: BLE001
            known = arch.to_json() if isinstance(arch, Architecture) else repr(arch)
            problem = f"{_said(error)} (architecture {known})"
        results.append(CheckResult(promise, problem))
        if problem and promise in PREMISES:
            break
    return results


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, _Broken) else f"{type(error).__name__}: {error}"


def _has_genes(space: SearchSpace) -> None:
    genes = space.genes
    numbers = isinstance(genes, Iterable) and all(isinstance(g, Integral) and g > 0 for g in genes)
    _require(numbers, f"genes are {genes!r}, not a tuple of whole numbers from 1")


def _decodes(space: SearchSpace, arch: Architecture) -> None:
    _require(isinstance(arch, Architecture), f"decode returns {arch!r}, not an Architecture")
    space.validate(arch)


def _makes_a_module(space: SearchSpace, arch: Architecture) -> None:
    with torch.device("meta"):
        module = space.module(arch)
    _require(isinstance(module, nn.Module), f"module() returns {module!r}, not an nn.Module")


def _reads_the_task(space: SearchSpace, arch: Architecture) -> None:
    with torch.device("meta"):
        module = space.module(arch).train()
    inputs = space.task.example(2, "meta")
    try:
        with torch.no_grad():
            module(*inputs)
    except Exception as error:
        given = ", ".join(
            f"{name} of shape {tuple(tensor.shape)}"
            for name, tensor in zip(space.task.inputs, inputs, strict=True)
        )
        raise _Broken(f"called with {given}, it raises {_said(error)}") from error


def _round_trips(space: SearchSpace, arch: Architecture) -> None:
    back = space.parse(arch.to_json())
    _require(back == arch and hash(back) == hash(arch), f"JSON comes back as {back.to_json()}")


def _nests(space: SearchSpace, arch: Architecture) -> None:
    whole = space.shapes(space.largest)
    resolve(whole, space.boxes(arch))
    smallest = space.shapes(space.smallest)
    shapes = space.shapes(arch)
    _require(smallest.keys() <= shapes.keys(), "it lacks tensors that the smallest has")
    for name, shape in smallest.items():
        _require(
            all(a <= b for a, b in zip(shape, shapes[name], strict=True)),
            f"{name!r} is {shapes[name]}, the smallest has {shape}",
        )


def _shapes_are_the_modules(space: SearchSpace, arch: Architecture) -> None:
    with torch.device("meta"):
        built = {n: tuple(t.shape) for n, t in space.module(arch).state_dict().items()}
    shapes = space.shapes(arch)
    _require(list(shapes) == list(built), f"names {list(shapes)} differ from {list(built)}")
    _require(shapes == built, f"shapes {shapes} differ from the module's {built}")
    placed = {n: tuple(t.shape) for n, t in extract(space.init(0), space.boxes(arch)).items()}
    _require(placed == built, f"boxes cut {placed}, the module has {built}")


def _blocks_are_the_module(space: SearchSpace, arch: Architecture) -> None:
    with torch.device("meta"):
        blocks = [block.module() for block in space.blocks(arch)]
        shapes = [tuple(t.shape) for block in blocks for t in block.state_dict().values()]
        joined = {n: tuple(t.shape) for n, t in space.join(arch, blocks).state_dict().items()}
    _require(joined == space.shapes(arch), f"joined, they have the tensors {joined}")
    _require(shapes == list(joined.values()), f"their tensors {shapes} come in another order")


def _params_are_the_modules(space: SearchSpace, arch: Architecture) -> None:
    with torch.device("meta"):
        counted = sum(p.numel() for p in space.module(arch).parameters())
    _require(space.params(arch) == counted, f"params {space.params(arch)}, counted {counted}")


def _bytes_are_the_blocks(space: SearchSpace, arch: Architecture) -> None:
    stored = sum(block.weight_bytes for block in space.blocks(arch))
    said = space.weight_bytes(arch)
    _require(said == stored, f"weights of {said} bytes, its blocks have {stored}")


def _macs_are_counted(space: SearchSpace, arch: Architecture) -> None:
    counted = count_macs(space, arch)
    _require(space.macs(arch) == counted, f"macs {space.macs(arch)}, counted {counted}")


def _lies_between(space: SearchSpace, arch: Architecture) -> None:
    for cost in (space.macs, space.params, space.weight_bytes):
        low, here, high = cost(space.smallest), cost(arch), cost(space.largest)
        _require(low <= here <= high, f"{cost.__name__} {here} is not within {low} to {high}")


def _runs(space: SearchSpace, arch: Architecture) -> None:
    outputs = _answers(space, arch, extract(space.init(0), space.boxes(arch)))
    expected = (2, *space.task.answer)
    _require(tuple(outputs.shape) == expected, f"answers {tuple(outputs.shape)}, not {expected}")
    _require(bool(torch.isfinite(outputs).all()), "answers numbers that are not finite")


def _answers(space: SearchSpace, arch: Architecture, state: State) -> torch.Tensor:
    number = next(iter(state.values())).dtype
    module = space.build(arch).to(number)
    module.load_state_dict(state)
    inputs = tuple(
        tensor.to(number) if tensor.is_floating_point() else tensor
        for tensor in space.task.example(2, generator=torch.Generator().manual_seed(0))
    )
    calibrate(module, [inputs])
    with torch.no_grad():
        answer: torch.Tensor = module(*inputs)
    return answer


def _axes_are_one(space: SearchSpace, arch: Architecture) -> None:
    """Mix the channels of all axes, each in an order of its own: the network must not notice."""
    axes = space.axes(arch)
    if axes is None:
        return
    _require(
        shapes_of_axes(axes) == space.shapes(arch), "its axes have other sizes than its shapes"
    )
    generator = torch.Generator().manual_seed(0)  # norms' weights, too, must differ by channel
    state = {
        name: tensor.double() + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in extract(space.init(0), space.boxes(arch)).items()
    }
    mixed = state
    for axis in axes_by_name(axes).values():
        if axis.kind is Kind.CHANNELS:
            mixed = permuted(mixed, axes, axis.name, _order(axis.size, generator))
    same = torch.allclose(_answers(space, arch, state), _answers(space, arch, mixed), rtol=1e-6)
    _require(same, "with the channels of its axes in another order it answers otherwise")


def _order(size: int, generator: torch.Generator) -> list[int]:
    """Draw an order that keeps norm groups whole, where there may be some."""
    group = GROUP_CHANNELS if size % GROUP_CHANNELS == 0 else size
    first = torch.randperm(size // group, generator=generator) * group
    mixed: list[int] = (
        (first[:, None] + torch.randperm(group, generator=generator)).flatten().tolist()
    )
    return mixed


def _is_the_supernet(space: SearchSpace, arch: Architecture) -> None:
    _require(
        {n: tuple(t.shape) for n, t in space.init(0).items()} == space.shapes(space.largest),
        "init's tensors are not those of the largest",
    )
    _require(
        space.boxes(space.largest) == prefix_boxes(space.shapes(space.largest)),
        "the largest's boxes do not cover the supernet",
    )


PREMISES: dict[str, Callable[[SearchSpace, Architecture], None]] = {
    "choices stand for architectures": _decodes,
    "an architecture has a module": _makes_a_module,
    "a module reads what the task gives": _reads_the_task,
}
"""What all promises need; one broken premise would break them all in the same way."""
PROMISES: dict[str, Callable[[SearchSpace, Architecture], None]] = {
    "JSON round-trips, equal networks hash equal": _round_trips,
    "init makes the largest's tensors": _is_the_supernet,
    "names nest and shapes fit inside the supernet's": _nests,
    "shapes and boxes equal the module's, in its order": _shapes_are_the_modules,
    "an axis is the same channels wherever it is named": _axes_are_one,
    "its blocks, joined, are the module": _blocks_are_the_module,
    "params equal the module's": _params_are_the_modules,
    "bytes equal the blocks'": _bytes_are_the_blocks,
    "macs equal the counter's": _macs_are_counted,
    "smallest ≤ random ≤ largest": _lies_between,
    "a cut-out subnet runs": _runs,
}
