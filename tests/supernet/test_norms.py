"""Norms under prefix slicing: group norm channel by channel, static batch norm by hand."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from superfednas.supernet import extract
from superfednas.supernet.norms import (
    NORMS,
    StaticBatchNorm2d,
    calibrate,
    load_measured_state,
    make_norm,
    measured_state,
    needs_calibration,
)
from tests.support.strategies import noisy_state, pictures, space

EPS = 1e-5


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def static(channels: int = 1) -> StaticBatchNorm2d:
    layer = StaticBatchNorm2d(channels)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def column(*values: float) -> torch.Tensor:
    """Images of one pixel."""
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1)


def small_net(seed: int = 0) -> nn.Module:
    of = space(norm="batch")
    module = of.build(of.smallest)
    module.load_state_dict(extract(noisy_state(of, seed), of.smallest))
    return module


# Group norm


@settings(max_examples=30, deadline=None)
@given(wide=st.integers(1, 6), data=st.data(), batch=st.integers(1, 3))
def test_a_prefix_is_normalised_as_in_the_supernet(
    wide: int, data: st.DataObject, batch: int
) -> None:
    kept, channels = 8 * data.draw(st.integers(1, wide)), 8 * wide
    whole, part = make_norm("group", channels), make_norm("group", kept)
    assert isinstance(whole, nn.GroupNorm) and isinstance(part, nn.GroupNorm)
    assert (whole.num_groups, part.num_groups) == (wide, kept // 8)
    state = {"weight": noise(channels, seed=1), "bias": noise(channels, seed=2)}
    whole.load_state_dict(state)
    part.load_state_dict({name: tensor[:kept] for name, tensor in state.items()})
    images = noise(batch, channels, 3, 3)
    torch.testing.assert_close(part(images[:, :kept]), whole(images)[:, :kept])


def test_group_norm_by_hand() -> None:
    layer = make_norm("group", 16)
    first, second = [0.0] * 4 + [2.0] * 4, [0.0] * 8  # mean 1, variance 1; nothing
    output = layer(torch.tensor(first + second).reshape(1, 16, 1, 1)).flatten()
    one = 1 / math.sqrt(1 + EPS)
    torch.testing.assert_close(output, torch.tensor([-one] * 4 + [one] * 4 + [0.0] * 8))


def test_without_norm_nothing_happens() -> None:
    layer, images = make_norm("none", 8), noise(2, 8, 3, 3)
    assert layer(images) is images and not list(layer.parameters())


@pytest.mark.parametrize("norm", NORMS)
def test_only_batch_norm_needs_calibration(norm: str) -> None:
    of = space(norm=norm)
    assert needs_calibration(of.build(of.smallest)) == (norm == "batch")


# Static batch norm


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(2, 5), channels=st.integers(1, 9), seed=st.integers(0, 99))
def test_training_is_batch_norm_without_running_statistics(
    batch: int, channels: int, seed: int
) -> None:
    ours, theirs = static(channels), nn.BatchNorm2d(channels, track_running_stats=False)
    state = {"weight": noise(channels, seed=seed), "bias": noise(channels, seed=seed + 1)}
    outputs = []
    for layer in (ours, theirs):
        layer.load_state_dict(state)
        images = noise(batch, channels, 2, 2, seed=seed + 2).requires_grad_()
        output = layer.train()(images)
        output.pow(3).sum().backward()
        outputs.append([output, images.grad, layer.weight.grad, layer.bias.grad])
    for mine, other in zip(*outputs, strict=True):
        assert torch.equal(mine, other)


def test_state_is_weight_and_bias_before_and_after() -> None:
    layer = static(3)
    layer(noise(2, 3, 2, 2))
    assert list(layer.state_dict()) == ["weight", "bias"]
    calibrate(layer, [(noise(2, 3, 2, 2),)])
    assert list(layer.state_dict()) == ["weight", "bias"] and not list(layer.buffers())


def test_evaluation_without_calibration_is_refused() -> None:
    layer = static()
    layer.train()(column(1, 2))  # training leaves nothing behind
    with pytest.raises(RuntimeError, match="call calibrate"):
        layer.eval()(column(1, 2))


def test_statistics_are_means_over_batches() -> None:
    layer = static()
    # Means 1, 6 and 2; variances 1, 4 and 0, of batches that count alike
    calibrate(layer, [(column(0, 2),), (column(4, 8),), (column(2, 2, 2),)])
    assert layer.mean is not None and layer.variance is not None
    mean, variance = (1 + 6 + 2) / 3, (1 + 4 + 0) / 3
    torch.testing.assert_close(layer.mean, torch.tensor([mean]))
    torch.testing.assert_close(layer.variance, torch.tensor([variance]))
    assert not layer.training
    expected = (7 - mean) / math.sqrt(variance + EPS)
    torch.testing.assert_close(layer(column(7)), column(expected))


def test_a_deeper_layer_sees_batches_normalised_by_the_one_before() -> None:
    first, second = static(), static()
    nn.init.constant_(first.weight, 3.0)
    nn.init.constant_(first.bias, 5.0)
    calibrate(nn.Sequential(first, second), [(column(0, 2),), (column(4, 8),)])
    # Whatever the batch, the first gives mean 5 and variance 9 (but for eps).
    assert second.mean is not None and second.variance is not None
    torch.testing.assert_close(second.mean, torch.tensor([5.0]))
    variance = (9 * 1 / (1 + EPS) + 9 * 4 / (4 + EPS)) / 2
    torch.testing.assert_close(second.variance, torch.tensor([variance]))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), count=st.integers(1, 4))
def test_one_layer_against_the_plain_mean(seed: int, count: int) -> None:
    batches = [noise(3, 4, 2, 2, seed=seed + k) for k in range(count)]
    layer = static(4)
    calibrate(layer, ((batch,) for batch in batches))
    means = torch.stack([b.mean(dim=(0, 2, 3)) for b in batches]).mean(dim=0)
    variances = torch.stack([b.var(dim=(0, 2, 3), correction=0) for b in batches]).mean(dim=0)
    assert layer.mean is not None and layer.variance is not None
    torch.testing.assert_close(layer.mean, means)
    torch.testing.assert_close(layer.variance, variances)


def test_calibrating_again_starts_afresh() -> None:
    module = small_net()
    first, second = ([(pictures(4, seed=k),) for k in seeds] for seeds in ((1, 2), (3,)))
    calibrate(module, first)
    once = module(pictures(3))
    calibrate(module, second)
    assert not torch.equal(module(pictures(3)), once)
    calibrate(module, first)
    assert torch.equal(module(pictures(3)), once)
    for layer in module.modules():
        if isinstance(layer, StaticBatchNorm2d):
            assert layer.mean is not None and layer.mean.shape == layer.weight.shape
            assert not layer.mean.requires_grad and layer.batches is None


def test_calibration_leaves_parameters_and_ends_in_evaluation() -> None:
    module = small_net().train()
    before = copy.deepcopy(module.state_dict())
    calibrate(module, [(pictures(4),)])
    assert list(module.state_dict()) == list(before)
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)
    assert not any(part.training for part in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_evaluation_leaves_the_statistics() -> None:
    module = small_net()
    calibrate(module, [(pictures(4),)])
    once = module(pictures(3, seed=9))
    module(100 * pictures(5))
    assert torch.equal(module(pictures(3, seed=9)), once)
    assert torch.allclose(module(pictures(3, seed=9)[:1]), once[:1], atol=1e-5)


def test_nothing_to_calibrate_runs_nothing() -> None:
    of = space(norm="group")
    module = of.build(of.smallest).train()

    def refuse() -> torch.Tensor:
        raise AssertionError("a batch was read")

    calibrate(module, (refuse() for _ in range(1)))
    assert not module.training


def test_no_batches() -> None:
    layer = static()
    calibrate(layer, [(column(0, 2),)])
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate(layer, [])
    with pytest.raises(RuntimeError, match="call calibrate"):
        layer.eval()(column(1, 2))


def test_a_calibration_that_broke_off_does_not_count() -> None:
    layer = static()
    with pytest.raises(ValueError):
        calibrate(layer, [(column(0, 2),), (column(1),)])  # one value has no batch statistics
    with pytest.raises(RuntimeError, match="call calibrate"):
        layer.eval()(column(1, 2))


# A state with its statistics


@pytest.mark.parametrize("norm", NORMS)
def test_a_measured_state_makes_the_same_network(norm: str) -> None:
    of = space(norm=norm)
    module, again = of.build(of.smallest), of.build(of.smallest)
    module.load_state_dict(extract(noisy_state(of), of.smallest))
    calibrate(module, [(pictures(5),)])
    state = measured_state(module)
    assert set(state) - set(module.state_dict()) == {
        f"{name}.{what}"
        for name, layer in module.named_modules()
        if isinstance(layer, StaticBatchNorm2d)
        for what in ("mean", "variance")
    }
    load_measured_state(again, state)
    with torch.inference_mode():
        assert torch.equal(again(pictures(3)), module(pictures(3)))
    for name in (next(iter(state)), list(state)[-1]):
        with pytest.raises((KeyError, RuntimeError)):
            load_measured_state(again, {k: v for k, v in state.items() if k != name})
