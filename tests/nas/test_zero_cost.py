"""The zero-cost fitness: published vectors, a slow oracle, and laws of its terms."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from superfednas.nas.score.scorer import AdditiveScorer, Scorer
from superfednas.nas.score.zero_cost import Fitness
from superfednas.supernet import Architecture, SearchSpace
from superfednas.supernet.families.resnet.family import ResNetFamily
from superfednas.supernet.families.resnet.wide import WideResNetArchitecture
from superfednas.tasks.images import Images
from tests.support.spaces import CROWDED, LEVEL, NARROW
from tests.support.strategies import architectures, space

FAMILIES = ["resnet-tiny", "resnet10-26", "resnet10-26-wide", NARROW, LEVEL, CROWDED]

# What the authors' code gives (bostankhan6/DeepFedNAS; 10 classes, 32×32 colour): depth, ratio of
# every slot, index of the tenths of stem and stages; MACs, parameters; L, ρ, H, V, F for λ = 1000
# and for λ = 100.
MIXED = (0.18, 0.1, 0.1, 0.18, 0.14, 0.1, 0.14, 0.14, 0.1, 0.1, 0.1, 0.1)
VECTORS: list[Any] = [
    (
        *("2222", (0.25,) * 12, "99999", 3_403_370_496, 71_726_538),
        *(29, 0.016409, 2424.0249, 0, 2430.4340, 2415.6658),
    ),
    (
        *("0000", (0.1,) * 12, "00000", 7_545_888, 128_706),
        *(13, 0.144091, 496.3035, 0, 630.3949, 500.7126),
    ),
    (
        *("0000", (0.1,) * 12, "99999", 458_969_088, 10_396_746),
        *(13, 0.020861, 910.2746, 0, 921.1359, 902.3608),
    ),
    (
        *("2222", MIXED, "94444", 458_237_952, 8_176_266),
        *(29, 0.040594, 1996.4345, 0, 2027.0290, 1990.4939),
    ),
    (
        *("2210", (0.18,) * 12, "99999", 1_879_265_280, 21_937_258),
        *(23, 0.021215, 1825.5704, 0, 1826.8978, 1807.8045),
    ),
    (
        *("1111", (0.18,) * 12, "09210", 433_440_800, 1_242_914),
        *(21, 0.054341, 1224.3998, 104, 1164.7407, 1115.8339),
    ),
]
LARGEST_BY_STAGE = [562.299, 604.570, 622.817, 634.339]


def family(name: str, **options: Any) -> ResNetFamily:
    of = space(name, **options)
    assert isinstance(of, ResNetFamily)
    return of


def real() -> ResNetFamily:
    return family("resnet10-26-wide", num_classes=10, in_channels=3, image_size=32)


def oracle(
    of: ResNetFamily, arch: Architecture, path: float, variance: float, narrowing: float
) -> float:
    """Read the formula off the names and shapes of an architecture's tensors."""
    kernels = {n: shape for n, shape in of.shapes(arch).items() if len(shape) == 4}
    logs = {name: math.log(k * k * c) for name, (_, c, k, _) in kernels.items()}
    entropy, side, widths, blocks = 0.0, of.image_size, [], []
    for stage, stride in enumerate(of.strides):
        side = math.ceil(side / stride)
        inside = [name for name in kernels if name.startswith(f"stages.{stage}.")]
        widths.append(kernels[f"stages.{stage}.0.conv2.weight"][0])
        blocks.append(sum(name.endswith("conv1.weight") for name in inside))
        entropy += math.log(side**2 * widths[-1]) * sum(logs[name] for name in inside)
    mean = sum(blocks) / len(blocks)
    spread = sum((count - mean) ** 2 for count in blocks) / len(blocks)
    rho = len(logs) / math.exp(sum(logs.values()) / len(logs))
    drops = sum(max(0, a - b) for a, b in itertools.pairwise(widths))
    return entropy - variance * math.exp(spread) + path * rho - narrowing * drops


@pytest.mark.parametrize(
    ("depth", "ratios", "shares", "macs", "params", "layers", "rho", "entropy", "drops", *"fg"),
    VECTORS,
)
def test_published_vectors(
    depth: str,
    ratios: tuple[float, ...],
    shares: str,
    macs: int,
    params: int,
    layers: int,
    rho: float,
    entropy: float,
    drops: int,
    f: float,
    g: float,
) -> None:
    of = real()
    genes = [*map(int, depth), *(of.ratios.index(ratio) for ratio in ratios), *map(int, shares)]
    arch = of.decode(genes)
    assert (of.macs(arch), of.params(arch)) == (macs, params)
    thousand, hundred = Fitness(of, path_weight=1000), Fitness(of)
    (first,), (second,) = thousand([arch]), hundred([arch])
    assert (first, second) == (pytest.approx(f, abs=6e-5), pytest.approx(g, abs=6e-5))
    tables = hundred.statistics()
    sums = of.chain.gather(tables, np.array([of.chain.locate(arch)])).sum(axis=0)[0]
    assert sums[0] == pytest.approx(entropy, abs=6e-5)
    assert (sums[1], sums[2]) == (drops, layers)
    assert sums[2] / math.exp(sums[3] / sums[2]) == pytest.approx(rho, abs=6e-7)
    assert (first - second) / 900 == pytest.approx(rho, abs=6e-7)


