"""One hash for a set of tensors: which weights, which images."""

import hashlib
from collections.abc import Mapping

import torch


def digest(tensors: Mapping[str, torch.Tensor], note: str = "") -> str:
    """Hash names, dtypes, shapes and values (and a note) to 64 hexadecimal digits.

    The order of the tensors does not count.
    """
    found = hashlib.sha256(note.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
