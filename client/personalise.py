"""Personalisation: a subnet fine-tuned on the node's own images, which stays on the node.

The initial metric is that of the subnet as received; the personalised metric is that after some
epochs on the node's training images. Both are measured on its own test images (Wang et al., arXiv
1910.10252; Kim and Yun, §4.1).
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from superfednas.client.training import train
from superfednas.data import Dataset
from superfednas.nas.score.tallies import score
from superfednas.supernet import Architecture, SearchSpace
from superfednas.tasks.describe import describe
from superfednas.wire.order import FineTuning, LocalTraining, SpaceOptions
from superfednas.wire.personal_file import write_personal

_KEPT_ROWS = 16


@dataclass(frozen=True)
class Personal:
    """The result of fine-tuning, on the node's own images.

    ``validation`` is the personalised metric on validation images, by which one of several
    subnets may be chosen; None if there are none.
    """

    initial: float
    personalised: float
    validation: float | None


def personalise(
    module: nn.Module,
    space: SearchSpace,
    data: Dataset,
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
        The subnet with its own weights, on its device.
    space
        Determines which parameters belong to the classifier.
    data
        The node's examples.
    local
        The run's local training: batch size, decay, clipping and smoothing apply here too, momentum
        and FedProx do not (Kim and Yun, appendix F.5).
    tuning
        What is trained, for how long, and at which learning rate.
    seed, name
        Identify the random streams.

    Raises
    ------
    ValueError
        If the node has no test images, or the subnet has no parameters of that part.
    """
    if not len(data.test):
        raise ValueError("this client has no test images")
    metric = data.task.metrics[0]
    before = score(module, data, data.test).value(metric)
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
    train(module, data, recipe, seed=seed, round=0, name=name)
    module.requires_grad_(True)
    validation = None
    if len(data.validation):
        validation = score(module, data, data.validation).value(metric)
    after = score(module, data, data.test).value(metric)
    return Personal(before, after, validation)


def _part(space: SearchSpace, parameter: str) -> str:
    return "head" if space.in_head(parameter) else "body"


@dataclass(frozen=True)
class Kept:
    """What stays on a node with the weights: which subnet it is, and how it was personalised.

    ``name`` is the server's name for everything that one personalisation produces.
    """

    name: str
    options: SpaceOptions
    arch: Architecture
    tuning: FineTuning
    found: Personal


def keep(state_dir: Path, module: nn.Module, data: Dataset, about: Kept) -> Path:
    """Write a personalised subnet, ready to run, into a node's state folder.

    Parameters
    ----------
    state_dir
        Of the node config.
    module
        The subnet, scored last on the node's images.
    data
        The node's images.
    about
        What it is.

    Raises
    ------
    superfednas.wire.personal_file.PersonalFileError
        If the folder cannot be written to.
    """
    some = data.validation if len(data.validation) else data.train
    note = {
        "space": dataclasses.asdict(about.options),
        **describe(data.task),
        "data": data.name,
        "part": about.tuning.fine_tune,
        "epochs": about.tuning.fine_tune_epochs,
        **dataclasses.asdict(about.found),
    }
    rows = some.first(_KEPT_ROWS).fields
    return write_personal(state_dir, about.name, about.arch, module, note, rows)
