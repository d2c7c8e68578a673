"""What travels with an exported network: how to feed it, what it answers, where it is from."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMAT = 1


class DeployError(ValueError):
    """A model file or picture that cannot be used; one sentence names it and says why."""


@dataclass(frozen=True)
class Card:
    """The note inside a model file.

    Parameters
    ----------
    space
        Options of :func:`supernet.load_space`: ``space``, ``norm``, ``num_classes``,
        ``in_channels``, ``image_size``.
    architecture
        JSON of the subnet; of the largest in an elastic file, which holds the whole supernet.
    classes
        One name a class; output ``k`` is the logit of ``classes[k]``.
    mean, std
        One number a channel: the network reads ``(pixel / 255 - mean) / std``, float32 of shape
        (N, in_channels, image_size, image_size).
    macs, params
        Of the network, for one image.
    source
        Where the weights are from: run, seed, rounds, versions. For people, read by nobody else.
    menu
        Elastic files only: subnets to switch between, each a mapping with ``architecture`` (JSON),
        ``macs``, ``params`` and, where it is known, ``score``.
    """

    space: Mapping[str, Any]
    architecture: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    macs: int
    params: int
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    menu: tuple[Mapping[str, Any], ...] = ()

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return int(self.space["image_size"])

    @property
    def in_channels(self) -> int:
        """Channels of the images: 1 is grey, 3 is RGB."""
        return int(self.space["in_channels"])

    def to_json(self) -> str:
        """Return the card as one line of JSON, with the version of this format."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: str) -> "Card":
        """Read what :meth:`to_json` wrote.

        Parameters
        ----------
        text
            The JSON.
        where
            The file, for the error.

        Raises
        ------
        DeployError
            For another format version, or what is no card or a damaged one.
        """
        try:
            fields = json.loads(text)
            version = fields.pop("format")
        except (ValueError, AttributeError, KeyError, TypeError):
            raise DeployError(f"{where}: there is no card of this project in it") from None
        if version != FORMAT:
            raise DeployError(f"{where}: its card has format {version!r}; {FORMAT} is read")
        try:
            for key in ("classes", "mean", "std", "menu"):
                fields[key] = tuple(fields[key])  # JSON has lists only
            card = cls(**fields)
            if not len(card.mean) == len(card.std) == card.in_channels:
                raise ValueError(f"mean and std need {card.in_channels} numbers, one a channel")
            if card.image_size < 1:
                raise ValueError(f"image_size is {card.image_size}")
        except (ValueError, KeyError, TypeError) as error:
            raise DeployError(f"{where}: its card is damaged ({error})") from None
        return card
