"""Hashes of a set of tensors: they identify weights and images and detect damaged files."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import xxhash


def digest(tensors: Mapping[str, torch.Tensor], note: str = "") -> str:
    """Hash names, dtypes, shapes and values (and a note) to 64 hexadecimal digits (SHA-256).

    The order of the tensors does not matter.
    """
    return _hash(hashlib.sha256(), tensors, note)


def checksum(tensors: Mapping[str, torch.Tensor], note: str = "") -> str:
    """Hash the same content to 32 digits (XXH3), at the speed of memory.

    It detects damage, not forgery.
    """
    return _hash(xxhash.xxh3_128(), tensors, note)


def _hash(found: Any, tensors: Mapping[str, torch.Tensor], note: str) -> str:
    found.update(note.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return str(found.hexdigest())
