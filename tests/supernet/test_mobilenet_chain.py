"""A MobileNet family as a chain: options are its networks, blocks add up, search is exact."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.nas.cost.costs import Costs
from superfednas.nas.pipeline import Request, make_plan
from superfednas.nas.plan import Plan
from superfednas.supernet import SearchSpace, load_space
from superfednas.supernet.chain import Chain
from superfednas.supernet.families.mobilenet.spaces import MOBILENETS
from tests.support.strategies import architectures, norms, space

CHAINED = [family.name for family in MOBILENETS if family.name != "mobilenetv1"]
SMALL = ["mobilenetv1-tiny-depth", "mobilenetv1-tiny-kernel", "mobilenetv1-tiny-width"]


def chain_of(of: SearchSpace) -> Chain:
    assert of.chain is not None
    return of.chain


@pytest.mark.parametrize("name", SMALL)
def test_options_are_the_networks(name: str) -> None:
    of = space(name)
    chain = chain_of(of)
    counts = [range(len(segment.options)) for segment in chain.segments]
    every = {chain.assemble(options) for options in itertools.product(*counts)}
    assert len(every) == math.prod(map(len, counts)) == of.size
    for arch in every:
        of.validate(arch)
        assert chain.assemble(chain.locate(arch)) == arch


def test_a_space_of_too_many_options_a_stage_is_no_chain() -> None:
    assert load_space("mobilenetv1").chain is None


@pytest.mark.parametrize("name", CHAINED)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), norm=norms, image=st.sampled_from([(1, 8), (3, 32), (3, 9)]))
def test_blocks_add_up_to_the_network(
    name: str, data: st.DataObject, norm: str, image: tuple[int, int]
) -> None:
    of = space(name, in_channels=image[0], image_size=image[1], norm=norm)
    chain, arch = chain_of(of), data.draw(architectures(of))
    options, state, blocks = chain.locate(arch), 0, []
    for segment, option in enumerate(options):
        blocks += chain.blocks(segment, state, option)
        state = int(chain.segments[segment].leaves[option])
    assert tuple(blocks) == of.blocks(arch)
    assert chain.assemble(options) == arch


def test_features_say_what_is_there_and_leave_out_what_never_varies() -> None:
    chain = chain_of(space("mobilenetv1-tiny-kernel"))
    # One layer, then two and two, of fixed widths: a share of the kernel and its logarithm each.
    assert [segment.features.shape for segment in chain.segments] == [
        (1, 0),
        (3, 2),
        (9, 4),
        (9, 4),
    ]
    shares = np.array([3, 5, 7]) / 7
    assert chain.segments[1].features == pytest.approx(np.stack([shares, np.log(shares)], axis=1))
    depth = chain_of(space("mobilenetv1-tiny-depth"))
    # A layer that is not there: whether, its two shares; their logarithms are 0 either way.
    assert depth.segments[2].features.tolist() == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
def test_exact_search_finds_what_trying_all_finds(name: str, share: float) -> None:
    of = space(name)
    chain = chain_of(of)
    counts = [range(len(segment.options)) for segment in chain.segments]
    every = [chain.assemble(options) for options in itertools.product(*counts)]
    low, high = of.params(of.smallest), of.params(of.largest)
    limit = low + share * (high - low)
    plan = make_plan(Request(score="macs", limits={"params": limit}), Costs(of), origin={})
    assert isinstance(plan, Plan)
    best = max(of.macs(arch) for arch in every if of.params(arch) <= limit)
    assert of.macs(of.parse(plan.chosen.text)) == best
    assert of.params(of.parse(plan.chosen.text)) <= limit
