"""The NumPyClient that trains one subnet: the same class under Ray, on real nodes, in-process."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.client import NumPyClient

from client.device import choose_device, own_stream, usable_precision
from client.objective import Objective
from client.personal import Kept, keep, personalise
from client.privacy import privatise
from client.shared_weights import SharedWeights, sampler
from client.training import train
from data import Augment, Dataset
from nas.accuracy import check_fit, score
from supernet import Architecture, SearchSpace, extract
from supernet.config import Scalar, parse
from supernet.slicing import inside
from supernet.streams import Purpose, stream
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
    state_dir
        Where what is personal stays; None keeps none of it.
    """

    def __init__(
        self, name: str, data: Dataset, augment: Augment, state_dir: Path | None = None
    ) -> None:
        self.name = name
        self.data = data
        self.augment = augment
        self.state_dir = state_dir

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
            ``loss``, ``seconds``, ``images``, ``mac-images`` (multiply-accumulates times images,
            forward), ``round``, ``architecture``, ``evaluation`` (JSON list of [index, accuracy,
            loss]) and ``evaluation-examples`` where an evaluation was ordered, and the code's
            ``source``.

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
            module.to(device)
            objective = self._objective(module, space, arch, order, device)
            result = train(
                module,
                self.data,
                self.augment,
                order.local,
                seed=order.seed,
                round=order.round,
                name=self.name,
                precision=usable_precision(order.precision, device),
                objective=objective,
            )
            state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
        if order.privacy.dp_clip:
            state = privatise(state, received, order.privacy)
        metrics |= {
            "loss": result.loss,
            "images": result.images,
            "mac-images": objective.mac_images,
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

        Where ``config["personalise"]`` is set, each is then fine-tuned, on its own, and scored on
        the node's test images before and after; weights stay here.

        Parameters
        ----------
        parameters, config
            As for :meth:`fit`; the weights that came in are only read.

        Returns
        -------
        tuple
            The mean loss over the subnets, the number of validation images, and metrics:
            ``evaluation`` and ``evaluation-examples`` as :meth:`fit` gives them, ``architecture``;
            for personalised ones ``personal``, a JSON list of [index, initial accuracy,
            personalised accuracy], and ``personal-examples``.
        """
        order, space, arch, received = self._read(parameters, config)
        if order.personalise:
            return 0.0, len(self.data.test), self._personalise(space, arch, received, order)
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

    def _objective(
        self,
        module: torch.nn.Module,
        space: SearchSpace,
        arch: Architecture,
        order: TrainOrder,
        device: torch.device,
    ) -> Objective:
        """Return what the order trains of a network: all of it, or subnets that share it."""
        precision, subnets = usable_precision(order.precision, device), order.subnets
        if not subnets.drawn:
            return Objective(module, order.local, space.macs(arch), precision)
        rng = stream(order.seed, Purpose.LOCAL_SUBNETS, round=order.round, name=self.name)
        return SharedWeights(
            module,
            order.local,
            space,
            arch,
            sampler(space, arch, subnets, rng),
            distil=subnets.distil == "on",
            precision=precision,
        )

    def _evaluate(
        self,
        space: SearchSpace,
        arch: Architecture,
        received: dict[str, torch.Tensor],
        order: TrainOrder,
    ) -> dict[str, Scalar]:
        """Score, as received, every ordered subnet that lies inside the received one."""
        if not decode_list(order.evaluate) or not len(self.data.validation):
            return {}
        rows = []
        for index, _, module in self._inside(space, arch, received, order):
            found = score(
                module,
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

    def _personalise(
        self,
        space: SearchSpace,
        arch: Architecture,
        received: dict[str, torch.Tensor],
        order: TrainOrder,
    ) -> dict[str, Scalar]:
        """Fine-tune every ordered subnet that lies inside the received one."""
        rows = []
        for index, candidate, module in self._inside(space, arch, received, order):
            found = personalise(
                module,
                space,
                self.data,
                self.augment,
                order.local,
                order.tuning,
                seed=order.seed,
                name=self.name,
            )
            rows.append([index, found.initial, found.personalised])
            if order.keep and self.state_dir is not None:
                about = Kept(order.keep, order.space, candidate, order.tuning, found)
                keep(self.state_dir, module, self.data, about)
        return {
            "architecture": arch.to_json(),
            "personal": json.dumps(rows),
            "personal-examples": len(self.data.test),
        }

    @staticmethod
    def _inside(
        space: SearchSpace,
        arch: Architecture,
        received: dict[str, torch.Tensor],
        order: TrainOrder,
    ) -> Iterator[tuple[int, Architecture, torch.nn.Module]]:
        """Yield number, architecture and module of every ordered subnet inside the received."""
        outer, device = space.boxes(arch), choose_device(order.device)
        for index, text in enumerate(decode_list(order.evaluate)):
            candidate = space.parse(text)
            boxes = inside(space.boxes(candidate), outer)
            if boxes is not None:
                module = space.build(candidate)
                module.load_state_dict(extract(received, boxes))
                yield index, candidate, module.to(device)


def _bound_threads(threads: int) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
