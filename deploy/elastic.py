"""One supernet file on a device, its subnets switched at call time, its weights held once.

A subnet here is the plain module of its architecture whose parameters are views of the supernet's
tensors. The file is mapped into memory: a page is read when a subnet first needs it, and processes
that load the same file share it.

Two things follow from views. Tensors lie on 64-byte lines, where torch puts those that it allocates
itself: alignment decides the last bits of matrix products, and a view must answer like a copy. And
a slice that is not contiguous is copied inside the convolution that reads it, at every call:
:attr:`ElasticModel.copied_bytes` says how much, :attr:`ElasticModel.transient_bytes` how much of it
exists at a time.
"""

import functools
import itertools
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from deploy.card import Card, DeployError
from deploy.runtime import SAFETENSORS_CARD, Model, first_line
from supernet import Architecture, SearchSpace, extract, load_space
from supernet.chain import Block
from supernet.files import write_whole
from supernet.slicing import Placement

_LINE = 64  # bytes
_RECENT = 16  # modules kept beside the menu's: objects only, no weights
_BLOCKS = 128  # blocks kept: some 10 kB of objects each, no weights; resnet10-26 has 62


class Views:
    """Subnets as modules on views of a supernet's tensors, without gradients.

    What subnets have in common, the modules of their blocks, is built once.

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
        """Return a subnet in evaluation mode; reading only.

        Raises
        ------
        ValueError
            Where the architecture is not of this space.
        DeployError
            Where one of its tensors joins several intervals, which no view can show.
        """
        boxes = self.space.boxes(arch)
        for name, placement in boxes.items():
            if any(len(intervals) > 1 for intervals in placement):
                raise DeployError(
                    f"{name!r} of architecture {arch.to_json()} joins several intervals of the "
                    "supernet, which no view can show: export this subnet instead"
                )
        rest = iter(boxes.items())
        blocks = [
            self._block(block, tuple(itertools.islice(rest, self._tensors(block))))
            for block in self.space.blocks(arch)
        ]
        return self.space.join(arch, blocks).eval()

    def build_all(self) -> None:
        """Build every block, where that is a matter of milliseconds."""
        chain = self.space.chain
        if chain is None or any(chain.states(s) > 1 for s in range(len(chain.segments))):
            return
        counts = [len(segment.options) for segment in chain.segments]
        for row in range(max(counts)):  # together, these networks hold every option
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


def write_elastic(
    path: str | Path,
    space: SearchSpace,
    state: Mapping[str, torch.Tensor],
    card: Card,
    *,
    overwrite: bool = False,
) -> None:
    """Write the whole supernet and its card into one safetensors file.

    Parameters
    ----------
    path
        The file; written whole, then renamed.
    space
        The search space.
    state
        The supernet's tensors, float32, of ``space.shapes(space.largest)``.
    card
        Its ``architecture`` is the largest, its ``menu`` the subnets to switch between.
    overwrite
        Replace a file that is there.

    Raises
    ------
    DeployError
        Where the file exists or cannot be written, the norm is ``batch``, or space, tensors and
        card do not fit.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise DeployError(f"{path} exists already: name another, or say overwrite")
    if _identity(space) != _identity(_space_of(card)):
        raise DeployError(f"the card's space {dict(card.space)} is not the one of the weights")
    _check(space, state, card)
    try:
        write_whole(path, _lay_out(state, card.to_json()))
    except OSError as error:
        raise DeployError(f"{path} cannot be written: {error}") from error


