"""The first state: streams, scales, and that a net without norm starts alive and learns."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional

from superfednas.common.streams import Purpose, stream
from superfednas.supernet import SearchSpace
from tests.support.strategies import pictures, seeds, space


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_same_seed_same_state(seed: int) -> None:
    first, again, other = (space().init(s) for s in (seed, seed, seed + 1))
    assert list(first) == list(space().shapes(space().largest))
    for name, tensor in first.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, again[name])
        assert torch.equal(tensor, other[name]) == (tensor.ndim == 1)


def test_a_tensor_does_not_depend_on_the_others() -> None:
    few, many = space(num_classes=3).init(5), space(num_classes=7).init(5)
    bare = space(norm="none", num_classes=3).init(5)
    for name in few:
        if not name.startswith("head"):
            assert torch.equal(few[name], many[name])
    assert set(bare) < set(few)
    for name in bare:
        ratio = math.sqrt(1 / 8) if name.endswith("conv2.weight") else 1
        torch.testing.assert_close(bare[name], few[name] * ratio)
    weights = [tensor.flatten()[:100] for tensor in few.values() if tensor.ndim > 1]
    for number, first in enumerate(weights):
        for second in weights[:number]:
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.5


def test_first_weight_by_hand() -> None:
    normal = stream(3, Purpose.INIT, name="stem.conv.weight").standard_normal(1, np.float32)
    first = space().init(3)["stem.conv.weight"].flatten()[0]
    assert float(first) == pytest.approx(float(normal[0]) * math.sqrt(2 / 9), rel=1e-6)


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_standard_deviation_is_gain_over_root_fan_in(norm: str) -> None:
    of = space(norm=norm, num_classes=10, in_channels=3)
    blocks = 8
    for name, tensor in of.init(0).items():
        if tensor.ndim == 1:
            value = 0 if name.endswith("bias") else 1
            assert torch.equal(tensor, torch.full_like(tensor, value))
            continue
        gain = 1.0 if name == "head.weight" else math.sqrt(2)
        if norm == "none" and name.endswith("conv2.weight"):
            gain = math.sqrt(2 / blocks)
        std, count = gain / math.sqrt(math.prod(tensor.shape[1:])), tensor.numel()
        assert float(tensor.std()) == pytest.approx(std, rel=4 / math.sqrt(2 * count))
        assert abs(float(tensor.mean())) < 4 * std / math.sqrt(count)


def test_global_generators_are_left_alone() -> None:
    def states() -> tuple[torch.Tensor, bytes, object]:
        drawn = np.random.get_state()[1]
        return torch.get_rng_state(), np.asarray(drawn).tobytes(), random.getstate()

    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = states()
    space().init(0)
    space().build(space().parse("random:1"))
    after = states()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


# Without norm


def deviations(of: SearchSpace, images: torch.Tensor) -> list[float]:
    """Root mean square after the stem, every block and the head."""
    module, found = of.build(of.largest).eval(), []
    module.load_state_dict(of.init(0))

    def note(_: nn.Module, __: object, output: torch.Tensor) -> None:
        found.append(float(output.square().mean().sqrt()))

    for name, part in module.named_modules():
        if name in ("stem", "head") or (name.startswith("stages.") and name.count(".") == 2):
            part.register_forward_hook(note)
    with torch.no_grad():
        module(images)
    return found


@pytest.mark.parametrize(("name", "blocks"), [("resnet-tiny", 8), ("resnet10-26", 12)])
def test_largest_without_norm_starts_alive(name: str, blocks: int) -> None:
    of = space(name, norm="none", num_classes=10, in_channels=3, image_size=32)
    found = deviations(of, pictures(1, channels=3, size=32))
    assert len(found) == blocks + 2
    assert all(map(math.isfinite, found))
    assert max(found) / min(found) < 100


@pytest.mark.parametrize("which", ["smallest", "largest"])
def test_a_net_without_norm_learns(which: str) -> None:
    of = space(norm="none")
    state = of.init(0)
    module = of.build(of.parse(which)).train()
    shapes = of.shapes(of.parse(which))
    module.load_state_dict(
        {name: state[name][tuple(map(slice, shape))] for name, shape in shapes.items()}
    )
    images, labels = pictures(12), torch.arange(12) % 3
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        loss = functional.cross_entropy(module(images), labels)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.8 * losses[0]
