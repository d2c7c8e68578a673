"""A trait of one's own: perceptrons whose layers choose the bits of their weights.

Bits move no tensor, but make a layer's file smaller, are honoured by its module, and count where
one network lies inside another. As a chain the space is searched exactly under ``bytes``.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import superfednas
from superfednas.nas.cost.cost import FILE
from superfednas.nas.cost.costs import Costs, NothingFits
from superfednas.nas.engine.choose import search
from superfednas.nas.pipeline import Request
from superfednas.supernet import Architecture, SearchSpace, extract, load_space
from superfednas.supernet.axes import Axes, Axis, Kind, Trait
from superfednas.supernet.chain import Block, ListedChain, Segment
from superfednas.supernet.contract import check_space
from tests.support.rows import lines
from tests.support.searching import Additive
from tests.support.strategies import choices, seeds

pytestmark = pytest.mark.slow

PIXELS, CLASSES = 64, 10
WIDTHS = ((16, 32), (8, 24), (CLASSES,))
BITS = (2, 4, 8)
NAME = "tests.extend.test_trait:BitSpace"


class RoundedLayer(nn.Linear):
    """A linear layer whose weights are rounded to some bits; training sees through the rounding."""

    def __init__(self, inputs: int, outputs: int, bits: int, *, last: bool) -> None:
        super().__init__(inputs, outputs)
        self.bits, self.last = bits, last

    def rounded(self) -> torch.Tensor:
        step = self.weight.detach().abs().max() / (2 ** (self.bits - 1) - 1)
        return self.weight + (torch.round(self.weight / step) * step - self.weight).detach()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        answer = nn.functional.linear(features.flatten(1), self.rounded(), self.bias)
        return answer if self.last else torch.relu(answer)


@dataclass(frozen=True)
class BitArchitecture(Architecture):
    """Outputs and bits of every layer."""

    outputs: tuple[int, ...]
    bits: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", tuple(self.outputs))
        object.__setattr__(self, "bits", tuple(self.bits))

    @property
    def layers(self) -> list[tuple[int, int, int]]:
        """Inputs, outputs and bits of every layer."""
        inputs = (PIXELS, *self.outputs)
        return list(zip(inputs[:-1], self.outputs, self.bits, strict=True))


@functools.cache
def layer_block(inputs: int, outputs: int, bits: int, *, last: bool) -> Block:
    return Block(
        name=f"layer {inputs}>{outputs}, {bits} bits{', the last' if last else ''}",
        inputs=(inputs,),
        macs=inputs * outputs,
        params=(inputs + 1) * outputs,
        activations=inputs + outputs,
        module=functools.partial(RoundedLayer, inputs, outputs, bits, last=last),
        stored=math.ceil(inputs * outputs * bits / 8) + 4 * outputs,
    )


class BitChain(ListedChain):
    """A segment a layer; its option is (outputs, bits), the state what the one before hands on."""

    def __init__(self) -> None:
        segments = []
        for number, widths in enumerate(WIDTHS):
            options = tuple(itertools.product(widths, BITS))
            features = np.array([[w / widths[-1], bits / BITS[-1]] for w, bits in options])
            leaves = np.array([widths.index(width) for width, _ in options])
            segments.append(Segment(f"layer{number}", options, leaves, features))
        super().__init__(segments)

    def blocks(self, segment: int, state: int, option: int) -> tuple[Block, ...]:
        inputs = WIDTHS[segment - 1][state] if segment else PIXELS
        outputs, bits = self.segments[segment].options[option]
        return (layer_block(inputs, outputs, bits, last=segment == len(WIDTHS) - 1),)

    def assemble(self, options: Sequence[int]) -> BitArchitecture:
        outputs, bits = zip(*self.chosen(options), strict=True)
        return BitArchitecture(outputs, bits)

    def locate(self, arch: Architecture) -> tuple[int, ...]:
        assert isinstance(arch, BitArchitecture)
        return self.indices(list(zip(arch.outputs, arch.bits, strict=True)))


class BitSpace(SearchSpace):
    """Three layers, two elastic widths, and three choices of bits a layer: 108 networks."""

    name = "perceptron-bits"
    architecture = BitArchitecture
    genes = (*map(len, WIDTHS), *[len(BITS)] * len(WIDTHS))

    def decode(self, choices: Sequence[int]) -> BitArchitecture:
        widths = [w[c] for w, c in zip(WIDTHS, choices, strict=False)]
        return BitArchitecture(tuple(widths), tuple(BITS[c] for c in choices[len(WIDTHS) :]))

    def blocks(self, arch: Architecture) -> tuple[Block, ...]:
        assert isinstance(arch, BitArchitecture)
        last = len(WIDTHS) - 1
        return tuple(layer_block(*layer, last=n == last) for n, layer in enumerate(arch.layers))

    def join(self, arch: Architecture, blocks: Sequence[nn.Module]) -> nn.Module:
        return nn.Sequential(*blocks)

    def module(self, arch: Architecture) -> nn.Module:
        return self.join(arch, [block.module() for block in self.blocks(arch)])

    def axes(self, arch: Architecture) -> Axes:
        assert isinstance(arch, BitArchitecture)
        axes: Axes = {}
        inputs = Axis("pixels", PIXELS, Kind.ORDERED)
        for number, (_, width, _) in enumerate(arch.layers):
            last = number == len(WIDTHS) - 1
            outputs = Axis(f"layer{number}", width, Kind.ORDERED if last else Kind.CHANNELS)
            axes[f"{number}.weight"], axes[f"{number}.bias"] = (outputs, inputs), (outputs,)
            inputs = outputs
        return axes

    def traits(self, arch: Architecture) -> dict[str, Trait]:
        assert isinstance(arch, BitArchitecture)
        return {
            f"layer{number}.bits": Trait(bits, (f"{number}.weight",), bits / 32)
            for number, bits in enumerate(arch.bits)
        }

    @functools.cached_property
    def chain(self) -> BitChain:
        return BitChain()


def bit_space() -> BitSpace:
    found = load_space(NAME, num_classes=CLASSES, in_channels=1, image_size=8, norm="none")
    assert type(found).__name__ == BitSpace.__name__
    return found  # type: ignore[return-value]


EVERY = list(itertools.product(*map(range, BitSpace.genes)))


def test_the_space_keeps_the_contract() -> None:
    assert not [found for found in check_space(bit_space()) if found.problem]
    assert bit_space().size == len(EVERY) == 108


# What bits are


@given(genes=st.sampled_from(EVERY))
def test_bits_multiply_a_layers_bytes(genes: tuple[int, ...]) -> None:
    of = bit_space()
    arch = of.decode(genes)
    files = [math.ceil(a * b * bits / 8) + 4 * b for a, b, bits in arch.layers]
    assert of.weight_bytes(arch) == sum(files)
    assert Costs(of).of("bytes", arch) == FILE + sum(files)
    twice = BitArchitecture(arch.outputs, tuple(2 * bits for bits in arch.bits))
    biases = 4 * sum(arch.outputs)
    if all(a * b * bits % 8 == 0 for a, b, bits in arch.layers):
        assert of.weight_bytes(twice) - biases == 2 * (of.weight_bytes(arch) - biases)


def test_bytes_by_hand() -> None:
    arch = BitArchitecture((16, 8, 10), (2, 4, 8))
    # 64·16 weights of 2 bits, 16·8 of 4, 8·10 of 8; 34 biases of 32
    assert bit_space().weight_bytes(arch) == 256 + 64 + 80 + 136


@pytest.mark.parametrize("bits", BITS)
def test_the_module_honours_its_bits(bits: int) -> None:
    of = bit_space()
    arch = BitArchitecture((32, 24, 10), (bits, 8, 8))
    state, images = of.init(0), torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    module = of.build(arch)
    module.load_state_dict(extract(state, of.boxes(arch)))
    layer = module[0]  # type: ignore[index]
    assert len(layer.rounded().unique()) <= 2**bits - 1 < len(layer.weight.unique())
    answer = module(images)
    whole = of.build(of.largest)
    whole.load_state_dict(state)
    assert torch.equal(answer, whole(images)) == (bits == BITS[-1])  # the same weights, rounded
    answer.square().sum().backward()
    assert layer.weight.grad.abs().min() < layer.weight.grad.abs().max()


@settings(max_examples=100, deadline=None)
@given(data=st.data(), seed=seeds)
def test_more_bits_do_not_lie_inside_fewer(data: st.DataObject, seed: int) -> None:
    of = bit_space()
    a, b = (of.decode(data.draw(choices(of))) for _ in range(2))
    smaller = [x <= y for x, y in zip((*b.outputs, *b.bits), (*a.outputs, *a.bits), strict=True)]
    assert of.contains(a, b) == all(smaller)
    drawn = of.sample_inside(a, np.random.default_rng(seed))
    assert of.contains(a, drawn)
    fewer = BitArchitecture(a.outputs, tuple(max(2, bits // 2) for bits in a.bits))
    assert of.contains(a, fewer)
    assert of.boxes(a) == of.boxes(fewer) and of.shapes(a) == of.shapes(fewer)


# Searched exactly


@functools.cache
def counted() -> tuple[Costs, dict[BitArchitecture, dict[str, float]]]:
    """Return the costs of the space, and those of every network in it."""
    costs = Costs(bit_space())
    archs = [costs.space.decode(genes) for genes in EVERY]
    return costs, {arch: {n: costs.of(n, arch) for n in ("bytes", "macs")} for arch in archs}


@settings(max_examples=40, deadline=None)
@given(seed=seeds, share=st.floats(0, 1), macs=st.booleans())
def test_the_search_under_bytes_is_that_of_all_networks(
    seed: int, share: float, macs: bool
) -> None:
    costs, every = counted()
    scorer = Additive(costs.space, seed)
    names = ("bytes", "macs") if macs else ("bytes",)
    limits = {n: float(np.quantile([of[n] for of in every.values()], share)) for n in names}
    fitting = [arch for arch, of in every.items() if all(of[n] <= limits[n] for n in names)]
    if not fitting:
        with pytest.raises(NothingFits):
            search(scorer, costs, limits)
        return
    found = search(scorer, costs, limits)
    assert found.exact and found.looked_at == 108
    assert found.networks[0][0] in fitting
    assert found.networks[0][1] == max(scorer(fitting))


def test_trained_by_clients_and_chosen_within_bytes(tmp_path: Path) -> None:
    run = superfednas.train(
        space=NAME,
        norm="none",
        rounds=2,
        clients=3,
        clients_per_round=3,
        local_steps=2,
        run_dir=str(tmp_path / "run"),
    )
    rounds = [row for row in lines(run.rows()) if row["kind"] == "round"]
    rows = [client for row in rounds for client in row["clients"]]
    assert len({client["architecture"] for client in rows}) > 1
    of, most = bit_space(), FILE + 1500
    request = Request(limits={"bytes": most}, subnets=8, refine=0)
    plan, _ = superfednas.search(run.path, request=request, out=tmp_path / "plan.json")
    assert plan.exact and plan.looked_at == 108
    chosen = of.parse(plan.chosen.text)
    assert plan.chosen.costs["bytes"] == FILE + of.weight_bytes(chosen) <= most
    assert 4 * of.params(chosen) > 1500  # in float32 none would fit
