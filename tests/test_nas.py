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

from data import Split, normalise
from nas.accuracy import Score, score, subnet_module
from nas.ladder import ladder, nested
from supernet.norms import StaticBatchNorm2d
from tests.strategies import architectures, noisy_state, norms, small_split, space


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


# Nesting


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_nesting_is_an_order(data: st.DataObject) -> None:
    of = space()
    a, b, c = (of.shapes(data.draw(architectures(of))) for _ in range(3))
    assert nested(a, a)
    assert nested(of.shapes(of.smallest), a) and nested(a, of.shapes(of.largest))
    assert (nested(a, b) and nested(b, a)) == (a == b)
    if nested(a, b) and nested(b, c):
        assert nested(a, c)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_nesting_is_sets_of_elements(data: st.DataObject) -> None:
    genes = st.sampled_from([0, 1, 2])
    shapes = st.dictionaries(st.sampled_from("ab"), st.tuples(genes, genes).map(tuple))
    inner, outer = data.draw(shapes), data.draw(shapes)
    expected = all(
        name in outer and all(a <= b for a, b in zip(shape, outer[name], strict=True))
        for name, shape in inner.items()
    )
    assert nested(inner, outer) == expected


def test_nesting_by_hand() -> None:
    assert nested({"a": (1, 2)}, {"a": (2, 2), "b": (1,)})
    assert not nested({"a": (2, 3)}, {"a": (2, 2)})
    assert not nested({"a": (1,), "b": (1,)}, {"a": (1,)})
    assert nested({}, {})


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


def test_score_by_hand() -> None:
    # (pixel / 255 - .2) / .4 is -.5, 2 and 2; the second logit is that, the first 0.
    split = Split(pixels(0, 255, 255), torch.tensor([0, 1, 0]))
    module = Pixels(1.0).train()
    found = score(module, split, (0.2,), (0.4,))
    losses = [
        math.log(1 + math.exp(-0.5)),  # right, for 0 > -.5
        math.log(1 + math.exp(-2.0)),  # right
        math.log(1 + math.exp(2.0)),  # wrong
    ]
    assert found.accuracy == 2 / 3 and found.examples == 3
    assert found.loss == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert module.modes == [False] and not module.training


def test_score_counts_every_image_once_over_batches() -> None:
    labels = torch.arange(1203) % 2
    split = Split(pixels(*(255 * int(k % 3 == 0) for k in range(1203))), labels)
    module = Pixels(1.0)
    found = score(module, split, (0.5,), (0.5,))
    right = sum((k % 3 == 0) == (k % 2 == 1) for k in range(1203))
    assert found.accuracy == right / 1203 and found.examples == 1203
    assert sum(module.sizes) == 1203 and len(module.sizes) > 1
    with torch.no_grad():
        logits = Pixels(1.0)(normalise(split.images, (0.5,), (0.5,)))
    assert found.loss == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-6)


def test_score_leaves_weights_and_gradients() -> None:
    module = Pixels(1.5)
    score(module, Split(pixels(1, 2), torch.tensor([0, 1])), (0.0,), (1.0,))
    assert module.weight.item() == 1.5 and module.weight.grad is None
    assert module.weight.requires_grad


def test_an_empty_split_has_no_score() -> None:
    empty = Split(torch.zeros(0, 1, 1, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="without images cannot be scored"):
        score(Pixels(1.0), empty, (0.0,), (1.0,))


@settings(max_examples=10, deadline=None)
@given(data=st.data(), norm=norms)
def test_score_of_a_subnet_agrees_image_by_image(data: st.DataObject, norm: str) -> None:
    of = space(norm=norm)
    arch, split, train = data.draw(architectures(of)), small_split(7), small_split(12, 1)
    module = subnet_module(of, noisy_state(of), arch)
    found = score(module, split, (0.5,), (0.25,), calibration=train)
    right, loss = 0, 0.0
    with torch.no_grad():
        for image, label in zip(
            normalise(split.images, (0.5,), (0.25,)), split.labels, strict=True
        ):
            logits = module(image[None])[0].double()
            right += int(logits.argmax()) == int(label)
            loss -= float(logits.log_softmax(dim=0)[label])
    assert found == Score(right / 7, pytest.approx(loss / 7, rel=1e-5), 7)


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
    """A split that must not be read."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"calibration images were read: {name}")

    def __len__(self) -> int:
        raise AssertionError("calibration images were counted")


@pytest.mark.parametrize("norm", ["none", "group"])
def test_calibration_is_for_batch_norm_alone(norm: str) -> None:
    of = space(norm=norm)
    module = subnet_module(of, of.init(0), of.smallest)
    split: Any = Untouchable()
    found = score(module, small_split(5), (0.5,), (0.25,), calibration=split)
    assert found == score(module, small_split(5), (0.5,), (0.25,))


def test_batch_norm_takes_its_statistics_from_calibration() -> None:
    of = space(norm="batch")
    module = subnet_module(of, noisy_state(of), of.smallest)
    first, second = (
        score(module, small_split(20), (0.5,), (0.25,), calibration=images)
        for images in (small_split(9, 1), small_split(9, 2))
    )
    assert first.loss != second.loss
    again = score(module, small_split(20), (0.5,), (0.25,), calibration=small_split(9, 1))
    assert again == first
    part = small_split(20).take(torch.arange(4))
    alone = score(module, part, (0.5,), (0.25,), calibration=small_split(9, 1))
    assert alone.examples == 4  # the scored images do not enter the statistics:
    stem = module.get_submodule("stem.norm")
    assert isinstance(stem, StaticBatchNorm2d)
    images = normalise(small_split(9, 1).images, (0.5,), (0.25,))
    with torch.no_grad():
        features = module.get_submodule("stem.conv")(images)
    assert stem.mean is not None
    torch.testing.assert_close(stem.mean, features.mean(dim=(0, 2, 3)))


@pytest.mark.parametrize("calibration", [None, small_split(0)])
def test_batch_norm_without_calibration_images(calibration: Split | None) -> None:
    of = space(norm="batch")
    module = subnet_module(of, of.init(0), of.smallest)
    with pytest.raises(ValueError, match="needs training images for its calibration"):
        score(module, small_split(5), (0.5,), (0.25,), calibration=calibration)


@pytest.mark.parametrize("rows", [2, 499, 500, 501, 1001])
def test_any_number_of_calibration_images_from_two(rows: int) -> None:
    of = space(norm="batch")
    module = subnet_module(of, of.init(0), of.smallest)
    found = score(module, small_split(5), (0.5,), (0.25,), calibration=small_split(rows))
    assert math.isfinite(found.loss)
