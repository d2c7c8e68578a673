"""Bounds on replies: what training as ordered can do to weights, and the numbers it can report.

With clipped gradients SGD cannot move weights further than its number of steps times its learning
rate times the largest gradient norm, whatever the data are. A reply beyond that was not trained as
ordered, and averaging it, however finite it is, could ruin the state for good.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import torch

from superfednas.common.settings import Scalar
from superfednas.records.refusals import Refusal
from superfednas.server.average.threads import spread
from superfednas.server.round.check import BadReply, Reply, finite, short
from superfednas.server.round.orders import Order, RoundPlan
from superfednas.server.settings import Settings
from superfednas.supernet import SearchSpace, State
from superfednas.wire.flat import numel, sends_change, unpack
from superfednas.wire.order import LocalSubnets, LocalTraining, Privacy

T = TypeVar("T", LocalTraining, LocalSubnets)

_TIMES = 10.0  # the weights' own norm: training that moves them further has diverged
_TAIL = 6.0  # Gaussian noise of n numbers is longer than its deviation times √n + 6 once in 10⁸
_ROUNDED = 1.01  # a change of 16 bits is off by up to 2⁻⁸ of itself
_ABSOLUTE = 1e-5  # of the weights' norm: what adding up in float32 may add
_LARGEST_EXPONENT = 700.0
_BLOCK = 1 << 16  # numbers
_CLOCKS = 60.0  # seconds by which a node's clock may be faster


def moved(flat: np.ndarray, received: np.ndarray | None, wire_dtype: str) -> float:
    """Return the L2 norm of what training changed; not finite for numbers that are not.

    It is computed in float32, and infinite beyond 10¹⁹.

    Parameters
    ----------
    flat
        The reply.
    received
        The flat array that the client received; None if the reply holds the change (16 bits).
    wire_dtype
        The reply's number format.
    """
    square = 0.0
    difference = np.empty(min(_BLOCK, flat.size), np.float32)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        if received is None:
            change = unpack(block, {"": block.shape}, wire_dtype)[""].float().numpy()
        else:
            change = difference[: block.size]
            np.subtract(block, received[start : start + _BLOCK], out=change)
        square += float(np.dot(change, change))
    return math.sqrt(square)


def norm_of(state: State) -> float:
    """Return a state's L2 norm; not finite if one of its numbers is not, or is beyond 10¹⁹."""
    norms: dict[str, float] = {}

    def measure(name: str) -> None:
        norms[name] = float(torch.linalg.vector_norm(state[name].float()))

    spread(measure, {name: tensor.numel() for name, tensor in state.items()})
    return math.hypot(*norms.values())


def reach(local: LocalTraining, examples: int, weights: float) -> float:
    """Return how far local training can move weights of norm ``weights``, as an L2 norm.

    Each step moves them by at most ``lr · (clip + decay · ‖w‖) / (1 - momentum)``, where the
    momentum's whole later effect is counted with the step that causes it.

    Returns
    -------
    float
        Infinite if gradients are not clipped.
    """
    if not local.clip_norm:
        return math.inf
    steps = local.local_steps or local.local_epochs * math.ceil(examples / local.batch_size)
    rate = local.lr / (1 - local.momentum)
    if not local.weight_decay:
        return steps * rate * local.clip_norm
    growth = steps * math.log1p(rate * local.weight_decay)
    if growth > _LARGEST_EXPONENT:
        return math.inf
    return (weights + local.clip_norm / local.weight_decay) * math.expm1(growth)


def noise(privacy: Privacy, numbers: int) -> float:
    """Return how long the noise of differential privacy on so many numbers may be."""
    return privacy.dp_clip * privacy.dp_noise * (math.sqrt(numbers) + _TAIL)


class Bounds:
    """What each order allows.

    Parameters
    ----------
    settings
        ``max_change``, and what bounds the change of a client that keeps to its order.
    space
        To count multiply-accumulates.
    """

    def __init__(self, settings: Settings, space: SearchSpace) -> None:
        self._settings, self._space = settings, space

    def most(self, plan: RoundPlan, order: Order, weights: float, *, stale: bool = False) -> float:
        """Return the largest L2 norm of a change.

        Parameters
        ----------
        plan, order
            What was ordered.
        weights
            The L2 norm of the target, which that of the subnet does not exceed.
        stale
            Whether the reply has weights of an earlier round, from which the state has moved since.
        """
        s = self._settings
        numbers = numel(order.cut.shapes)
        trained = _TIMES * (weights + 1)
        if s.max_change:
            trained = s.max_change
        elif not stale:
            local = _with(replace(s.local, lr=plan.lr), order.local)
            trained = min(trained, reach(local, order.client.examples or 0, weights))
            if s.privacy.dp_clip:
                trained = min(trained, s.privacy.dp_clip)
        return _ROUNDED * (trained + noise(s.privacy, numbers)) + _ABSOLUTE * (
            weights + math.sqrt(numbers)
        )

    def check(
        self,
        plan: RoundPlan,
        order: Order,
        reply: Reply,
        *,
        weights: float,
        received: np.ndarray,
        late: bool = False,
    ) -> None:
        """Refuse numbers that cannot be, and weights moved further than the order allows.

        Parameters
        ----------
        plan, order, reply
            What was ordered, and what came.
        weights
            The L2 norm of the target.
        received
            The flat array that the client received.
        late
            Whether the reply is to an earlier round; ``received`` is of the state as it is now.

        Raises
        ------
        BadReply
            With :attr:`Refusal.METRIC`, :attr:`Refusal.NOT_FINITE` or :attr:`Refusal.TOO_FAR`.
        """
        self.check_numbers(order, reply, late=late)
        wire = self._settings.wire_dtype
        change_only = sends_change(wire)
        most = self.most(plan, order, weights, stale=late and not change_only)
        with np.errstate(over="ignore", invalid="ignore"):
            change = moved(reply.flat, None if change_only else received, wire)
        if not math.isfinite(change) and not finite(reply.flat, wire):
            raise BadReply(Refusal.NOT_FINITE, "numbers that are not finite")
        if not change <= most:
            raise BadReply(
                Refusal.TOO_FAR,
                f"the weights have moved by {change:.3g} (L2 norm), and training as ordered "
                f"moves them by at most {most:.3g} (setting max-change)",
            )

    def check_numbers(self, order: Order, reply: Reply, *, late: bool = False) -> None:
        """Refuse numbers beside weights that cannot be: ``BadReply`` with ``Refusal.METRIC``."""
        s = self._settings
        local, subnets = _with(s.local, order.local), _with(s.subnets, order.local)
        images = local.local_epochs * (order.client.examples or 0)
        if local.local_steps:
            images = local.local_steps * (local.batch_size + 1)  # a last single image joins a batch
        macs = self._space.macs(order.arch) * max(1, subnets.subnets_per_step)
        for key, value, most in (
            ("seconds", reply.seconds, math.inf if late else s.round_timeout + _CLOCKS),
            ("images", reply.images, images),
            ("mac-images", reply.mac_images, macs * images),
        ):
            if value > most:
                raise BadReply(
                    Refusal.METRIC,
                    f"metric {key} = {short(value)}: the order allows at most {most:g}",
                )


def _with(settings: T, own: Mapping[str, Scalar]) -> T:
    """Return settings with those of them that an order has of its own."""
    names = {field.name for field in fields(settings)}
    given: dict[str, Any] = {key.replace("-", "_"): value for key, value in own.items()}
    return replace(settings, **{key: value for key, value in given.items() if key in names})
