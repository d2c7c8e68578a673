"""The search space: one class that names, counts, builds and initialises its subnets.

A family needs three things: the number of choices of each gene (``genes``), the architecture that
a vector of choices stands for (``decode``), and the plain module of an architecture (``module``).
All else has a default that reads the module on torch's meta device: right, but milliseconds a call.
A family that is searched or trained in earnest names its ``axes``, and overrides ``macs`` and
``params`` in closed form; :func:`superfednas.supernet.contract.check_space` holds the two against
each other.
"""

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from superfednas.common.streams import Purpose, stream
from superfednas.supernet.activations import peak_activations
from superfednas.supernet.architecture import Architecture, Shape
from superfednas.supernet.axes import (
    Axes,
    Trait,
    boxes_of_axes,
    lies_within,
    shapes_of_axes,
    weight_bytes,
)
from superfednas.supernet.boxes import Boxes, inside, prefix_boxes
from superfednas.supernet.chain import FLOAT_BYTES, Block, Chain
from superfednas.supernet.norms import NORMS
from superfednas.tasks import Task

State = dict[str, torch.Tensor]
_ENUMERABLE = 200_000


class SearchSpace(ABC):
    """A family of networks whose parameters share one set of weights.

    Parameters
    ----------
    task
        What the networks read and answer.
    norm
        One of :data:`superfednas.supernet.norms.NORMS`.
    """

    name: ClassVar[str] = ""
    architecture: ClassVar[type[Architecture]]

    def __init__(self, task: Task, norm: str = "group") -> None:
        if norm not in NORMS:
            raise ValueError(f"norm = {norm!r}: must be one of {', '.join(NORMS)}")
        self.task = task
        self.norm = norm

    # What a family defines

    @property
    @abstractmethod
    def genes(self) -> tuple[int, ...]:
        """Number of choices of every gene; choice 0 is the smallest, the last the largest."""

    @abstractmethod
    def decode(self, choices: Sequence[int]) -> Architecture:
        """Return the architecture of one choice a gene (inactive genes drop out)."""

    @abstractmethod
    def module(self, arch: Architecture) -> nn.Module:
        """Construct the plain module; called under the meta device, so nothing is allocated."""

    # What follows from it; closed forms may replace the meta-device readings

    @functools.cached_property
    def size(self) -> int:
        """Exact number of distinct networks."""
        if math.prod(self.genes) > _ENUMERABLE:
            raise ValueError(f"{type(self).__name__} must define `size` in closed form")
        every = itertools.product(*(range(choices) for choices in self.genes))
        return len({self.decode(choices) for choices in every})

    @functools.cached_property
    def largest(self) -> Architecture:
        """The supernet's own architecture."""
        return self.decode([choices - 1 for choices in self.genes])

    @functools.cached_property
    def smallest(self) -> Architecture:
        """The architecture that every other contains."""
        return self.decode([0] * len(self.genes))

    def draw(self, rng: np.random.Generator) -> list[int]:
        """Draw one choice a gene, uniformly over genes (not over distinct networks)."""
        return [int(rng.integers(choices)) for choices in self.genes]

    def sample(self, rng: np.random.Generator) -> Architecture:
        """Draw an architecture, uniformly over genes."""
        return self.decode(self.draw(rng))

    def full_width(self, choices: Sequence[int]) -> list[int]:
        """Set every gene but depth's to its largest choice (for depth-only sampling)."""
        raise ValueError(f"the space {self.name!r} does not say which genes are depth")

    def validate(self, arch: Architecture) -> None:
        """Check that an architecture belongs to this space.

        Raises
        ------
        ValueError
            Naming the field and the allowed values.
        """
        if not isinstance(arch, self.architecture):
            raise ValueError(
                f"a {type(arch).__name__} is no architecture of the space {self.name!r}, "
                f"which has {self.architecture.__name__}"
            )

    def parse(self, text: str) -> Architecture:
        """Read ``largest``, ``smallest``, ``random:SEED`` or JSON, and validate it."""
        if text in ("largest", "smallest"):
            return self.largest if text == "largest" else self.smallest
        kind, _, seed = text.partition(":")
        if kind == "random":
            if not seed.isdecimal():
                raise ValueError(f"architecture {text!r}: random:SEED needs a whole number")
            return self.sample(np.random.default_rng(int(seed)))
        if not text.lstrip().startswith("{"):
            raise ValueError(
                f"architecture {text!r}: must be largest, smallest, random:SEED or a JSON object"
            )
        arch = self.architecture.from_json(text)
        self.validate(arch)
        return arch

    def build(self, arch: Architecture) -> nn.Module:
        """Return the plain module of an architecture, parameters left uninitialised."""
        with torch.device("meta"):
            module = self.module(arch)
        return module.to_empty(device="cpu")

    # Where its tensors lie

    def axes(self, arch: Architecture) -> Axes | None:
        """Name the axis of every dimension of every tensor, in ``state_dict`` order.

        Shapes, boxes and windows that roll follow from it. A space that names none has the shapes
        of its modules, and leading parts for boxes.
        """
        return None

    @functools.cached_property
    def _whole(self) -> Axes:
        return self.axes(self.largest) or {}

    def shapes(self, arch: Architecture) -> dict[str, Shape]:
        """Return name to shape of every parameter, in ``state_dict`` order."""
        axes = self.axes(arch)
        if axes is not None:
            return shapes_of_axes(axes)
        with torch.device("meta"):
            state = self.module(arch).state_dict()
        return {name: tuple(tensor.shape) for name, tensor in state.items()}

    def boxes(self, arch: Architecture) -> Boxes:
        """Where each tensor of a subnet lies in the supernet's; the leading part without axes."""
        axes = self.axes(arch)
        return prefix_boxes(self.shapes(arch)) if axes is None else boxes_of_axes(axes, self._whole)

    @functools.cached_property
    def _boxes(self) -> Callable[[Architecture], Boxes]:
        return functools.lru_cache(maxsize=8)(self.boxes)  # one outer subnet is asked of many

    def traits(self, arch: Architecture) -> dict[str, Trait]:
        """Return the choices of a network that have no geometry, by name (``layer0.bits``)."""
        return {}

    def within(self, outer: Architecture, inner: Architecture) -> Boxes | None:
        """Say where a subnet lies in the tensors of another one; None where it is not all there."""
        if not lies_within(self.traits(inner), self.traits(outer)):
            return None
        return inside(self.boxes(inner), self._boxes(outer))

    def contains(self, outer: Architecture, inner: Architecture) -> bool:
        """Say whether a subnet lies inside another one: all its tensors, whole, and its traits."""
        return self.within(outer, inner) is not None

    # Elastic output widths, for methods that know no other dimension (HeteroFL, FjORD, FedRolex)

    @property
    def width_shares(self) -> tuple[float, ...]:
        """Shares of all output channels that a subnet may have, rising to 1; none: not elastic."""
        return ()

    def at_width(self, share: float) -> Architecture:
        """Return the subnet with this share of all output channels, and all else at its largest.

        Raises
        ------
        ValueError
            Where the share is none of :attr:`width_shares`.
        """
        raise ValueError(self._no_width(share))

    def _no_width(self, share: float) -> str:
        if not self.width_shares:
            return f"the space {self.name!r} has no elastic output widths"
        allowed = ", ".join(f"{known:g}" for known in self.width_shares)
        return f"width {share:g} is none of the space {self.name!r}: {allowed}"

    def rolled(self, arch: Architecture, shift: int) -> Boxes:
        """Where a subnet's tensors lie if all its width windows are moved by ``shift`` channels.

        Parameters
        ----------
        shift
            Channels, a multiple of 8 so that norm groups stay whole; a window that leaves its axis
            goes on at its start (FedRolex, arXiv 2212.01548).

        Raises
        ------
        ValueError
            Where the space has no elastic output widths, or names no axes.
        """
        axes = self.axes(arch)
        if axes is None or not self.width_shares:
            raise ValueError(f"the space {self.name!r} has no windows that could roll")
        return boxes_of_axes(axes, self._whole, shift)

    def most_inside(self, outer: Architecture) -> list[int]:
        """Return the largest choice of every gene with which a subnet still lies in ``outer``.

        Genes are raised one after the other, in their order: depth comes before what it makes
        active.
        """
        if outer == self.largest:
            return [count - 1 for count in self.genes]
        choices = [0] * len(self.genes)
        for gene, count in enumerate(self.genes):
            for choice in range(count - 1, 0, -1):
                tried = [*choices[:gene], choice, *choices[gene + 1 :]]
                if self.contains(outer, self.decode(tried)):
                    choices = tried
                    break
        return choices

    def sample_inside(
        self, outer: Architecture, rng: np.random.Generator, most: Sequence[int] | None = None
    ) -> Architecture:
        """Draw a subnet of a subnet, uniformly over the choices of every gene that fit.

        Parameters
        ----------
        outer
            What it must lie in; within the largest this is :meth:`sample`.
        most
            :meth:`most_inside` of ``outer``, where it is known already.
        """
        most = self.most_inside(outer) if most is None else most
        choices = [int(rng.integers(choice + 1)) for choice in most]
        if outer == self.largest:
            return self.decode(choices)
        # Choices that fit alone need not fit together: a stage without its narrow last layer hands
        # on more channels.
        while not self.contains(outer, arch := self.decode(choices)):
            choices[int(rng.choice([gene for gene, choice in enumerate(choices) if choice]))] -= 1
        return arch

    def params(self, arch: Architecture) -> int:
        """Return the number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes(arch).values())

    def weight_bytes(self, arch: Architecture) -> int:
        """Return what the weights take in a file: float32, but for what traits make smaller."""
        traits = self.traits(arch)
        if traits:
            return weight_bytes(self.shapes(arch), traits)
        return FLOAT_BYTES * self.params(arch)

    def macs(self, arch: Architecture) -> int:
        """Multiply-accumulates of convolutions and linear layers for one example."""
        return count_macs(self, arch)

    def activations(self, arch: Architecture) -> int:
        """Return the most numbers alive at once for one image (see ``activations``)."""
        with torch.device("meta"):
            module = self.module(arch)
        return peak_activations(module, self.task.example(2, "meta"))

    def blocks(self, arch: Architecture) -> tuple[Block, ...]:
        """Return the pieces that a network is counted and timed by, from the image on.

        By default a network is one block; a family with a :attr:`chain` has smaller ones, and
        :meth:`join` puts them together.
        """
        whole = Block(
            name=arch.to_json(),
            inputs=next(iter(self.task.inputs.values())).shape,
            macs=self.macs(arch),
            params=self.params(arch),
            activations=self.activations(arch),
            stored=self.weight_bytes(arch),
            module=functools.partial(self.module, arch),
        )
        return (whole,)

    def join(self, arch: Architecture, blocks: Sequence[nn.Module]) -> nn.Module:
        """Return an architecture's network, made of the modules of its :meth:`blocks`.

        A family that defines smaller blocks defines this too, so that networks can share them in
        memory (:mod:`superfednas.deploy.device.elastic`). The network's tensors are its blocks',
        in their order.
        """
        (whole,) = blocks
        return whole

    @property
    def chain(self) -> Chain | None:
        """The space as a chain of segments, where it is one: for exact search, latency tables."""
        return None

    def features(self, arch: Architecture) -> np.ndarray:
        """Return what a regression sees of an architecture: (features,), float.

        By default, for every tensor of the supernet: whether it is there, its share of the
        supernet's numbers, and the share's logarithm; then the level of every trait. A
        :attr:`chain` has its own.
        """
        if self.chain is not None:
            row: np.ndarray = self.chain.features(np.array([self.chain.locate(arch)]))[0]
            return row
        shapes = self.shapes(arch)
        seen: list[float] = []
        for name, shape in self._supernet_shapes.items():
            share = math.prod(shapes[name]) / math.prod(shape) if name in shapes else 0.0
            seen += [float(share > 0), share, math.log(share) if share else 0.0]
        traits = self.traits(arch)
        seen += [traits[n].level if n in traits else 0.0 for n in self.traits(self.largest)]
        return np.array(seen)

    @functools.cached_property
    def _supernet_shapes(self) -> dict[str, Shape]:
        return self.shapes(self.largest)

    def in_head(self, name: str) -> bool:
        """Say whether a parameter is the classifier's, which personalisation trains alone."""
        return "head" in name.split(".")

    def gain(self, name: str) -> float:
        """Return a weight's first standard deviation, times the root of its fan-in."""
        return math.sqrt(2)

    def init(self, seed: int) -> State:
        """Return the supernet's first state: float32 tensors of ``shapes(largest)``.

        Tensors of two or more dimensions are N(0, gain² / fan-in) with the fan-in of the supernet's
        tensor (He et al., arXiv 1502.01852, for the default gain √2); one-dimensional weights are
        1, biases 0. Each tensor has its own random stream, so adding a tensor changes no other.
        """
        state: State = {}
        for name, shape in self.shapes(self.largest).items():
            if len(shape) >= 2:
                normal = stream(seed, Purpose.INIT, name=name).standard_normal(shape, np.float32)
                scale = self.gain(name) / math.sqrt(math.prod(shape[1:]))
                state[name] = torch.from_numpy(normal).mul_(scale)
            elif name.endswith("bias"):
                state[name] = torch.zeros(shape)
            else:
                state[name] = torch.ones(shape)
        return state


def count_macs(space: SearchSpace, arch: Architecture) -> int:
    """Count an architecture's multiply-accumulates by running its module on the meta device.

    The counter reports operations, two a multiply-accumulate.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton: a tenth of torch

    with torch.device("meta"):
        module = space.module(arch).train()
        # Two examples: batch statistics of one value a channel are refused.
        inputs = space.task.example(2, "meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return int(counter.get_total_flops()) // 4
