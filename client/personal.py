"""Personalisation: a subnet fine-tuned on the node's own images, which stays on the node.

The initial accuracy is that of the subnet as received, the personalised one that after some epochs
on the node's training images; both on its own test images (Wang et al., arXiv 1910.10252; Kim and
Yun, §4.1).
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from client.training import train
from data import Augment, Dataset
from nas.accuracy import score
from supernet import Architecture, SearchSpace
from supernet.files import write_whole
from supernet.norms import StaticBatchNorm2d
from supernet.wire import FineTuning, LocalTraining, SpaceOptions

FOLDER = "personal"
NOTE = "personal-subnet"
FORMAT = 1
IMAGES = "images"
_KEPT_IMAGES = 16


@dataclass(frozen=True)
class Personal:
    """What fine-tuning did, on the node's own images.

    ``validation`` is the personalised accuracy on validation images: what may choose among several
    subnets. None where there are none.
    """

    initial: float
    personalised: float
    validation: float | None


def personalise(
    module: nn.Module,
    space: SearchSpace,
    data: Dataset,
    augment: Augment,
    local: LocalTraining,
    tuning: FineTuning,
    *,
    seed: int,
    name: str,
) -> Personal:
    """Fine-tune a subnet in place.

    Parameters
    ----------
    module
        The subnet with weights of its own, on its device.
    space
        Says which parameters are the classifier's.
    data, augment
        The node's images.
    local
        The run's local training: batch size, decay, clipping and smoothing count here too, its
        momentum and FedProx do not (Kim and Yun, appendix F.5).
    tuning
        What is trained, for how long, and at which learning rate.
    seed, name
        Identify the random streams.

    Raises
    ------
    ValueError
        Where the node has no test images, or the network no parameters of that part.
    """
    if not len(data.test):
        raise ValueError("this client has no test images")
    before = score(module, data.test, data.mean, data.std, calibration=data.train)
    for key, parameter in module.named_parameters():
        parameter.requires_grad = tuning.fine_tune in ("all", _part(space, key))
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError(f"fine-tune = {tuning.fine_tune!r}: the network has no such part")
    recipe = dataclasses.replace(
        local,
        lr=tuning.fine_tune_lr or local.lr,
        momentum=0.0,
        proximal=0.0,
        local_epochs=tuning.fine_tune_epochs,
        local_steps=0,
    )
    train(module, data, augment, recipe, seed=seed, round=0, name=name)
    module.requires_grad_(True)
    validation = None
    if len(data.validation):
        found = score(module, data.validation, data.mean, data.std, calibration=data.train)
        validation = found.accuracy
    after = score(module, data.test, data.mean, data.std, calibration=data.train)
    return Personal(before.accuracy, after.accuracy, validation)


def _part(space: SearchSpace, parameter: str) -> str:
    return "head" if space.in_head(parameter) else "body"


@dataclass(frozen=True)
class Kept:
    """What stays on a node, beside the weights: which network, and how it was made the node's own.

    ``name`` is the server's for all that one personalisation makes.
    """

    name: str
    options: SpaceOptions
    arch: Architecture
    tuning: FineTuning
    found: Personal


def keep(state_dir: Path, module: nn.Module, data: Dataset, about: Kept) -> Path:
    """Write a personalised subnet, ready to run, into a node's state folder.

    The file holds all that an export needs: weights, the statistics of static batch norm, class
    names and pixel constants, and a few of the node's own images, on which an exported file is
    checked. Nothing of it is sent.

    Parameters
    ----------
    state_dir
        Of the node config. The file is ``personal/<name>/<architecture's hash>.safetensors`` in it.
    module
        The subnet, scored last on the node's images.
    data
        The node's images.
    about
        What it is.

    Raises
    ------
    ValueError
        Where the folder cannot be written to.
    """
    tensors = {key: tensor.detach().cpu() for key, tensor in module.state_dict().items()}
    for key, layer in module.named_modules():
        if isinstance(layer, StaticBatchNorm2d) and layer.mean is not None:
            assert layer.variance is not None
            tensors |= {f"{key}.mean": layer.mean.cpu(), f"{key}.variance": layer.variance.cpu()}
    some = data.validation if len(data.validation) else data.train
    tensors[IMAGES] = some.images[:_KEPT_IMAGES]
    note: dict[str, Any] = {
        "format": FORMAT,
        "name": about.name,
        "space": dataclasses.asdict(about.options),
        "architecture": about.arch.to_json(),
        "classes": data.classes,
        "mean": data.mean,
        "std": data.std,
        "data": data.name,
        "part": about.tuning.fine_tune,
        "epochs": about.tuning.fine_tune_epochs,
        **dataclasses.asdict(about.found),
    }
    # The name is the server's word: it must not lead out of the folder.
    name = re.sub(r"[^A-Za-z0-9_-]", "_", about.name)
    path = state_dir.expanduser() / FOLDER / name / f"{_short(about.arch)}.safetensors"
    solid = {key: tensor.contiguous() for key, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, save(solid, {NOTE: json.dumps(note)}), mode=0o600)
    except OSError as error:
        raise ValueError(f"state-dir = {str(state_dir)!r} cannot be written to: {error}") from error
    return path


def _short(arch: Architecture) -> str:
    return hashlib.sha256(arch.to_json().encode()).hexdigest()[:12]
