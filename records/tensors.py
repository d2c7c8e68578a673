"""Tensors as safetensors files with a note and a checksum: checkpoints, the trained supernet."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from superfednas.common.damage import damage_of, loads
from superfednas.common.digest import checksum, digest
from superfednas.common.files import written_whole

FORMAT = 1
_NOTE = "superfednas"


class RunFolderError(ValueError):
    """An unusable run folder or checkpoint; the message names it and says why."""


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any] | str
) -> None:
    """Write tensors as safetensors, with a note (JSON values, or their text) and a checksum."""
    about = about if isinstance(about, str) else json.dumps(about)
    solid = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    note = {"about": about, "format": FORMAT, "xxh3": checksum(solid, about)}
    with written_whole(path) as part:
        # One entry: safetensors writes several in no fixed order, and equal runs should give equal
        # files.
        save_file(solid, part, {_NOTE: json.dumps(note, separators=(",", ":"))})


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Raises
    ------
    RunFolderError
        If the file is missing, truncated, foreign, of another version, or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_NOTE, "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise RunFolderError(f"{str(path)!r} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise RunFolderError(
            f"{str(path)!r} is truncated or no safetensors file: {error}"
        ) from None
    try:
        note = loads(text)
        found = note.get("format")
    except (ValueError, AttributeError):
        raise RunFolderError(f"{str(path)!r} is damaged: its note is no JSON object") from None
    if found != FORMAT:
        raise RunFolderError(
            f"{str(path)!r} is no checkpoint of this project: its format is {found!r}, "
            f"allowed is {FORMAT}"
        )
    about = str(note.get("about"))
    # Files of earlier versions have a SHA-256.
    if not (
        note.get("xxh3") == checksum(tensors, about) or note.get("sha256") == digest(tensors, about)
    ):
        raise RunFolderError(f"{str(path)!r} is damaged: its checksum does not fit its content")
    with damage_of(path, RunFolderError):
        content = loads(about)
        if not isinstance(content, dict):
            raise RunFolderError(f"{str(path)!r} is damaged: its note is no JSON object")
    return tensors, content
