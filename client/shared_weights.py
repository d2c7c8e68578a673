"""Several subnets a step on one set of weights: FedSup's and FjORD's local training.

A subnet is a module without its own weights, called on views of the client's parameters
(``functional_call``); autograd adds each subnet's gradients where they belong.
"""

import functools
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from superfednas.client.objective import Objective
from superfednas.supernet import Architecture, SearchSpace
from superfednas.supernet.boxes import Cut, shapes_of
from superfednas.supernet.chain import Block
from superfednas.tasks import Inputs, Task
from superfednas.tasks.task import Tensors
from superfednas.wire.order import LocalSubnets, LocalTraining

Draw = Callable[[], list[Architecture]]
_BLOCKS = 1024  # blocks kept: objects only, no weights
_CUTS = 64


def sampler(
    space: SearchSpace, outer: Architecture, subnets: LocalSubnets, rng: np.random.Generator
) -> Draw:
    """Return a function that draws the subnets of every step, all inside ``outer``.

    Three or more form FedSup's sandwich (Kim and Yun, §3.3) if ``local_sandwich`` is set: the
    largest, which is ``outer``, comes first, the smallest second.

    Raises
    ------
    ValueError
        If no width level lies inside ``outer``.
    """
    count = subnets.subnets_per_step
    if subnets.local_subnets == "widths":
        levels = [arch for arch in subnets.levels(space) if space.contains(outer, arch)]
        if not levels:
            raise ValueError(
                f"width-levels = {subnets.width_levels!r}: none lies inside the subnet received, "
                f"{outer.to_json()}"
            )
        smallest = levels[0]

        def one() -> Architecture:
            return levels[int(rng.integers(len(levels)))]

    else:
        smallest, most = space.smallest, space.most_inside(outer)

        def one() -> Architecture:
            return space.sample_inside(outer, rng, most)

    ends = [outer, smallest] if subnets.largest_first else []
    return lambda: [*ends, *(one() for _ in range(count - len(ends)))]


class Networks:
    """Plain modules without weights, assembled from blocks that are built once.

    Two equal blocks of one subnet are two objects, because a call gives each its own weights.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._block = functools.lru_cache(_BLOCKS)(self._build)

    def module(self, arch: Architecture) -> nn.Module:
        """Return the module of an architecture, on the meta device, in training mode."""
        blocks = [self._block(n, block) for n, block in enumerate(self._space.blocks(arch))]
        return self._space.join(arch, blocks)

    @staticmethod
    def _build(position: int, block: Block) -> nn.Module:
        with torch.device("meta"):
            return block.module()


class SharedWeights(Objective):
    """The summed loss of several subnets inside one.

    With in-place distillation (arXiv 1903.05134) the whole subnet learns the labels and the others
    learn its predictions: no temperature, no weighting, no gradient into the teacher.

    Parameters
    ----------
    module
        The whole subnet as received.
    task, local, precision
        As for :class:`superfednas.client.objective.Objective`.
    space, outer
        The space, and the architecture of ``module``.
    draw
        Returns the subnets of a step; if the first is ``outer``, the others can learn from it.
    distil
        Whether they do.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        local: LocalTraining,
        space: SearchSpace,
        outer: Architecture,
        draw: Draw,
        *,
        distil: bool = False,
        precision: str = "float32",
    ) -> None:
        super().__init__(module, task, local, precision=precision)
        self._space, self._outer, self._draw, self._distil = space, outer, draw, distil
        self._networks = Networks(space)
        self._parameters = dict(module.named_parameters())
        self._cut = functools.lru_cache(_CUTS)(self._cut_out)
        self._macs_of = functools.lru_cache(_CUTS)(space.macs)

    def __call__(self, inputs: Inputs, targets: Tensors) -> torch.Tensor:
        """Add the gradients of a step's subnets for a batch; return the mean of their losses."""
        teacher: torch.Tensor | None = None
        losses = []
        for number, arch in enumerate(self._draw()):
            self.mac_images += self._macs_of(arch) * len(inputs[0])
            outputs = self.predict(self.subnet(arch), inputs)
            if teacher is None:
                loss = self.loss(outputs, targets)
            else:
                loss = self.task.distil(outputs, teacher)
            if self._distil and number == 0 and arch == self._outer:
                teacher = outputs.detach()
            torch.autograd.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def subnet(self, arch: Architecture) -> nn.Module:
        """Return a subnet that reads the parameters of the whole and adds to their gradients."""
        if arch == self._outer:
            return self.module
        cut = self._cut(arch)
        views = {
            name: self._parameters[name][cast(tuple[slice, ...], box)]
            for name, box in cut.slices.items()
        }
        return _Called(self._networks.module(arch), views)

    def _cut_out(self, arch: Architecture) -> Cut:
        boxes = self._space.within(self._outer, arch)
        if boxes is None:
            raise ValueError(
                f"the subnet {arch.to_json()} does not lie inside {self._outer.to_json()}"
            )
        return Cut(shapes_of(self._parameters), boxes)


class _Called(nn.Module):
    """A module called on tensors other than its own."""

    def __init__(self, module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._call = functools.partial(functional_call, module, tensors)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self._call(inputs)
        return outputs
