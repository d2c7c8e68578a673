"""The NumPyClient that trains one subnet: the same class under Ray, on real nodes, in-process."""

import json
import time
from typing import Any

import numpy as np
import torch
from flwr.client import NumPyClient

from client.device import choose_device, own_stream, usable_precision
from client.privacy import privatise
from client.training import train
from data import Augment, Dataset
from nas.accuracy import check_fit, score
from nas.ladder import nested
from supernet import Architecture, SearchSpace, extract
from supernet.config import Scalar, parse
from supernet.wire import (
    PROTOCOL,
    TrainOrder,
    decode_list,
    pack,
    sends_change,
    source_fingerprint,
    source_root,
    unpack,
)


class SubnetClient(NumPyClient):
    """Slice, train and score subnets on one node's data.

    Parameters
    ----------
    name
        The node's stable name; it picks the node's random streams.
    data
        The node's own images.
    augment
        Augmentation for training.
    """

    def __init__(self, name: str, data: Dataset, augment: Augment) -> None:
        self.name = name
        self.data = data
        self.augment = augment

    def fit(
        self, parameters: list[np.ndarray], config: dict[str, Any]
    ) -> tuple[list[np.ndarray], int, dict[str, Any]]:
        """Train the subnet of ``config["architecture"]`` and return its new weights.

        Parameters
        ----------
        parameters
            One flat array: the subnet's tensors in ``state_dict`` order at ``wire-dtype``.
        config
            A flattened :class:`supernet.wire.TrainOrder`.

        Returns
        -------
        tuple
            The new flat array (at 16 bits: what training changed,
            :func:`supernet.wire.sends_change`), the number of training images, and metrics:
            ``loss``, ``seconds``,
            ``round``, ``architecture``, ``evaluation`` (JSON list of [index, accuracy, loss]) and
            ``evaluation-examples`` where an evaluation was ordered, and the code's ``source``.

        Raises
        ------
        ValueError
            For an order of another protocol, or data that do not fit the space.
        """
        started = time.perf_counter()
        order, space, arch, received = self._read(parameters, config)
        metrics = self._evaluate(space, arch, received, order)

        # Not views into the message: the allocator's alignment makes arithmetic repeatable.
        module = space.build(arch)
        module.load_state_dict(received)
        device = choose_device(order.device)
        with own_stream(device):
            result = train(
                module.to(device),
                self.data,
                self.augment,
                order.local,
                seed=order.seed,
                round=order.round,
                name=self.name,
                precision=usable_precision(order.precision, device),
            )
            state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
        if order.privacy.dp_clip:
            state = privatise(state, received, order.privacy)
        metrics |= {
            "loss": result.loss,
            "images": result.images,
            "round": order.round,
            "architecture": arch.to_json(),
            "source": source_fingerprint(),
            "source-root": str(source_root()),
            "seconds": time.perf_counter() - started,
        }
        if sends_change(order.wire_dtype):
            state = {name: tensor - received[name].float() for name, tensor in state.items()}
        return [pack(state, order.wire_dtype)], len(self.data.train), metrics

    def evaluate(
        self, parameters: list[np.ndarray], config: dict[str, Any]
    ) -> tuple[float, int, dict[str, Any]]:
        """Score the subnets of ``config["evaluate"]`` on the node's validation images.

        Parameters
        ----------
        parameters, config
            As for :meth:`fit`; nothing is trained.

        Returns
        -------
        tuple
            The mean loss over the subnets, the number of validation images, and metrics:
            ``evaluation`` and ``evaluation-examples`` as :meth:`fit` gives them, ``architecture``.
        """
        order, space, arch, received = self._read(parameters, config)
        metrics = self._evaluate(space, arch, received, order)
        rows = json.loads(str(metrics.get("evaluation", "[]")))
        loss = sum(row[2] for row in rows) / len(rows) if rows else 0.0
        metrics["architecture"] = arch.to_json()
        return loss, len(self.data.validation), metrics

    def _read(
        self, parameters: list[np.ndarray], config: dict[str, Any]
    ) -> tuple[TrainOrder, SearchSpace, Architecture, dict[str, torch.Tensor]]:
        """Return the order, its space and architecture, and the weights as views."""
        order = parse(TrainOrder, config, ignore_unknown=True)
        if order.protocol != PROTOCOL:
            raise ValueError(f"protocol {order.protocol}: this client speaks {PROTOCOL}")
        _bound_threads(order.torch_threads)
        space = order.space.load()
        check_fit(space, self.data)
        arch = space.parse(order.architecture)
        return order, space, arch, unpack(parameters[0], space.shapes(arch), order.wire_dtype)

    def _evaluate(
        self,
        space: SearchSpace,
        arch: Architecture,
        received: dict[str, torch.Tensor],
        order: TrainOrder,
    ) -> dict[str, Scalar]:
        """Score, as received, every ordered subnet that lies inside the received one."""
        wanted = [space.parse(text) for text in decode_list(order.evaluate)]
        if not wanted or not len(self.data.validation):
            return {}
        outer = space.shapes(arch)
        rows = []
        for index, candidate in enumerate(wanted):
            shapes = space.shapes(candidate)
            if not nested(shapes, outer):
                continue
            module = space.build(candidate)
            module.load_state_dict(extract(received, shapes))
            found = score(
                module.to(choose_device(order.device)),
                self.data.validation,
                self.data.mean,
                self.data.std,
                calibration=self.data.train,
            )
            rows.append([index, found.accuracy, found.loss])
        return {
            "evaluation": json.dumps(rows),
            "evaluation-examples": len(self.data.validation),
        }


def _bound_threads(threads: int) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
