"""A contract checker for search spaces: what every family promises, tried on real draws."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from supernet.architecture import Architecture
from supernet.norms import calibrate
from supernet.slicing import extract, prefix_boxes, resolve
from supernet.space import SearchSpace, count_macs


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
        One a promise, in the order of :data:`PROMISES`.
    """
    rng = np.random.default_rng(seed)
    try:
        drawn = [space.smallest, space.largest, *(space.sample(rng) for _ in range(samples))]
    except Exception as error:  # noqa: BLE001 (a stranger's code may raise anything)
        return [CheckResult("architectures can be drawn", f"{type(error).__name__}: {error}")]
    results = []
    for promise, check in PROMISES.items():
        try:
            for arch in drawn:
                check(space, arch)
            results.append(CheckResult(promise))
        except Exception as error:  # noqa: BLE001
            kind = "" if isinstance(error, _Broken) else f"{type(error).__name__}: "
            results.append(CheckResult(promise, f"{kind}{error} (architecture {arch.to_json()})"))
    return results


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


def _macs_are_counted(space: SearchSpace, arch: Architecture) -> None:
    counted = count_macs(space, arch)
    _require(space.macs(arch) == counted, f"macs {space.macs(arch)}, counted {counted}")


def _lies_between(space: SearchSpace, arch: Architecture) -> None:
    for cost in (space.macs, space.params):
        low, here, high = cost(space.smallest), cost(arch), cost(space.largest)
        _require(low <= here <= high, f"{cost.__name__} {here} is not within {low} to {high}")


def _validates(space: SearchSpace, arch: Architecture) -> None:
    space.validate(arch)


def _runs(space: SearchSpace, arch: Architecture) -> None:
    module = space.build(arch)
    module.load_state_dict(extract(space.init(0), space.boxes(arch)))
    images = torch.rand(2, space.in_channels, space.image_size, space.image_size)
    calibrate(module, [images])
    with torch.no_grad():
        logits = module(images)
    expected = (2, space.num_classes)
    _require(tuple(logits.shape) == expected, f"answers {tuple(logits.shape)}, not {expected}")
    _require(bool(torch.isfinite(logits).all()), "answers numbers that are not finite")


def _is_the_supernet(space: SearchSpace, arch: Architecture) -> None:
    _require(
        {n: tuple(t.shape) for n, t in space.init(0).items()} == space.shapes(space.largest),
        "init's tensors are not those of the largest",
    )
    _require(
        space.boxes(space.largest) == prefix_boxes(space.shapes(space.largest)),
        "the largest's boxes do not cover the supernet",
    )


PROMISES: dict[str, Callable[[SearchSpace, Architecture], None]] = {
    "drawn architectures are valid": _validates,
    "JSON round-trips, equal networks hash equal": _round_trips,
    "init makes the largest's tensors": _is_the_supernet,
    "names nest and shapes fit inside the supernet's": _nests,
    "shapes and boxes equal the module's, in its order": _shapes_are_the_modules,
    "its blocks, joined, are the module": _blocks_are_the_module,
    "params equal the module's": _params_are_the_modules,
    "macs equal the counter's": _macs_are_counted,
    "smallest ≤ random ≤ largest": _lies_between,
    "a cut-out subnet runs": _runs,
}
