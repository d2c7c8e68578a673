"""DeepFedNAS's zero-cost fitness (arXiv 2601.15127): a score that needs neither weights nor data.

For stages j = 1, …, J of 1 + d_j blocks, C_j output channels and r_j × r_j output pixels, and
convolutions of k × k kernels that read c channels:

    F = H − β·exp(Var(1 + d_j)) + λ·ρ − γ·V
    H = Σ_j ln(r_j²·C_j) · Σ ln(k²·c)        over the stage's convolutions, the shortcut's included
    ρ = L / exp(mean ln(k²·c))               over these and the stem's, L in number
    V = Σ_j max(0, C_j − C_{j+1})

Deviations from the authors' code. The 10⁻⁹ that they add inside logarithms is omitted: it changes
no digit that they print. Channels and pixels are those of the module itself: their formula, but not
their module, takes middle channels from the unrounded product of width and ratio (8 fewer for 7 of
the 200 pairs of their space) and rounds the halves of odd sides down. Their bounds on MACs and ρ
are not part of the score: budgets belong to the search, and their ρ ≤ 0.51 never binds.
"""

from collections.abc import Sequence

import numpy as np

from superfednas.supernet import Architecture, SearchSpace
from superfednas.supernet.families.resnet.chain import ResNetChain

_CHUNK = 1 << 13  # architectures at a time: what is gathered of them stays in a cache


class Fitness:
    """The score of an architecture from six sums over its stages: millions of them a second.

    Parameters
    ----------
    space
        A ResNet family.
    path_weight
        λ: 100 in the authors' search, 1000 where they chose the subnets to train.
    variance_weight
        β, against stages of unequal depth.
    narrowing_weight
        γ, against stages narrower than the one before.

    Raises
    ------
    ValueError
        If the space is not a chain of ResNet stages.
    """

    name = "zero-cost"

    def __init__(
        self,
        space: SearchSpace,
        path_weight: float = 100.0,
        variance_weight: float = 10.0,
        narrowing_weight: float = 1.0,
    ) -> None:
        chain = space.chain
        if not isinstance(chain, ResNetChain):
            raise ValueError(
                f"zero-cost fitness: the space {space.name!r} is no ResNet family, "
                "whose stages and convolutions it is a formula of"
            )
        self.path_weight = path_weight
        self.variance_weight = variance_weight
        self.narrowing_weight = narrowing_weight
        self._chain = chain
        stem = np.zeros((1, len(chain.segments[0].options), 6))
        stem[..., 2:4] = 1, np.log(9 * space.task.inputs["images"].shape[0])
        stages = range(1, len(chain.segments))
        self._statistics = [stem, *(_stage_statistics(chain, segment) for segment in stages)]

    def statistics(self) -> list[np.ndarray]:
        """Return what the options add to the sums from which the fitness is computed.

        Returns
        -------
        list of np.ndarray
            For each segment (states, options, 6), float64: H, V, L, Σ ln(k²·c), Σ (1 + d_j) and
            Σ (1 + d_j)².
        """
        return self._statistics

    def of_statistics(self, sums: np.ndarray) -> np.ndarray:
        """Map sums (..., 6) of :meth:`statistics` over the segments to fitness (...)."""
        entropy, narrowing, convolutions, logarithms, blocks, squares = np.moveaxis(sums, -1, 0)
        stages = len(self._statistics) - 1
        variance = squares / stages - (blocks / stages) ** 2
        path = convolutions / np.exp(logarithms / convolutions)
        result: np.ndarray = (
            entropy
            - self.variance_weight * np.exp(variance)
            + self.path_weight * path
            - self.narrowing_weight * narrowing
        )
        return result

    def of_options(self, options: np.ndarray) -> np.ndarray:
        """Map option indices of the chain (architectures, segments) to fitness (architectures,)."""
        chunks = np.array_split(options, 1 + len(options) // _CHUNK)
        sums = (self._chain.gather(self._statistics, chunk).sum(axis=0) for chunk in chunks)
        return np.concatenate([self.of_statistics(chunk) for chunk in sums])

    def __call__(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return the fitness of each architecture, (architectures,)."""
        located = np.array([self._chain.locate(arch) for arch in archs], dtype=np.int64)
        return self.of_options(located.reshape(-1, len(self._statistics)))


def _stage_statistics(chain: ResNetChain, segment: int) -> np.ndarray:
    """(states, options, 6) of a stage: a state is the channels of its input."""
    options = chain.segments[segment].options
    inputs = np.array(chain.channels[segment - 1], dtype=float)[:, None]
    width = np.array([width for width, _ in options], dtype=float)
    blocks = np.array([len(mids) for _, mids in options], dtype=float)
    second = np.array([np.log(9 * np.array(mids)).sum() for _, mids in options])
    first = np.log(9 * inputs) + (blocks - 1) * np.log(9 * width)
    logarithms = first + second + np.log(inputs)  # the last is the shortcut's, k = 1
    entropy = np.log(chain.sides[segment] ** 2 * width) * logarithms
    # The stem is not a stage: nothing narrows after it.
    narrowing = np.maximum(0, inputs - width) * (segment > 1)
    columns = entropy, narrowing, 1 + 2 * blocks, logarithms, blocks, blocks**2
    return np.stack(np.broadcast_arrays(*columns), axis=-1)
