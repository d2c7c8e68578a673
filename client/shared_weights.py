"""Several subnets a step on one set of weights: FedSup's and FjORD's local training.

A subnet is a module without weights of its own, called on views of the client's parameters
(``functional_call``); autograd adds each subnet's gradients where they belong.
"""

import functools
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from client.objective import Objective
from supernet import Architecture, SearchSpace
from supernet.chain import Block
from supernet.slicing import Cut, inside, shapes_of
from supernet.wire import LocalSubnets, LocalTraining

Draw = Callable[[], list[Architecture]]
_BLOCKS = 1024  # blocks kept: objects only, no weights
_CUTS = 64


def sampler(
    space: SearchSpace, outer: Architecture, subnets: LocalSubnets, rng: np.random.Generator
) -> Draw:
    """Return what draws the subnets of every step, all inside ``outer``.

    Three or more are FedSup's sandwich (Kim and Yun, §3.3), where ``local_sandwich`` is set: the
    largest, which is ``outer``, comes first, the smallest second.

    Raises
    ------
    ValueError
        Where no width level lies inside ``outer``.
    """
    count = subnets.subnets_per_step
    if subnets.local_subnets == "widths":
        boxes = space.boxes(outer)
        levels = [
            arch for arch in subnets.levels(space) if inside(space.boxes(arch), boxes) is not None
        ]
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
    """Plain modules without weights, put together of blocks that are built once.

    Two equal blocks of one network are two objects, since a call gives each its own weights.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._block = functools.lru_cache(_BLOCKS)(self._build)

    def module(self, arch: Architecture) -> nn.Module:
        """Return the network of an architecture, on the meta device, in training mode."""
        blocks = [self._block(n, block) for n, block in enumerate(self._space.blocks(arch))]
        return self._space.join(arch, blocks)

    @staticmethod
    def _build(position: int, block: Block) -> nn.Module:
        with torch.device("meta"):
            return block.module()


class SharedWeights(Objective):
    """The summed loss of several subnets of one network.

    With in-place distillation (arXiv 1903.05134) the whole network learns the labels, the other
    subnets its predictions: no temperature, no weighting, no gradient into the teacher.

    Parameters
    ----------
    module
        The whole network that was received.
    local, precision
        As for :class:`client.objective.Objective`.
    space, outer
        The space, and the architecture of ``module``.
    draw
        Gives the subnets of a step; where the first is ``outer``, the others can learn from it.
    distil
        Whether they do.
    """

    def __init__(
        self,
        module: nn.Module,
        local: LocalTraining,
        space: SearchSpace,
        outer: Architecture,
        draw: Draw,
        *,
        distil: bool = False,
        precision: str = "float32",
    ) -> None:
        super().__init__(module, local, precision=precision)
        self._space, self._outer, self._draw, self._distil = space, outer, draw, distil
        self._networks = Networks(space)
        self._parameters = dict(module.named_parameters())
        self._boxes = space.boxes(outer)
        self._cut = functools.lru_cache(_CUTS)(self._cut_out)
        self._macs_of = functools.lru_cache(_CUTS)(space.macs)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Add the gradients of a step's subnets for a batch; return the mean of their losses."""
        teacher: torch.Tensor | None = None
        losses = []
        for number, arch in enumerate(self._draw()):
            self.mac_images += self._macs_of(arch) * len(labels)
            logits = self.predict(self.subnet(arch), images)
            if teacher is None:
                loss = self.loss(logits, labels)
            else:
                loss = functional.cross_entropy(logits, teacher)
            if self._distil and number == 0 and arch == self._outer:
                teacher = logits.detach().softmax(dim=1)
            torch.autograd.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def subnet(self, arch: Architecture) -> nn.Module:
        """Return a subnet that reads, and gives gradients to, the parameters of the whole."""
        if arch == self._outer:
            return self.module
        cut = self._cut(arch)
        views = {
            name: self._parameters[name][cast(tuple[slice, ...], box)]
            for name, box in cut.slices.items()
        }
        return _Called(self._networks.module(arch), views)

    def _cut_out(self, arch: Architecture) -> Cut:
        boxes = inside(self._space.boxes(arch), self._boxes)
        if boxes is None:
            raise ValueError(
                f"the subnet {arch.to_json()} does not lie inside {self._outer.to_json()}"
            )
        return Cut(shapes_of(self._parameters), boxes)


class _Called(nn.Module):
    """A module called on tensors that are not its own."""

    def __init__(self, module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._call = functools.partial(functional_call, module, tensors)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._call((images,))
        return logits
