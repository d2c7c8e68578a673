"""The file of a personalised subnet: a node writes it, an export on that node reads it.

``STATE_DIR/personal/NAME/HASH.safetensors`` holds all that an export needs: the weights, the
statistics of static batch norm, a note, and a few of the node's own examples, on which an exported
file is checked. Nothing of it is sent.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from superfednas.common.damage import DAMAGE, loads
from superfednas.common.files import write_whole
from superfednas.supernet.architecture import Architecture
from superfednas.supernet.norms import measured_state

FORMAT = 2
_PICTURES_ONLY = 1  # the format before there were other tasks
_FOLDER = "personal"
_NOTE = "personal-subnet"
_ROWS = "rows."


class PersonalFileError(ValueError):
    """An unusable file or folder; one sentence names it and says why."""


@dataclass(frozen=True, eq=False)
class PersonalFile:
    """The content of a file.

    Parameters
    ----------
    note
        What the node wrote of it: space, architecture, its task as
        :func:`superfednas.tasks.describe.describe` gives it (of an earlier file class names and
        pixel constants), how good it is, how it was made.
    tensors
        The subnet's tensors by name, as ``superfednas.supernet.norms.measured_state`` gives them.
    rows
        Some of the node's own examples, raw: one tensor an input.
    """

    note: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    rows: dict[str, torch.Tensor]


def write_personal(
    state_dir: Path,
    name: str,
    arch: Architecture,
    module: nn.Module,
    note: Mapping[str, Any],
    rows: Mapping[str, torch.Tensor],
) -> Path:
    """Write a personalised subnet, ready to run, into a node's state folder.

    Parameters
    ----------
    state_dir
        Of the node config.
    name
        The server's name for everything that one personalisation produces.
    arch, module
        The subnet, scored last on the node's data.
    note
        What is known of it, as JSON values.
    rows
        The node's examples that stay beside it.

    Raises
    ------
    PersonalFileError
        If the folder cannot be written to.
    """
    tensors = measured_state(module) | {_ROWS + key: tensor for key, tensor in rows.items()}
    solid = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    about = {**note, "format": FORMAT, "name": name, "architecture": arch.to_json()}
    # The name comes from the server: it must not lead out of the folder.
    folder = state_dir.expanduser() / _FOLDER / re.sub(r"[^A-Za-z0-9_-]", "_", name)
    digest = hashlib.sha256(arch.to_json().encode()).hexdigest()[:12]
    path = folder / f"{digest}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, save(solid, {_NOTE: json.dumps(about)}), mode=0o600)
    except OSError as error:
        raise PersonalFileError(
            f"state-dir = {str(state_dir)!r} cannot be written to: {error}"
        ) from error
    return path


def read_personal(path: Path) -> PersonalFile:
    """Read a file.

    Raises
    ------
    PersonalFileError
        If it is damaged, or another version's.
    """
    try:
        with safe_open(path, "pt") as file:
            note = loads((file.metadata() or {})[_NOTE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        version = note["format"]
        if version == _PICTURES_ONLY:
            tensors[f"{_ROWS}images"] = tensors.pop("images")
    except (SafetensorError, *DAMAGE) as error:
        raise PersonalFileError(f"{path}: it holds no personalised subnet ({error})") from None
    if version not in (_PICTURES_ONLY, FORMAT):
        raise PersonalFileError(f"{path}: it has format {version!r:.60}; {FORMAT} is read")
    rows = {key: tensors.pop(key) for key in list(tensors) if key.startswith(_ROWS)}
    return PersonalFile(
        note, tensors, {key.removeprefix(_ROWS): tensor for key, tensor in rows.items()}
    )


def personal_folder(state_dir: str | Path) -> Path:
    """Return the folder, within a node's state folder, that holds them all."""
    return Path(state_dir).expanduser() / _FOLDER


def personal_files(state_dir: str | Path) -> list[Path]:
    """Return the files of the newest personalisation, the newest file last."""
    every = sorted(personal_folder(state_dir).glob("*/*.safetensors"), key=_changed)
    return [path for path in every if path.parent == every[-1].parent]


def _changed(path: Path) -> float:
    return path.stat().st_mtime
