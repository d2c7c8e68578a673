"""Ladders, nesting and scores, by law and by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from superfednas.data import Dataset, Split
from superfednas.nas.score.tallies import prepare, score, subnet_module
from superfednas.supernet.ladder import ladder
from superfednas.supernet.norms import StaticBatchNorm2d
from superfednas.tasks import Tally
from superfednas.tasks.images import LOSS
from tests.support.pictures import accuracy, normalise, picture_set, pictured
from tests.support.strategies import architectures, noisy_state, norms, small_split, space


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# Ladders


@pytest.mark.parametrize("name", ["resnet-tiny", "resnet10-26"])
@pytest.mark.parametrize("rungs", [2, 3, 5])
def test_ladder_climbs_evenly(name: str, rungs: int) -> None:
    of = space(name)
    found = ladder(of, rungs)
    assert len(found) == rungs + 1 and list(found)[-1] == "random:0"
    assert found["smallest"] == of.smallest and found["largest"] == of.largest
    assert found["random:0"] == of.parse("random:0")
    costs = [of.macs(arch) for arch in list(found.values())[:-1]]
    assert costs == sorted(costs)
    for arch, even in zip(costs, np.linspace(costs[0], costs[-1], rungs), strict=True):
        assert abs(arch - even) < 0.05 * (costs[-1] - costs[0])
    assert ladder(of, rungs) == found


def test_ladder_names() -> None:
    assert list(ladder(space())) == ["smallest", "25%", "50%", "75%", "largest", "random:0"]
    assert list(ladder(space(), 2)) == ["smallest", "largest", "random:0"]


def test_ladder_takes_the_nearest_of_its_draws() -> None:
    of = space()
    rng = np.random.default_rng(20_301)
    draws = [of.sample(rng) for _ in range(512)]
    middle = (of.macs(of.smallest) + of.macs(of.largest)) / 2
    nearest = min(draws, key=lambda arch: abs(of.macs(arch) - middle))
    assert ladder(of, 3)["50%"] == nearest


@pytest.mark.parametrize("name", ["resnet-tiny", "resnet10-26"])
def test_rungs_of_a_short_ladder_are_different_networks(name: str) -> None:
    assert len(set(list(ladder(space(name), 9).values())[:-1])) == 9


def test_longest_ladder_of_a_run() -> None:
    assert len(ladder(space(), 50)) == 50 + 1


@pytest.mark.parametrize("rungs", [1, 0, -3])
def test_ladder_needs_two_rungs(rungs: int) -> None:
    with pytest.raises(ValueError, match=f"ladder = {rungs}: must be at least 2"):
        ladder(space(), rungs)


# Scores


class Pixels(nn.Module):
    """Logits (0, weight · first pixel): one number to know."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.modes: list[bool] = []
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.modes.append(self.training)
        self.sizes.append(len(images))
        second = self.weight * images[:, 0, 0, 0]
        return torch.stack([torch.zeros_like(second), second], dim=1)


def pixels(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).reshape(-1, 1, 1, 1)


def examples(split: Split, train: Split | None = None, mean: float = 0.5, std: float = 0.25) -> Any:
    """Give a data set whose validation rows are to be scored."""
    none = split.first(0)
    return picture_set("s", train or split, split, none, ("a", "b", "c"), (mean,), (std,))


def scored(module: nn.Module, split: Split, **options: Any) -> Tally:
    data = examples(split, **options)
    return score(module, data, data.validation)


def test_score_by_hand() -> None:
    # (pixel / 255 - .2) / .4 is -.5, 2 and 2; the second logit is that, the first 0.
    split = pictured(pixels(0, 255, 255), torch.tensor([0, 1, 0]))
    module = Pixels(1.0).train()
    found = scored(module, split, mean=0.2, std=0.4)
    losses = [
        math.log(1 + math.exp(-0.5)),  # right, for 0 > -.5
        math.log(1 + math.exp(-2.0)),  # right
        math.log(1 + math.exp(2.0)),  # wrong
    ]
    assert accuracy(found) == 2 / 3 and found.examples == 3
    assert found.value(LOSS) == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert module.modes == [False] and not module.training


