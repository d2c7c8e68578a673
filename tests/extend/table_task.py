"""A task of a user's own: three readings and a category in, the odds of a landslide out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from superfednas.data import Dataset, DataSettings, Split
from superfednas.supernet import Architecture, SearchSpace
from superfednas.tasks import Input, Metric, Output, Tally, Task

LOG_LOSS = Metric("log-loss", "less", low=0.0)
SOILS = ("sandy", "clayey", "rocky")


class Landslides(Task):
    """Whether a landslide happens, judged by the mean log-loss alone."""

    inputs: ClassVar[Any] = {
        "readings": Input((3,), scale=(0.5, 1.0, 0.1), offset=(0.0, 0.0, -1.0)),
        "soil": Input((), "int64", 0, len(SOILS) - 1, categories=SOILS),
    }
    outputs: ClassVar[Any] = {"logit": Output((1,), ("landslide",))}
    metrics: ClassVar[Any] = (LOG_LOSS,)

    def loss(
        self, outputs: torch.Tensor, targets: Mapping[str, torch.Tensor], *, smoothing: float = 0.0
    ) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], targets["landslide"])

    def count(self, outputs: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> Tally:
        landslide = targets["landslide"]
        lost = functional.binary_cross_entropy_with_logits(
            outputs[:, 0], landslide, reduction="sum"
        )
        return Tally(len(landslide), {LOG_LOSS.name: float(lost)})


@dataclass(frozen=True)
class HiddenUnits(Architecture):
    width: int


class SoilPerceptron(nn.Module):
    """One hidden layer that sees the readings and the soil."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.readings = nn.Linear(3, width)
        self.soil = nn.Embedding(len(SOILS), width)
        self.head = nn.Linear(width, 1)

    def forward(self, readings: torch.Tensor, soil: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(torch.relu(self.readings(readings) + self.soil(soil)))
        return answer


class SoilPerceptrons(SearchSpace):
    """Ten widths, and no chain."""

    name = "perceptrons"
    architecture = HiddenUnits
    genes = (10,)

    def decode(self, choices: Sequence[int]) -> HiddenUnits:
        return HiddenUnits(4 * (1 + choices[0]))

    def module(self, arch: Architecture) -> nn.Module:
        assert isinstance(arch, HiddenUnits)
        return SoilPerceptron(arch.width)


def table(settings: DataSettings) -> Dataset:
    """Return landslides whose odds depend on all four columns."""
    generator = torch.Generator().manual_seed(0)

    def split(rows: int) -> Split:
        readings = torch.randn(rows, 3, generator=generator) * torch.tensor([2.0, 1.0, 10.0])
        soil = torch.randint(len(SOILS), (rows,), generator=generator)
        odds = readings[:, 0] * (soil - 1) + readings[:, 1] + readings[:, 2] / 10
        landslide = (torch.rand(rows, generator=generator) < torch.sigmoid(odds)).float()
        return Split({"readings": readings, "soil": soil}, {"landslide": landslide})

    return Dataset("landslides", Landslides(), split(300), split(120), split(120))
