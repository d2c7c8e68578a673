"""What a search space is: one class that names, counts, builds and initialises its subnets.

A family needs three things: the number of choices of each gene (``genes``), the architecture that
a vector of choices stands for (``decode``), and the plain module of an architecture (``module``).
All else has a default that reads the module on torch's meta device: right, but milliseconds a call.
A family that is searched or trained in earnest overrides ``shapes``, ``macs`` and ``params`` in
closed form; :func:`supernet.check.check_space` holds the two against each other.
"""

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from supernet.architecture import Architecture, Shape
from supernet.chain import Block, Chain
from supernet.liveness import peak_activations
from supernet.norms import NORMS
from supernet.slicing import Boxes, inside, prefix_boxes
from supernet.streams import Purpose, stream

State = dict[str, torch.Tensor]
_ENUMERABLE = 200_000


class SearchSpace(ABC):
    """A family of networks whose parameters share one set of weights.

    Parameters
    ----------
    num_classes, in_channels, image_size
        What the networks read and answer: images (N, in_channels, image_size, image_size), logits
        (N, num_classes).
    norm
        One of :data:`supernet.norms.NORMS`.
    """

    name: ClassVar[str] = ""
    architecture: ClassVar[type[Architecture]]

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        norm: str = "group",
    ) -> None:
        for key, value, least in (
            ("num_classes", num_classes, 2),
            ("in_channels", in_channels, 1),
            ("image_size", image_size, 8),
        ):
            if value < least:
                raise ValueError(f"{key} = {value}: must be at least {least}")
        if norm not in NORMS:
            raise ValueError(f"norm = {norm!r}: must be one of {', '.join(NORMS)}")
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.image_size = image_size
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

    def shapes(self, arch: Architecture) -> dict[str, Shape]:
        """Return name to shape of every parameter, in ``state_dict`` order."""
        with torch.device("meta"):
            state = self.module(arch).state_dict()
        return {name: tuple(tensor.shape) for name, tensor in state.items()}

    def boxes(self, arch: Architecture) -> Boxes:
        """Where each tensor of a subnet lies in the supernet's: the leading part by default."""
        return prefix_boxes(self.shapes(arch))

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
            Where the space has no elastic output widths.
        """
        raise ValueError(f"the space {self.name!r} has no windows that could roll")

    def most_inside(self, outer: Architecture) -> list[int]:
        """Return the largest choice of every gene with which a subnet still lies in ``outer``.

        Genes are raised one after the other, in their order: depth comes before what it makes
        active.
        """
        if outer == self.largest:
            return [count - 1 for count in self.genes]
        boxes = self.boxes(outer)
        choices = [0] * len(self.genes)
        for gene, count in enumerate(self.genes):
            for choice in range(count - 1, 0, -1):
                tried = [*choices[:gene], choice, *choices[gene + 1 :]]
                if inside(self.boxes(self.decode(tried)), boxes) is not None:
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
        boxes = self.boxes(outer)
        # Choices that fit alone need not fit together: a stage without its narrow last layer hands
        # on more channels.
        while inside(self.boxes(arch := self.decode(choices)), boxes) is None:
            choices[int(rng.choice([gene for gene, choice in enumerate(choices) if choice]))] -= 1
        return arch

    def params(self, arch: Architecture) -> int:
        """Return the number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes(arch).values())

    def macs(self, arch: Architecture) -> int:
        """Multiply-accumulates of convolutions and linear layers for one image."""
        return count_macs(self, arch)

    def activations(self, arch: Architecture) -> int:
        """Return the most numbers alive at once for one image (:mod:`supernet.liveness`)."""
        with torch.device("meta"):
            module = self.module(arch)
        return peak_activations(module, (self.in_channels, self.image_size, self.image_size))

    def blocks(self, arch: Architecture) -> tuple[Block, ...]:
        """Return the pieces that a network is counted and timed by, from the image on.

        By default a network is one block; a family with a :attr:`chain` has smaller ones, and
        :meth:`join` puts them together.
        """
        whole = Block(
            name=arch.to_json(),
            inputs=(self.in_channels, self.image_size, self.image_size),
            macs=self.macs(arch),
            params=self.params(arch),
            activations=self.activations(arch),
            module=functools.partial(self.module, arch),
        )
        return (whole,)

    def join(self, arch: Architecture, blocks: Sequence[nn.Module]) -> nn.Module:
        """Return an architecture's network, made of the modules of its :meth:`blocks`.

        A family that defines smaller blocks defines this too, so that networks can share them in
        memory (:mod:`deploy.elastic`). The network's tensors are its blocks', in their order.
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
        supernet's numbers, and the share's logarithm. A :attr:`chain` has its own.
        """
        if self.chain is not None:
            row: np.ndarray = self.chain.features(np.array([self.chain.locate(arch)]))[0]
            return row
        shapes = self.shapes(arch)
        seen: list[float] = []
        for name, shape in self._supernet_shapes.items():
            share = math.prod(shapes[name]) / math.prod(shape) if name in shapes else 0.0
            seen += [float(share > 0), share, math.log(share) if share else 0.0]
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
        # Two images: batch statistics of one value a channel are refused.
        images = torch.empty(2, space.in_channels, space.image_size, space.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(images)
    return int(counter.get_total_flops()) // 4
