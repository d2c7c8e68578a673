"""One supernet file on a device: subnets are switched at call time, weights are held once.

A subnet here is the plain module of its architecture, with parameters that are views of the
supernet's tensors. The file is mapped into memory: a page is read when a subnet first needs it, and
processes that load the same file share it.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from superfednas.common.damage import DAMAGE
from superfednas.common.imports import NotImportableError
from superfednas.common.trust import UntrustedCodeError
from superfednas.deploy.device.elastic_file import check_elastic, read_elastic
from superfednas.deploy.device.runtime.card import Card
from superfednas.deploy.device.runtime.errors import DeployError, first_line, without_code
from superfednas.deploy.device.runtime.model import Model
from superfednas.deploy.device.views import Views, on_a_line
from superfednas.supernet import Architecture, SearchSpace
from superfednas.wire.described import described_space

_RECENT = 16  # subnets kept besides the menu's: objects only, no weights


class Subnet(Model):
    """One subnet of an elastic file: a handle to call, independent of all other handles.

    Any number of handles may be called at the same time, even from several threads.

    Parameters
    ----------
    architecture
        The subnet.
    module
        The plain module on views; read-only.
    card
        The file's.
    """

    def __init__(self, architecture: Architecture, module: nn.Module, card: Card) -> None:
        super().__init__(card, self._answer)
        self.architecture, self.module = architecture, module

    @torch.inference_mode()
    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Answer a batch of inputs, as the network reads them (``Model.run`` takes raw rows)."""
        answers: torch.Tensor = self.module(*inputs)
        return answers

    @property
    def copied_bytes(self) -> int:
        """Bytes of weights that torch copies, and frees again, in one call."""
        return sum(self._copied())

    @property
    def transient_bytes(self) -> int:
        """Bytes of the largest such copy: what a call needs at most in addition to activations."""
        return max(self._copied(), default=0)

    def _copied(self) -> list[int]:
        # Convolutions read contiguous weights only; linear layers take a stride.
        weights = [p for p in self.module.parameters() if p.dim() > 2 and not p.is_contiguous()]
        return [weight.nbytes for weight in weights]

    def _answer(self, read: Sequence[np.ndarray]) -> np.ndarray:
        return self(*map(torch.tensor, read)).numpy()  # copies lie on 64-byte lines


class ElasticModel(Model):
    """A supernet that hands out subnets and itself runs as one of them, at first the largest.

    :meth:`subnet` returns a separate handle to each caller; :meth:`use` sets the subnet that the
    model itself runs as. A call runs the subnet that was active when it began, so other threads may
    switch meanwhile.

    Parameters
    ----------
    space
        The search space.
    state
        The supernet's tensors. They are kept, not copied, except for those not aligned to 64 bytes;
        writing to them changes the answers.
    card
        As for :func:`superfednas.deploy.device.elastic_file.write_elastic`. The subnets of its menu
        are built here, so that a budget never waits for one; so are the blocks of all other
        subnets, if these are few.

    Raises
    ------
    DeployError
        If space, tensors and card do not match.
    """

    def __init__(self, space: SearchSpace, state: Mapping[str, torch.Tensor], card: Card) -> None:
        super().__init__(card, lambda read: self.active._answer(read))
        self.space = space
        self._menu = check_elastic(space, state, card)
        state = {name: on_a_line(tensor) for name, tensor in state.items()}
        self.weight_bytes = sum(tensor.nbytes for tensor in state.values())
        self._views = Views(space, state)
        self._views.build_all()
        self._built = {arch: self._build(arch) for arch in self._menu.entries}
        self._recent = functools.lru_cache(_RECENT)(self._build)
        self.active = self.subnet(space.largest)
        """The subnet that the model itself runs as."""

    @classmethod
    def load(cls, path: str | Path, *, trust_code: bool = False) -> "ElasticModel":
        """Map an elastic file.

        Raises
        ------
        DeployError
            If the file is missing, truncated or not an elastic file, or if its network is of a
            module that cannot be imported here.
        superfednas.common.trust.UntrustedCodeError
            If it names modules that nobody has trusted; ``trust_code`` trusts them.
        """
        card, state = read_elastic(path)
        try:
            return cls(described_space(card.space, path, trust_code=trust_code), state, card)
        except UntrustedCodeError:
            raise
        except NotImportableError as error:
            raise without_code(path, error) from None
        except DAMAGE as error:
            raise DeployError(f"{path}: it is no elastic file ({first_line(error)})") from None

    def subnet(self, wanted: Architecture | str | Mapping[str, float] | None = None) -> Subnet:
        """Return a handle to a subnet, in microseconds if its module is built.

        Others are assembled from blocks, which takes some tenths of a millisecond. In a space of
        elastic width, which has too many blocks to build them all at load, it may take some
        milliseconds.

        Parameters
        ----------
        wanted
            Any architecture of the space, a name of the menu, an architecture's text (``largest``,
            ``smallest``, ``random:SEED``, JSON), or limits: cost to the most that is allowed, as in
            ``{"macs": 1_000_000}``. Of the menu's subnets within the limits the best is taken: that
            of the highest score, and where none has one, of the most MACs. By default there is no
            limit.

        Raises
        ------
        ValueError
            If the architecture is not of this space.
        DeployError
            If nothing in the menu keeps the limits; the message says what comes nearest.
        """
        if wanted is None or isinstance(wanted, Mapping):
            arch = self._menu.best(wanted or {})
        elif isinstance(wanted, str):
            arch = self._menu.named(wanted) or self.space.parse(wanted)
        else:
            arch = wanted
        return self._built[arch] if arch in self._built else self._recent(arch)

    def use(
        self,
        wanted: Architecture | str | Mapping[str, float] | None = None,
        *,
        max_macs: int | None = None,
        max_params: int | None = None,
    ) -> Architecture:
        """Switch to a subnet.

        Parameters
        ----------
        wanted
            As for :meth:`subnet`.
        max_macs, max_params
            The most common limits, instead of ``wanted``.

        Returns
        -------
        Architecture
            The subnet that is now active; after an error, the previous one.

        Raises
        ------
        ValueError, DeployError
            As :meth:`subnet`.
        """
        named = {"macs": max_macs, "params": max_params}
        limits = {what: limit for what, limit in named.items() if limit is not None}
        if limits and wanted is not None:
            raise DeployError("give an architecture or a budget, not both")
        self.active = self.subnet(limits if wanted is None else wanted)  # one reference: a call
        return self.active.architecture  # sees the old subnet or the new one

    @property
    def architecture(self) -> Architecture:
        """The active subnet's architecture."""
        return self.active.architecture

    @property
    def module(self) -> nn.Module:
        """The active subnet as a plain module on views; read-only."""
        return self.active.module

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Call the active subnet."""
        return self.active(*inputs)

    def _build(self, arch: Architecture) -> Subnet:
        return Subnet(arch, self._views.module(arch), self.card)
