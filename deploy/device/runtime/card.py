"""The card of an exported model: its inputs, outputs and origin."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .earlier import picture_fields
from .errors import DeployError
from .fields import Input, Output

FORMAT = 2
_KINDS: Mapping[str, type] = {
    **dict.fromkeys(("space", "source"), Mapping),
    **dict.fromkeys(("architecture", "task"), str),
    **dict.fromkeys(("macs", "params"), int),
}
_PICTURES_ONLY = 1  # the format of cards before there were other tasks


@dataclass(frozen=True)
class Card:
    """The note inside a model file.

    Parameters
    ----------
    space
        Options of :func:`superfednas.supernet.load_space`, the space's name as ``space``.
    architecture
        JSON of the subnet; of the largest in an elastic file, which holds the whole supernet.
    task
        What was learned: ``images``, or a user's own ``module:Class``. It determines how files are
        read.
    inputs
        The inputs by name, in the order of the arguments.
    outputs
        The outputs by name: one array.
    macs, params
        Of the model, for one example.
    source
        The origin of the weights: run, seed, rounds, versions; for human readers only.
    menu
        Elastic files only: subnets to switch between, each a mapping with ``architecture`` (JSON),
        its costs by name (``macs`` and ``params`` at least) and, where they are known, ``name`` and
        ``score``.
    """

    space: Mapping[str, Any]
    architecture: str
    task: str
    inputs: Mapping[str, Input]
    outputs: Mapping[str, Output]
    macs: int
    params: int
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    menu: tuple[Mapping[str, Any], ...] = ()

    @property
    def output(self) -> str:
        """The name of the output."""
        return next(iter(self.outputs))

    def to_json(self) -> str:
        """Return the card as one line of JSON, with the version of this format."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, ensure_ascii=False)

    def check_inputs(self, read: Mapping[str, Sequence[object]], where: str) -> None:
        """Check that the network reads arrays of the shapes that are said here.

        Parameters
        ----------
        read
            Shapes by name, without the batch, as the network itself has them.
        where
            The file, for the error.

        Raises
        ------
        DeployError
            If it reads others.
        """
        told = {name: each.shape for name, each in self.inputs.items()}
        found = {name: tuple(shape) for name, shape in read.items()}
        if told != found:
            raise DeployError(f"{where}: its card says that it reads {told}; it reads {found}")

    @classmethod
    def from_json(cls, text: str, where: str) -> "Card":
        """Read what :meth:`to_json` wrote, or an earlier version of it.

        Parameters
        ----------
        text
            The JSON.
        where
            The file, for the error.

        Raises
        ------
        DeployError
            For a later format, a damaged card, or something that is not a card.
        """
        try:
            fields = json.loads(text)
            version = fields.pop("format")
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
            raise DeployError(f"{where}: there is no card of this project in it") from None
        if version not in (_PICTURES_ONLY, FORMAT):
            raise DeployError(f"{where}: its card has format {version!r:.60}; {FORMAT} is read")
        try:
            if version == _PICTURES_ONLY:
                found = picture_fields(fields)
                for key in ("classes", "mean", "std"):
                    del fields[key]
                fields |= found
            else:
                for key, kind in (("inputs", Input), ("outputs", Output)):
                    fields[key] = {name: kind.read(each) for name, each in fields[key].items()}
            fields["menu"] = tuple(fields["menu"])
            card = cls(**fields)
            card._check()
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise DeployError(f"{where}: its card is damaged ({error})") from None
        return card

    def _check(self) -> None:
        if not self.inputs or len(self.outputs) != 1:
            raise ValueError("a network has inputs and one output")
        for name, kind in _KINDS.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} is {getattr(self, name)!r:.60}")
        if not all(isinstance(entry, Mapping) for entry in self.menu):
            raise TypeError("an entry of its menu is none")