class ElasticModel(Model):
    """A supernet that answers as one of its subnets at a time, at first as the largest.

    A call runs the subnet that was active when it began, so other threads may switch meanwhile.

    Parameters
    ----------
    space
        The search space.
    state
        The supernet's tensors. Kept, not copied, except for those off a 64-byte line; whoever
        writes to them changes the answers.
    card
        As for :func:`write_elastic`. The modules of its menu are built here, so that a budget
        never waits for one; so are the blocks of all other subnets, where these are few.

    Raises
    ------
    DeployError
        Where space, tensors and card do not fit.
    """

    def __init__(self, space: SearchSpace, state: Mapping[str, torch.Tensor], card: Card) -> None:
        super().__init__(card, self._run)
        self.space = space
        self._menu = _check(space, state, card)
        state = {name: _on_a_line(tensor) for name, tensor in state.items()}
        self.weight_bytes = sum(tensor.nbytes for tensor in state.values())
        views = Views(space, state)
        views.build_all()
        self._built = {arch: views.module(arch) for arch in self._menu}
        self._recent = functools.lru_cache(_RECENT)(views.module)
        self.use(space.largest)

    @classmethod
    def load(cls, path: str | Path) -> "ElasticModel":
        """Map what :func:`write_elastic` wrote.

        Raises
        ------
        DeployError
            Where the file is missing, truncated or no elastic file.
        """
        try:
            with safe_open(path, "pt") as file:
                note = (file.metadata() or {}).get(SAFETENSORS_CARD, "")
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise DeployError(f"{path}: there is no such file") from None
        except (SafetensorError, OSError) as error:
            raise DeployError(
                f"{path}: it is truncated or no safetensors file ({first_line(error)})"
            ) from None
        card = Card.from_json(note, str(path))
        try:
            return cls(_space_of(card), state, card)
        except (ValueError, TypeError, KeyError) as error:
            raise DeployError(f"{path}: it is no elastic file ({error})") from None

    @property
    def architecture(self) -> Architecture:
        """The active subnet."""
        return self._active[0]

    @property
    def module(self) -> nn.Module:
        """The active subnet as a plain module on views; reading only."""
        return self._active[1]

    @property
    def copied_bytes(self) -> int:
        """Bytes of weights that torch copies, and drops again, in one call."""
        return sum(self._copied())

    @property
    def transient_bytes(self) -> int:
        """Bytes of the largest such copy: what a call needs beside activations at most."""
        return max(self._copied(), default=0)

    def _copied(self) -> list[int]:
        # Convolutions read contiguous weights only; linear layers take a stride.
        weights = [p for p in self.module.parameters() if p.dim() > 2 and not p.is_contiguous()]
        return [weight.nbytes for weight in weights]

    def use(
        self,
        arch: Architecture | str | None = None,
        *,
        max_macs: int | None = None,
        max_params: int | None = None,
    ) -> Architecture:
        """Switch to a subnet; microseconds where its module is built.

        Others are put together of blocks, which takes some tenths of a millisecond. In a space of
        elastic width, which has too many blocks to build all of them at first, it may be some
        milliseconds.

        Parameters
        ----------
        arch
            Any architecture of the space, or its text (``largest``, ``smallest``, ``random:SEED``,
            JSON). Without it the best of the menu is taken: the highest score, and where no subnet
            within the budget has one, the most MACs.
        max_macs, max_params
            The budget: limits, for one image, of what is taken from the menu.

        Returns
        -------
        Architecture
            The subnet that is active now. After an error it is the one before.

        Raises
        ------
        ValueError
            Where the architecture is not of this space.
        DeployError
            Where nothing in the menu keeps the budget; the message says what comes nearest.
        """
        limits = {"macs": max_macs, "params": max_params}
        budget = {what: limit for what, limit in limits.items() if limit is not None}
        if arch is None:
            arch = self._best(budget)
        elif budget:
            raise DeployError("give an architecture or a budget, not both")
        elif isinstance(arch, str):
            arch = self.space.parse(arch)
        module = self._built[arch] if arch in self._built else self._recent(arch)
        self._active = (arch, module)  # one reference: a call sees the old pair or the new one
        return arch

    def _best(self, budget: Mapping[str, int]) -> Architecture:
        if not self._menu:
            raise DeployError("the menu of this file is empty: name an architecture")
        fits = {
            arch: entry
            for arch, entry in self._menu.items()
            if all(entry[what] <= limit for what, limit in budget.items())
        }
        if not fits:
            nearest = min(
                self._menu.values(),
                key=lambda entry: max(entry[what] / max(budget[what], 1) for what in budget),
            )
            wanted = " and ".join(f"max_{what} = {limit:,}" for what, limit in budget.items())
            found = " and ".join(f"{nearest[what]:,} {what}" for what in budget)
            raise DeployError(f"no subnet of the menu keeps {wanted}: the nearest has {found}")
        scored = {arch: entry for arch, entry in fits.items() if entry.get("score") is not None}
        if scored:  # at equal scores the cheaper one
            return max(scored, key=lambda arch: (scored[arch]["score"], -scored[arch]["macs"]))
        return max(fits, key=lambda arch: int(fits[arch]["macs"]))

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images (N, C, H, W), float32, to logits (N, classes)."""
        logits: torch.Tensor = self.module(images)
        return logits

    def _run(self, batch: np.ndarray) -> np.ndarray:
        return self(torch.tensor(batch)).numpy()  # a copy lies on a 64-byte line


def _space_of(card: Card) -> SearchSpace:
    options = dict(card.space)
    return load_space(options.pop("space"), **options)


def _identity(space: SearchSpace) -> tuple[Any, ...]:
    return type(space), space.num_classes, space.in_channels, space.image_size, space.norm


def _check(
    space: SearchSpace, state: Mapping[str, torch.Tensor], card: Card
) -> dict[Architecture, Mapping[str, Any]]:
    """Hold tensors and card against the space; return the menu by architecture."""
    if space.norm == "batch":
        raise DeployError(
            "norm = 'batch': its statistics belong to one subnet, so a file of many cannot hold "
            "them; export the subnet instead"
        )
    if space.parse(card.architecture) != space.largest:
        raise DeployError("the card's architecture is one subnet, not the largest")
    if len(card.classes) != space.num_classes:
        raise DeployError(f"the card names {len(card.classes)} classes of {space.num_classes}")
    shapes = space.shapes(space.largest)
    for name in dict.fromkeys([*shapes, *state]):
        expected = f"float32 {shapes[name]}" if name in shapes else "unknown to the space"
        found = (
            f"{state[name].dtype} {tuple(state[name].shape)}".removeprefix("torch.")
            if name in state
            else "missing"
        )
        if found != expected:
            raise DeployError(f"tensor {name!r} is {found}; expected: {expected}")
    menu = {}
    for entry in card.menu:
        arch = space.parse(entry["architecture"])
        for what, cost in (("macs", space.macs(arch)), ("params", space.params(arch))):
            if entry.get(what) != cost:
                raise DeployError(
                    f"menu: {arch.to_json()} has {what} = {cost}, not {entry.get(what)!r}"
                )
        menu[arch] = entry
    return menu


def _on_a_line(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    solid = tensor.is_contiguous() and tensor.data_ptr() % _LINE == 0
    return tensor if solid else tensor.clone(memory_format=torch.contiguous_format)


def _lay_out(state: Mapping[str, torch.Tensor], note: str) -> bytes:
    """Return a safetensors file whose tensors lie on 64-byte lines, as far as the format lets them.

    It allows no gap between tensors, but any order, and blanks behind the header: tensors that fill
    whole lines come first. The few bytes of the others are moved when the file is loaded.
    """
    solid = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    header: dict[str, Any] = {"__metadata__": {SAFETENSORS_CARD: note}}
    parts, end = [], 0
    for name in sorted(solid, key=lambda name: solid[name].nbytes % _LINE > 0):
        start, end = end, end + solid[name].nbytes
        shape = list(solid[name].shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        parts.append(solid[name].numpy().tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _LINE)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])
