"""Subnets on shared weights: gradients against extracted subnets, distillation, clipping."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from superfednas.client.objective import Objective, add_proximal
from superfednas.client.shared_weights import SharedWeights
from superfednas.client.training import TrainingResult, train
from superfednas.nas.score.tallies import subnet_module
from superfednas.supernet import Architecture, SearchSpace, extract
from superfednas.supernet.boxes import pieces
from superfednas.wire.order import LocalTraining
from tests.support.spaces import LEVEL, NARROW
from tests.support.strategies import noisy_state, pictures, small_dataset, space

MOBILE, RESNET = "mobilenetv1-tiny", "resnet-tiny"
LABELS = torch.tensor([0, 1, 2, 1, 0])
Gradients = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def network(of: SearchSpace, outer: Architecture) -> nn.Module:
    return subnet_module(of, noisy_state(of), outer)


def shared(
    module: nn.Module,
    of: SearchSpace,
    outer: Architecture,
    archs: Sequence[Architecture],
    local: LocalTraining | None = None,
    **options: Any,
) -> SharedWeights:
    return SharedWeights(
        module, of.task, local or LocalTraining(), of, outer, lambda: list(archs), **options
    )


def gradients(module: nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def alone(
    of: SearchSpace, module: nn.Module, outer: Architecture, arch: Architecture
) -> tuple[nn.Module, dict[str, Any]]:
    """Extract a subnet with weights of its own; say where it lies in the whole."""
    boxes = of.within(outer, arch)
    assert boxes is not None
    state = {name: parameter.detach() for name, parameter in module.named_parameters()}
    small = of.build(arch).to(next(module.parameters()).dtype)
    small.load_state_dict(extract(state, boxes))
    return small.train(), boxes


def add_scattered(
    total: Gradients, module: nn.Module, small: nn.Module, boxes: dict[str, Any], loss: torch.Tensor
) -> None:
    """Add the gradients of an extracted subnet where they belong in the whole."""
    whole = dict(module.named_parameters())
    names = [name for name, _ in small.named_parameters()]
    for name, gradient in zip(
        names, torch.autograd.grad(loss, list(small.parameters())), strict=True
    ):
        into = total.setdefault(name, torch.zeros_like(whole[name]))
        for outer, within in pieces(boxes[name]):
            into[outer] += gradient[within]


def by_hand(
    of: SearchSpace,
    module: nn.Module,
    outer: Architecture,
    archs: Sequence[Architecture],
    images: torch.Tensor,
    labels: torch.Tensor = LABELS,
) -> Gradients:
    total: Gradients = {}
    for arch in archs:
        small, boxes = alone(of, module, outer, arch)
        loss = functional.cross_entropy(small(images), labels)
        add_scattered(total, module, small, boxes, loss)
    return total


def check_gradients(
    found: dict[str, torch.Tensor | None], expected: Gradients, share: float = 1e-6
) -> None:
    """Compare; logits are rounded to float32, so the last bits are left out."""
    assert {name for name, gradient in found.items() if gradient is not None} == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert scale > 1e-3
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=0, atol=share * scale), name  # type: ignore[arg-type]


# Gradients


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "none", "batch"])
@pytest.mark.parametrize("which", ["largest", "random:3"])
@pytest.mark.parametrize("name", [MOBILE, RESNET, NARROW])
def test_gradients_are_the_sum_of_the_extracted_subnets(name: str, which: str, norm: str) -> None:
    of, rng = space(name, norm=norm), np.random.default_rng(1)
    outer = of.parse(which)
    drawn = [of.sample_inside(outer, rng) for _ in range(3)]
    module, images = network(of, outer).double(), pictures(5).double()
    for archs in ([of.smallest], drawn, [drawn[0], drawn[0]], [outer, of.smallest, drawn[1]]):
        module.zero_grad(set_to_none=True)
        shared(module, of, outer, archs)((images,), {"labels": LABELS})
        check_gradients(gradients(module), by_hand(of, module, outer, archs, images))


def test_equal_blocks_of_one_network_have_weights_of_their_own() -> None:
    of = space(LEVEL)
    arch = of.parse('{"depth":[2,2],"expand":[[1,1,1],[0.5,0.5,0.5]]}')
    assert len(set(of.blocks(arch))) < len(of.blocks(arch))
    module, images = network(of, of.largest).double(), pictures(5).double()
    shared(module, of, of.largest, [arch])((images,), {"labels": LABELS})
    check_gradients(gradients(module), by_hand(of, module, of.largest, [arch], images))


def test_what_no_subnet_touches_has_no_gradient() -> None:
    of = space(MOBILE)
    module = network(of, of.largest)
    shared(module, of, of.largest, [of.smallest])((pictures(5),), {"labels": LABELS})
    idle = {name for name, gradient in gradients(module).items() if gradient is None}
    assert idle == of.shapes(of.largest).keys() - of.shapes(of.smallest).keys()
    assert "stages.1.1.pointwise.weight" in idle
    # Of a tensor that is used in part, the rest has a gradient of nought.
    pointwise = module.stages[0][0].pointwise.weight.grad  # type: ignore[index,union-attr]
    assert pointwise[:8].abs().max() > 0 and not pointwise[8:].any()


def test_a_subnet_that_does_not_lie_inside_is_refused() -> None:
    of = space(MOBILE)
    objective = shared(network(of, of.smallest), of, of.smallest, [of.largest])
    with pytest.raises(ValueError, match="does not lie inside") as caught:
        objective((pictures(5),), {"labels": LABELS})
    assert of.largest.to_json() in str(caught.value) and of.smallest.to_json() in str(caught.value)


def trained(
    of: SearchSpace,
    outer: Architecture,
    make: Callable[[nn.Module], Objective | None],
    images: int = 10,
    **local: Any,
) -> tuple[nn.Module, TrainingResult]:
    module = network(of, outer)
    result = train(
        module,
        small_dataset(images),
        LocalTraining(**{"local_steps": 4, "batch_size": 4} | local),
        seed=0,
        round=1,
        name="a",
        objective=make(module),
    )
    return module, result


@pytest.mark.parametrize("norm", ["group", "none", "batch"])
@pytest.mark.parametrize("name", [MOBILE, RESNET])
def test_the_largest_alone_is_plain_training_to_the_bit(name: str, norm: str) -> None:
    of = space(name, norm=norm)
    outer = of.parse("random:4")

    def through_views(module: nn.Module) -> SharedWeights:
        objective = shared(module, of, outer, [outer])
        objective._cut(outer)  # is kept
        objective._outer = None  # type: ignore[assignment]
        assert objective.subnet(outer) is not module
        return objective

    before = network(of, outer).state_dict()
    plain, result = trained(of, outer, lambda _: None)
    for make in (lambda module: shared(module, of, outer, [outer]), through_views):
        module, found = trained(of, outer, make)
        assert found == result
        for key, tensor in plain.state_dict().items():
            assert torch.equal(module.state_dict()[key], tensor), key
            assert not torch.equal(tensor, before[key]), key


# Distillation


@pytest.mark.parametrize("name", [MOBILE, RESNET])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_students_learn_the_largests_predictions_and_it_learns_nothing_from_them(
    name: str, smoothing: float
) -> None:
    of = space(name)
    outer, student = of.largest, of.parse("random:7")
    images, local = pictures(5).double(), LocalTraining(label_smoothing=smoothing)
    module = network(of, outer).double()
    step = shared(module, of, outer, [outer, student, of.smallest], local, distil=True)
    loss = step((images,), {"labels": LABELS})

    whole, everywhere = alone(of, module, outer, outer)
    logits = whole(images).float()
    losses = [functional.cross_entropy(logits, LABELS, label_smoothing=smoothing)]
    expected: Gradients = {}
    add_scattered(expected, module, whole, everywhere, losses[0])
    teacher = torch.exp(logits.detach()) / torch.exp(logits.detach()).sum(1, keepdim=True)
    for arch in (student, of.smallest):
        small, boxes = alone(of, module, outer, arch)
        losses.append(-(teacher * torch.log_softmax(small(images).float(), 1)).sum(1).mean())
        add_scattered(expected, module, small, boxes, losses[-1])
    assert float(loss) == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)
    check_gradients(gradients(module), expected)


def test_the_largests_own_gradient_is_the_same_with_and_without_students() -> None:
    of = space(MOBILE)
    outer, student = of.largest, of.smallest
    own, both = network(of, outer), network(of, outer)
    shared(own, of, outer, [outer], distil=False)((pictures(5),), {"labels": LABELS})
    shared(both, of, outer, [outer, student], distil=True)((pictures(5),), {"labels": LABELS})
    boxes, within = of.boxes(student), 0.0
    for (name, plain), taught in zip(own.named_parameters(), both.parameters(), strict=True):
        assert plain.grad is not None and taught.grad is not None
        elsewhere = torch.ones_like(plain, dtype=torch.bool)
        for where, _ in pieces(boxes[name]) if name in boxes else ():
            elsewhere[where] = False
        assert torch.equal(plain.grad[elsewhere], taught.grad[elsewhere]), name
        within = max(within, float((plain.grad - taught.grad).abs().max()))
    assert within > 1e-3


@pytest.mark.parametrize(
    "texts",
    [
        ["smallest", "random:5"],
        pytest.param(
            ["smallest", "largest", "random:5"],
        ),
    ],
)
def test_only_a_largest_that_comes_first_teaches(texts: list[str]) -> None:
    of = space(MOBILE)
    archs, images = [of.parse(text) for text in texts], pictures(5).double()
    module = network(of, of.largest).double()
    shared(module, of, of.largest, archs, distil=True)((images,), {"labels": LABELS})
    check_gradients(gradients(module), by_hand(of, module, of.largest, archs, images))


# What a step is


def test_macs_are_counted_for_every_subnet_and_image() -> None:
    of = space(MOBILE)
    archs = [of.largest, of.smallest, of.smallest, of.parse("random:5")]
    module = network(of, of.largest)
    several = shared(module, of, of.largest, archs)
    one = Objective(module, of.task, LocalTraining(), of.macs(of.largest))
    assert several.mac_images == one.mac_images == 0
    for objective in (several, one):
        for count in (5, 3):
            objective((pictures(count),), {"labels": LABELS[:count]})
    assert several.mac_images == 8 * sum(map(of.macs, archs))
    assert one.mac_images == 8 * of.macs(of.largest)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_spreads_a_share_of_every_label(smoothing: float) -> None:
    of = space(MOBILE)
    module, local = network(of, of.largest), LocalTraining(label_smoothing=smoothing)
    for objective in (
        Objective(module, of.task, local),
        shared(module, of, of.largest, [of.largest], local),
    ):
        module.zero_grad(set_to_none=True)
        loss = objective((pictures(5),), {"labels": LABELS})
        logs = torch.log_softmax(module(pictures(5)), 1)
        target = (1 - smoothing) * functional.one_hot(LABELS, 3) + smoothing / 3
        by_definition = -(target * logs).sum(1).mean()
        assert float(loss) == pytest.approx(by_definition.item(), rel=1e-5)
        expected = torch.autograd.grad(by_definition, list(module.parameters()))
        for parameter, gradient in zip(module.parameters(), expected, strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-5)  # type: ignore[arg-type]


def test_the_proximal_pull_is_the_gradient_of_half_the_squared_distance() -> None:
    received = [pictures(1, seed=seed) for seed in range(3)]
    weights = [nn.Parameter(pictures(1, seed=10 + seed)) for seed in range(3)]
    before = [pictures(1, seed=20), torch.zeros_like(received[1]), None]
    for weight, gradient in zip(weights, before, strict=True):
        weight.grad = None if gradient is None else gradient.clone()
    distance = sum(((w - w0) ** 2).sum() for w, w0 in zip(weights, received, strict=True))
    expected = torch.autograd.grad(0.3 / 2 * distance, weights)  # type: ignore[operator]
    add_proximal(weights, received, 0.3)
    for weight, gradient, pull in zip(weights, before, expected, strict=True):
        assert torch.allclose(weight.grad, pull if gradient is None else gradient + pull)  # type: ignore[arg-type]
        assert pull.abs().max() > 0.1


def test_shared_training_is_pulled_to_what_was_received() -> None:
    of, data = space(MOBILE), small_dataset()
    images = (data.train.fields["images"].float() / 255 - data.task.mean[0]) / data.task.std[0]
    archs = [of.smallest, of.at_width(0.5)]
    module, _ = trained(
        of,
        of.largest,
        lambda module: shared(module, of, of.largest, archs),
        local_steps=2,
        batch_size=10,
        proximal=4.0,
        clip_norm=0.0,
    )
    own = network(of, of.largest)
    received = copy.deepcopy(own)
    for _ in range(2):
        found = by_hand(of, own, of.largest, archs, images, data.train.targets["labels"])
        with torch.no_grad():
            for (name, weight), start in zip(
                own.named_parameters(), received.parameters(), strict=True
            ):
                gradient = found.get(name, torch.zeros_like(weight))
                weight -= 0.1 * (gradient + 4.0 * (weight - start))
    for name, tensor in own.state_dict().items():
        assert torch.allclose(module.state_dict()[name], tensor, atol=2e-5), name


def test_clipping_is_of_the_summed_gradient() -> None:
    of, data = space(MOBILE, norm="none"), small_dataset()
    images = (data.train.fields["images"].float() / 255 - data.task.mean[0]) / data.task.std[0]
    archs = [of.largest, of.smallest, of.parse("random:5")]
    module, _ = trained(
        of,
        of.largest,
        lambda module: shared(module, of, of.largest, archs),
        local_steps=1,
        batch_size=10,
        clip_norm=0.1,
    )
    own = network(of, of.largest)
    total = by_hand(of, own, of.largest, archs, images, data.train.targets["labels"])
    norm = float(torch.stack([gradient.norm() for gradient in total.values()]).norm())
    assert norm > 0.3
    for name, start in own.state_dict().items():
        step = start - module.state_dict()[name]
        assert torch.allclose(step, 0.1 * 0.1 / norm * total[name], atol=1e-7), name


def test_static_batch_norm_merges_a_last_single_image() -> None:
    of = space(MOBILE, norm="batch")
    objectives: list[SharedWeights] = []

    def make(module: nn.Module) -> SharedWeights:
        objectives.append(shared(module, of, of.largest, [of.largest, of.smallest], distil=True))
        return objectives[0]

    module, result = trained(of, of.largest, make, 9, local_steps=0, local_epochs=1)
    assert result.images == 4 + 5 and math.isfinite(result.loss)
    assert objectives[0].mac_images == 9 * (of.macs(of.largest) + of.macs(of.smallest))
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())
