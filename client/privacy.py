"""Differential privacy of what a client sends: clip what training changed, then add noise.

The mechanism is Flower's ``LocalDpMod``'s. It stands here, before the weights are rounded to the
wire's format, so that it is right at every ``wire-dtype`` and in every way to run; and its noise
comes from the system's entropy, not from numpy's global generator, which a user's own code may have
seeded. What it promises and what it does not: docs/privacy.md.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch

from supernet.wire import Privacy


def privatise(
    trained: Mapping[str, torch.Tensor], received: Mapping[str, torch.Tensor], privacy: Privacy
) -> dict[str, torch.Tensor]:
    """Shorten a subnet's change to ``dp_clip`` and add Gaussian noise to every number of it.

    Parameters
    ----------
    trained, received
        The subnet's tensors after and before training, by name. All of them count: statistics that
        a module keeps tell of the data as weights do.
    privacy
        ``dp_clip``, above 0, bounds the L2 norm of the change over all tensors together; the
        noise's standard deviation is ``dp_noise * dp_clip``.

    Returns
    -------
    dict of str to torch.Tensor
        New tensors. Where nothing is clipped and there is no noise, ``trained`` to the last bit; a
        change that is not finite is none, since a reply that fails tells of the data too.
    """
    length = math.sqrt(sum(float(_change(trained, received, n).square().sum()) for n in trained))
    deviation = privacy.dp_noise * privacy.dp_clip
    # Never a stream of the run's seed: the server knows that and could take the noise off again.
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
