"""Personalised subnets in a node's state folder, as :mod:`client.personal` leaves them there."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from client.personal import FOLDER, FORMAT, IMAGES, NOTE
from deploy.card import Card, DeployError
from supernet import SearchSpace, State, load_space
from supernet.norms import StaticBatchNorm2d


@dataclass(frozen=True, eq=False)
class PersonalSubnet:
    """A personalised subnet.

    Parameters
    ----------
    path
        Its file.
    note
        What the node wrote of it: space, architecture, classes, accuracies, how it was made.
    state
        Its tensors by name, some of the node's images among them.
    """

    path: Path
    note: dict[str, Any]
    state: State

    @classmethod
    def open(cls, path: Path) -> "PersonalSubnet":
        """Read a file.

        Raises
        ------
        DeployError
            Where it is damaged, or another version's.
        """
        try:
            with safe_open(path, "pt") as file:
                note = json.loads((file.metadata() or {})[NOTE])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            version = note["format"]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise DeployError(f"{path}: it holds no personalised subnet ({error})") from None
        if version != FORMAT:
            raise DeployError(f"{path}: it has format {version!r}; {FORMAT} is read")
        return cls(path, note, state)

    @property
    def space(self) -> SearchSpace:
        """The space that it is from."""
        options = dict(self.note["space"])
        return load_space(options.pop("space"), **options)

    @property
    def images(self) -> torch.Tensor:
        """Some of the node's own images, uint8 (N, C, H, W), to check an export on."""
        return self.state[IMAGES]

    def module(self) -> nn.Module:
        """Return the network, ready to run."""
        space = self.space
        module = space.build(space.parse(self.note["architecture"]))
        module.load_state_dict({name: self.state[name] for name in module.state_dict()})
        for name, layer in module.named_modules():
            if isinstance(layer, StaticBatchNorm2d):
                layer.mean, layer.variance = (self.state[f"{name}.{k}"] for k in _STATISTICS)
        return module.eval()

    @property
    def said(self) -> str:
        """What it is, in one line."""
        card, note = self.card(), self.note
        return (
            f"{self.path}: {card.macs / 1e6:,.2f} MMACs, {card.params:,} parameters; own test "
            f"images {note['initial']:.2%} before, {note['personalised']:.2%} after "
            f"{note['epochs']} epochs of {note['part']}\n{note['architecture']}"
        )

    def card(self) -> Card:
        """Return what travels with an export of it."""
        space, note = self.space, self.note
        arch = space.parse(note["architecture"])
        about = ("name", "part", "epochs", "initial", "personalised")
        return Card(
            space=note["space"],
            architecture=note["architecture"],
            classes=tuple(note["classes"]),
            mean=tuple(note["mean"]),
            std=tuple(note["std"]),
            macs=space.macs(arch),
            params=space.params(arch),
            source={"personalised on": note["data"]} | {key: note[key] for key in about},
        )


_STATISTICS = ("mean", "variance")


def find_personal(state_dir: str | Path, arch: str = "") -> PersonalSubnet:
    """Open a node's personalised subnet.

    Parameters
    ----------
    state_dir
        ``state-dir`` of the node config.
    arch
        Its architecture (largest, smallest, random:SEED, JSON); without it the one that was best on
        the node's validation images, of equal ones the cheapest. Either way it is one of the newest
        personalisation.

    Raises
    ------
    DeployError
        Where there is none, or not that one.
    """
    folder = Path(state_dir).expanduser() / FOLDER
    files = sorted(folder.glob("*/*.safetensors"), key=lambda path: path.stat().st_mtime)
    found = [PersonalSubnet.open(path) for path in files if path.parent == files[-1].parent]
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
        return subnet.note["validation"] or 0.0, -macs

    return max(found, key=rank)