def test_score_counts_every_image_once_over_batches() -> None:
    labels = torch.arange(1203) % 2
    split = pictured(pixels(*(255 * int(k % 3 == 0) for k in range(1203))), labels)
    module = Pixels(1.0)
    found = scored(module, split, std=0.5)
    right = sum((k % 3 == 0) == (k % 2 == 1) for k in range(1203))
    assert accuracy(found) == right / 1203 and found.examples == 1203
    assert sum(module.sizes) == 1203 and len(module.sizes) > 1
    with torch.no_grad():
        logits = Pixels(1.0)(normalise(split.fields["images"], (0.5,), (0.5,)))
    assert found.value(LOSS) == pytest.approx(
        float(functional.cross_entropy(logits, labels)), rel=1e-6
    )


def test_score_leaves_weights_and_gradients() -> None:
    module = Pixels(1.5)
    scored(module, pictured(pixels(1, 2), torch.tensor([0, 1])), mean=0.0, std=1.0)
    assert module.weight.item() == 1.5 and module.weight.grad is None
    assert module.weight.requires_grad


def test_an_empty_split_has_no_score() -> None:
    data = examples(pictured(pixels(1, 2), torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="without examples cannot be scored"):
        score(Pixels(1.0), data, data.test)


@settings(max_examples=10, deadline=None)
@given(data=st.data(), norm=norms)
def test_score_of_a_subnet_agrees_image_by_image(data: st.DataObject, norm: str) -> None:
    of = space(norm=norm)
    arch, split, train = data.draw(architectures(of)), small_split(7), small_split(12, 1)
    module = subnet_module(of, noisy_state(of), arch)
    found = scored(module, split, train=train)
    right, loss = 0, 0.0
    with torch.no_grad():
        for image, label in zip(
            normalise(split.fields["images"], (0.5,), (0.25,)), split.targets["labels"], strict=True
        ):
            logits = module(image[None])[0].double()
            right += int(logits.argmax()) == int(label)
            loss -= float(logits.log_softmax(dim=0)[label])
    assert (accuracy(found), found.examples) == (right / 7, 7)
    assert found.value(LOSS) == pytest.approx(loss / 7, rel=1e-5)


def test_a_subnet_module_is_a_copy() -> None:
    of = space()
    state = of.init(0)
    module = subnet_module(of, state, of.largest)
    assert all(torch.equal(module.state_dict()[name], state[name]) for name in state)
    with torch.no_grad():
        next(module.parameters()).zero_()
    assert torch.equal(state["stem.conv.weight"], of.init(0)["stem.conv.weight"])


# Calibration


class Untouchable:
    """Training rows that must not be read."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"calibration images were read: {name}")

    def __len__(self) -> int:
        raise AssertionError("calibration images were counted")


def with_train(data: Dataset, train: Any) -> Dataset:
    object.__setattr__(data, "train", train)
    return data


@pytest.mark.parametrize("norm", ["none", "group"])
def test_calibration_is_for_batch_norm_alone(norm: str) -> None:
    of = space(norm=norm)
    module = subnet_module(of, of.init(0), of.smallest)
    data = with_train(examples(small_split(5)), Untouchable())
    assert score(module, data, data.validation) == scored(module, small_split(5))


def test_batch_norm_takes_its_statistics_from_training_rows() -> None:
    of = space(norm="batch")
    module = subnet_module(of, noisy_state(of), of.smallest)
    first, second = (
        scored(module, small_split(20), train=images)
        for images in (small_split(9, 1), small_split(9, 2))
    )
    assert first.value(LOSS) != second.value(LOSS)
    again = scored(module, small_split(20), train=small_split(9, 1))
    assert again == first
    part = small_split(20).take(torch.arange(4))
    alone = scored(module, part, train=small_split(9, 1))
    assert alone.examples == 4  # the scored images do not enter the statistics:
    stem = module.get_submodule("stem.norm")
    assert isinstance(stem, StaticBatchNorm2d)
    images = normalise(small_split(9, 1).fields["images"], (0.5,), (0.25,))
    with torch.no_grad():
        features = module.get_submodule("stem.conv")(images)
    assert stem.mean is not None
    torch.testing.assert_close(stem.mean, features.mean(dim=(0, 2, 3)))


def test_batch_norm_without_training_rows() -> None:
    of = space(norm="batch")
    module = subnet_module(of, of.init(0), of.smallest)
    data = with_train(examples(small_split(5)), small_split(0))
    with pytest.raises(ValueError, match="needs training examples for its calibration"):
        score(module, data, data.validation)
    with pytest.raises(ValueError, match="needs training examples for its calibration"):
        prepare(module, None)
