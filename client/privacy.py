"""Differential privacy of what a client sends: the change is clipped, then noise is added.

The mechanism is that of Flower's ``LocalDpMod``. It comes before the weights are rounded to the
wire's format, so that it is correct at every ``wire-dtype`` and in every way to run. Its noise
comes from the system's entropy, not from numpy's global generator, which a user's code may have
seeded. docs/privacy.md says what it promises and what it does not.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch

from superfednas.wire.order import Privacy


def privatise(
    trained: Mapping[str, torch.Tensor], received: Mapping[str, torch.Tensor], privacy: Privacy
) -> dict[str, torch.Tensor]:
    """Clip a subnet's change to ``dp_clip`` and add Gaussian noise to every number.

    Parameters
    ----------
    trained, received
        The subnet's tensors after and before training, by name. All of them count: statistics kept
        by a module reveal the data just as weights do.
    privacy
        ``dp_clip``, above 0, bounds the L2 norm of the change over all tensors together; the
        noise's standard deviation is ``dp_noise * dp_clip``.

    Returns
    -------
    dict of str to torch.Tensor
        New tensors. Without clipping and noise they equal ``trained`` to the last bit. A change
        that is not finite is replaced by no change, because a failing reply would reveal something
        too.
    """
    length = math.sqrt(sum(float(_change(trained, received, n).square().sum()) for n in trained))
    deviation = privacy.dp_noise * privacy.dp_clip
    # Never a stream of the run's seed: the server knows the seed and could subtract the noise.
    random = np.random.default_rng()
    sent = {}
    for name, tensor in trained.items():
        # Not trained - (1 - factor) * change: rounding would break the bound for a huge change.
        if not math.isfinite(length):
            new = received[name].double()
        elif length <= privacy.dp_clip:
            new = tensor.double()
        else:
            change = _change(trained, received, name)
            new = received[name].double() + privacy.dp_clip / length * change
        if deviation:
            noise = np.asarray(random.standard_normal(tuple(tensor.shape)))
            new = new + deviation * torch.from_numpy(noise)
        sent[name] = new.to(tensor.dtype)
    return sent


def _change(
    trained: Mapping[str, torch.Tensor], received: Mapping[str, torch.Tensor], name: str
) -> torch.Tensor:
    return trained[name].double() - received[name].double()
