"""The card of an exported subnet, written from its task and the origin of its weights."""

from collections.abc import Mapping
from typing import Any

from superfednas.deploy.device.runtime.card import Card
from superfednas.deploy.device.runtime.earlier import picture_fields
from superfednas.deploy.device.runtime.fields import Input, Output
from superfednas.records.trained import Trained
from superfednas.supernet import Architecture, SearchSpace
from superfednas.tasks.describe import describe


def make_card(
    space: SearchSpace,
    options: Mapping[str, Any],
    arch: Architecture,
    described: Mapping[str, Any],
    source: Mapping[str, Any],
) -> Card:
    """Return the card of a subnet.

    Parameters
    ----------
    space, options
        The space, and the options of ``load_space`` that recreate it.
    arch
        The subnet.
    described
        The data's task as :func:`superfednas.tasks.describe.describe` gives it (that of the space
        knows no constants of the data), or an earlier note of pictures.
    source
        The origin of the weights.
    """
    if "inputs" in described:
        fields: dict[str, Any] = {
            "task": described["task"],
            "inputs": {name: Input.read(each) for name, each in described["inputs"].items()},
            "outputs": {name: Output.read(each) for name, each in described["outputs"].items()},
        }
    else:
        fields = picture_fields(described)
    return Card(
        space=options,
        architecture=arch.to_json(),
        macs=space.macs(arch),
        params=space.params(arch),
        source=source,
        **fields,
    )


def run_card(trained: Trained, arch: Architecture) -> Card:
    """Return the card of a subnet of a run."""
    data = trained.data
    source = {
        "run": trained.run.path.name,
        "weights": trained.weights,
        "rounds": trained.rounds,
        "seed": trained.seed,
        "data": data.name,
    }
    return make_card(trained.space, trained.about_space(), arch, describe(data.task), source)
