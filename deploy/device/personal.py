"""Personalised subnets in a node's state folder, and their export."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from superfednas.common.damage import damage_of, fits
from superfednas.common.imports import NotImportableError
from superfednas.common.words import counted
from superfednas.deploy.device.cards import make_card
from superfednas.deploy.device.runtime.card import Card
from superfednas.deploy.device.runtime.errors import DeployError, without_code
from superfednas.supernet import SearchSpace
from superfednas.supernet.norms import load_measured_state
from superfednas.wire.described import check_tensors, described_space
from superfednas.wire.personal_file import (
    PersonalFile,
    PersonalFileError,
    personal_files,
    personal_folder,
    read_personal,
)

_RATES = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class PersonalSubnet:
    """A personalised subnet.

    Parameters
    ----------
    path
        Its file.
    held
        What the file holds.
    space
        The space it belongs to.
    """

    path: Path
    held: PersonalFile
    space: SearchSpace

    @classmethod
    def open(cls, path: Path, *, trust_code: bool = False) -> "PersonalSubnet":
        """Read a file.

        Raises
        ------
        DeployError
            If it is damaged, or another version's.
        superfednas.common.trust.UntrustedCodeError
            If it names modules that nobody has trusted; ``trust_code`` trusts them.
        """
        try:
            held = read_personal(path)
        except PersonalFileError as error:
            raise DeployError(str(error)) from error
        note = held.note
        with damage_of(path, DeployError):
            try:
                space = described_space(note["space"], path, trust_code=trust_code)
            except NotImportableError as error:
                raise without_code(path, error) from None
            check_tensors(space, space.parse(note["architecture"]), held.tensors)
            found = cls(path, held, space)
            found.card()  # which needs all that is known of it
            if not fits([note["validation"] or 0.0, note["initial"], note["personalised"]], _RATES):
                raise DeployError(f"{path}: what it tells of its metric are no numbers")
        return found

    @property
    def note(self) -> dict[str, Any]:
        """The node's note about it."""
        return self.held.note

    @property
    def rows(self) -> dict[str, torch.Tensor]:
        """Some of the node's own examples, raw, to check an export on."""
        return self.held.rows

    def module(self) -> nn.Module:
        """Return the subnet, ready to run."""
        space = self.space
        module = space.build(space.parse(self.note["architecture"]))
        with damage_of(self.path, DeployError):
            load_measured_state(module, self.held.tensors)
        return module

    @property
    def said(self) -> str:
        """A description in one line."""
        card, note, metric = self.card(), self.note, self.space.task.metrics[0]
        before, after = (metric.say(note[key]) for key in ("initial", "personalised"))
        return (
            f"{self.path}: {counted(card.macs, 'MACs')}, {card.params:,} parameters; {metric.name} "
            f"on own test examples {before} before, {after} after "
            f"{note['epochs']} epochs of {note['part']}\n{note['architecture']}"
        )

    def card(self) -> Card:
        """Return what travels with an export of it."""
        space, note = self.space, self.note
        about = ("name", "part", "epochs", "initial", "personalised")
        source = {"personalised on": note["data"]} | {key: note[key] for key in about}
        return make_card(space, note["space"], space.parse(note["architecture"]), note, source)


def find_personal(
    state_dir: str | Path, arch: str = "", *, trust_code: bool = False
) -> PersonalSubnet:
    """Open a node's personalised subnet.

    Parameters
    ----------
    state_dir
        ``state-dir`` of the node config.
    arch
        Its architecture (largest, smallest, random:SEED, JSON); without it the one that was best on
        the node's validation images, of equal ones the cheapest. Either way it is one of the newest
        personalisation.
    trust_code
        Trust the modules that its files name.

    Raises
    ------
    DeployError
        If there is none, or not that one.
    """
    folder = personal_folder(state_dir)
    found = [PersonalSubnet.open(path, trust_code=trust_code) for path in personal_files(state_dir)]
    if not found:
        raise DeployError(
            f"{str(folder)!r} holds no personalised subnet: `superfednas personalise` (or "
            "personalise-run in `flwr run`) makes them where the node config has this state-dir"
        )
    if arch:
        for subnet in found:
            if subnet.space.parse(arch).to_json() == subnet.note["architecture"]:
                return subnet
        known = "; ".join(subnet.note["architecture"] for subnet in found)
        raise DeployError(f"{str(folder)!r} holds no {arch}; there are {known}")

    def rank(subnet: PersonalSubnet) -> tuple[float, int]:
        space = subnet.space
        macs = space.macs(space.parse(subnet.note["architecture"]))
        value = subnet.note["validation"]
        return -math.inf if value is None else space.task.metrics[0].sign * value, -macs

    return max(found, key=rank)