def test_published_entropies_by_stage() -> None:
    of = real()
    options = np.array([of.chain.locate(of.largest)])
    by_segment = of.chain.gather(Fitness(of).statistics(), options)[:, 0, 0]
    assert by_segment == pytest.approx([0, *LARGEST_BY_STAGE], abs=6e-4)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=30, deadline=None)
@given(data=st.data(), image=st.sampled_from([(1, 8), (3, 32), (2, 9)]))
def test_it_is_the_formula(name: str, data: st.DataObject, image: tuple[int, int]) -> None:
    of = family(name, in_channels=image[0], image_size=image[1])
    weights = data.draw(st.sampled_from([(100.0, 10.0, 1.0), (1000.0, 0.0, 7.0), (0.0, 3.0, 0.0)]))
    archs = data.draw(st.lists(architectures(of), max_size=4))
    expected = [oracle(of, arch, *weights) for arch in archs]
    found = Fitness(of, *weights)(archs)
    assert found.shape == (len(archs),) and found.dtype == np.float64
    assert found == pytest.approx(np.array(expected), rel=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_many_at_once_are_one_at_a_time(name: str) -> None:
    of = family(name)
    rng = np.random.default_rng(0)
    counts = [len(segment.options) for segment in of.chain.segments]
    options = rng.integers(counts, size=(20_000, len(counts)))  # several chunks
    fitness = Fitness(of)
    found = fitness.of_options(options)
    assert found.shape == (20_000,)
    for at in (0, 1, 8_191, 8_192, 19_999):
        arch = of.chain.assemble(options[at])
        assert found[at] == fitness([arch])[0] == fitness.of_options(options[at : at + 1])[0]
        assert found[at] == pytest.approx(oracle(of, arch, 100, 10, 1), rel=1e-12)


def test_terms_by_hand() -> None:
    """Stem 8; 16 channels of one block (mid 8) at 8×8, then 16 of two (mids 8, 16) at 4×4."""
    of = family(NARROW)
    arch = WideResNetArchitecture(8, (16, 16), ((8,), (8, 16)))
    ln = math.log
    first = ln(72) + ln(72) + ln(8)  # 3×3 of 8, 3×3 of 8, 1×1 of 8
    second = ln(144) + ln(72) + ln(16) + ln(144) + ln(144)
    stem = ln(9)  # a grey image
    entropy = ln(64 * 16) * first + ln(16 * 16) * second
    rho = 9 / math.exp((stem + first + second) / 9)
    expected = entropy - 10 * math.exp(0.25) + 100 * rho  # Var(1, 2) = ¼
    assert Fitness(of)([arch]) == pytest.approx([expected], rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_narrowing_counts_stages_alone(data: st.DataObject) -> None:
    of = family(NARROW)
    arch = data.draw(architectures(of))
    assert isinstance(arch, WideResNetArchitecture)
    lost = Fitness(of, narrowing_weight=0)([arch]) - Fitness(of, narrowing_weight=2)([arch])
    assert lost[0] == pytest.approx(2 * max(0, arch.width[0] - arch.width[1]), abs=1e-9)


def test_a_stem_wider_than_the_first_stage_is_no_narrowing() -> None:
    of = real()
    arch = of.decode([0] * 16 + [9, 0, 0, 0, 0])
    assert isinstance(arch, WideResNetArchitecture) and arch.stem > arch.width[0]
    assert Fitness(of)([arch]) == Fitness(of, narrowing_weight=50)([arch])


def test_it_is_no_sum() -> None:
    assert not isinstance(Fitness(family("resnet-tiny")), AdditiveScorer)
    scorer: Scorer = Fitness(family("resnet-tiny"))
    assert scorer.name == "zero-cost"


def test_no_architecture_no_score() -> None:
    assert Fitness(family("resnet-tiny"))([]).shape == (0,)


def test_a_foreign_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="is no architecture of the space 'narrow'"):
        Fitness(family(NARROW))([space().smallest])


class Plain(SearchSpace):
    name = "plain"
    architecture = Architecture
    genes = ()

    def decode(self, choices: Any) -> Architecture:
        return Architecture()

    def module(self, arch: Architecture) -> nn.Module:
        return nn.Flatten()


def test_another_kind_of_space_is_refused() -> None:
    with pytest.raises(
        ValueError, match="zero-cost fitness: the space 'plain' is no ResNet family"
    ):
        Fitness(Plain(Images()))
