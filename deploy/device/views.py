"""Subnets as modules on views of a supernet's tensors, whose weights are held once.

Views have two consequences. Tensors are aligned to 64 bytes, like those that torch allocates
itself: alignment decides the last bits of matrix products, and a view must give the same answers as
a copy. And a slice that is not contiguous is copied inside the convolution that reads it, at every
call.
"""

import functools
import itertools
from collections.abc import Mapping

import torch
from torch import nn

from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.supernet import Architecture, SearchSpace, extract
from superfednas.supernet.boxes import Placement
from superfednas.supernet.chain import Block

LINE = 64  # bytes
_BLOCKS = 128  # blocks kept: some 10 kB of objects each, no weights; resnet10-26 has 62


class Views:
    """Subnets as modules on views of a supernet's tensors, without gradients.

    The modules of blocks, which subnets share, are built once.

    Parameters
    ----------
    space
        The search space.
    state
        The supernet's tensors by name.
    """

    def __init__(self, space: SearchSpace, state: Mapping[str, torch.Tensor]) -> None:
        self.space, self.state = space, state
        self._tensors = functools.lru_cache(_BLOCKS)(self._count)
        self._block = functools.lru_cache(_BLOCKS)(self._build)

    def module(self, arch: Architecture) -> nn.Module:
        """Return a subnet in evaluation mode; read-only.

        Raises
        ------
        ValueError
            If the architecture is not of this space.
        DeployError
            If one of its tensors joins several intervals, which a view cannot represent.
        """
        boxes = self.space.boxes(arch)
        for name, placement in boxes.items():
            if any(len(intervals) > 1 for intervals in placement):
                raise DeployError(
                    f"{name!r} of architecture {arch.to_json()} joins several intervals of the "
                    "supernet, which a view cannot represent: export this subnet instead"
                )
        rest = iter(boxes.items())
        blocks = [
            self._block(block, tuple(itertools.islice(rest, self._tensors(block))))
            for block in self.space.blocks(arch)
        ]
        return self.space.join(arch, blocks).eval()

    def build_all(self) -> None:
        """Build every block, if that takes only milliseconds."""
        chain = self.space.chain
        if chain is None or any(chain.states(s) > 1 for s in range(len(chain.segments))):
            return
        counts = [len(segment.options) for segment in chain.segments]
        for row in range(max(counts)):  # together, these architectures contain every option
            self.module(chain.assemble([row % count for count in counts]))

    @staticmethod
    def _count(block: Block) -> int:
        with torch.device("meta"):
            return len(block.module().state_dict())

    def _build(self, block: Block, boxes: tuple[tuple[str, Placement], ...]) -> nn.Module:
        with torch.device("meta"):
            module = block.module()
        own = module.state_dict()
        views = extract(self.state, dict(boxes))
        module.load_state_dict(dict(zip(own, views.values(), strict=True)), assign=True)
        return module.requires_grad_(False).eval()


def on_a_line(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous tensor aligned to 64 bytes: the tensor itself, or else a copy."""
    tensor = tensor.detach()
    solid = tensor.is_contiguous() and tensor.data_ptr() % LINE == 0
    return tensor if solid else tensor.clone(memory_format=torch.contiguous_format)
