"""The elastic file: a supernet and its card as one safetensors file, mapped when it is read."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from superfednas.common.files import write_whole
from superfednas.common.trust import give, references
from superfednas.deploy.device.menu import Menu
from superfednas.deploy.device.runtime.card import Card
from superfednas.deploy.device.runtime.errors import DeployError, first_line
from superfednas.deploy.device.runtime.model import SAFETENSORS_CARD
from superfednas.deploy.device.views import LINE
from superfednas.supernet import SearchSpace, load_space


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
        The file; written completely, then renamed.
    space
        The search space.
    state
        The supernet's tensors, float32, of ``space.shapes(space.largest)``.
    card
        Its ``architecture`` is the largest, its ``menu`` the subnets to switch between.
    overwrite
        Replace an existing file.

    Raises
    ------
    DeployError
        If the file exists or cannot be written, the norm is ``batch``, or space, tensors and card
        do not fit.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise DeployError(f"{path} exists already: name another, or set overwrite")
    give(references(card.space))  # this process may read what it has written
    options = dict(card.space)
    if _identity(space) != _identity(load_space(options.pop("space"), **options)):
        raise DeployError(f"the card's space {dict(card.space)} is not the one of the weights")
    check_elastic(space, state, card)
    try:
        write_whole(path, _lay_out(state, card.to_json()))
    except OSError as error:
        raise DeployError(f"{path} cannot be written: {error}") from error


def read_elastic(path: str | Path) -> tuple[Card, dict[str, torch.Tensor]]:
    """Map what :func:`write_elastic` wrote: its card, and its tensors by name.

    Raises
    ------
    DeployError
        If the file is missing, truncated, or has no card of this project.
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
    return Card.from_json(note, str(path)), state


def _identity(space: SearchSpace) -> tuple[Any, ...]:
    return type(space), tuple(sorted(space.task.options.items())), space.norm


def check_elastic(space: SearchSpace, state: Mapping[str, torch.Tensor], card: Card) -> Menu:
    """Check tensors and card against the space, and return the menu.

    Raises
    ------
    DeployError
        If they do not match.
    """
    if space.norm == "batch":
        raise DeployError(
            "norm = 'batch': its statistics belong to one subnet, so a file of many cannot hold "
            "them; export the subnet instead"
        )
    if space.parse(card.architecture) != space.largest:
        raise DeployError("the card's architecture is one subnet, not the largest")
    card.check_inputs({name: each.shape for name, each in space.task.inputs.items()}, "the file")
    told, answer = card.outputs[card.output].shape, space.task.answer
    if told != answer:
        raise DeployError(f"the card says that networks answer {told}; they answer {answer}")
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
    return Menu(space, card.menu)


def _lay_out(state: Mapping[str, torch.Tensor], note: str) -> bytes:
    """Return a safetensors file with tensors aligned to 64 bytes, as far as the format allows.

    It allows no gaps between tensors, but any order, and padding after the header: tensors that
    fill whole lines come first. The few bytes of the others are moved when the file is loaded.
    """
    solid = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    header: dict[str, Any] = {"__metadata__": {SAFETENSORS_CARD: note}}
    parts, end = [], 0
    for name in sorted(solid, key=lambda name: solid[name].nbytes % LINE > 0):
        start, end = end, end + solid[name].nbytes
        shape = list(solid[name].shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        parts.append(solid[name].numpy().tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % LINE)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])
