"""The NumPyClient that trains one subnet: the same class under Ray, on real nodes, in-process."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.client import NumPyClient

from superfednas.client.allow import NotAllowedError
from superfednas.client.device import choose_device, own_stream, usable_precision
from superfednas.client.objective import Objective
from superfednas.client.personalise import Kept, keep, personalise
from superfednas.client.privacy import privatise
from superfednas.client.shared_weights import SharedWeights, sampler
from superfednas.client.training import train
from superfednas.common.settings import Scalar, parse
from superfednas.common.streams import Purpose, stream
from superfednas.data import Dataset
from superfednas.nas.cost.cost import cost
from superfednas.nas.score.tallies import check_fit, score
from superfednas.supernet import Architecture, SearchSpace, extract
from superfednas.wire.flat import pack, sends_change, unpack
from superfednas.wire.order import PROTOCOL, TrainOrder, decode_list
from superfednas.wire.source import source_fingerprint, source_root


class SubnetClient(NumPyClient):
    """Train and score subnets on one node's data.

    Parameters
    ----------
    name
        The node's stable name, which selects its random streams.
    data
        The node's own examples, and what is learned of them.
    state_dir
        Where personalised subnets are kept; None keeps none.
    limits
        The node's budget, cost to limit, which every order must keep.
    tells_scores
        False keeps to itself what it measures of subnets on its examples.
    on_a_node
        False in a simulation, where the folder of the code is the server's own.
    """

    def __init__(
        self,
        name: str,
        data: Dataset,
        state_dir: Path | None = None,
        *,
        limits: Mapping[str, float] | None = None,
        tells_scores: bool = True,
        on_a_node: bool = False,
    ) -> None:
        self.name = name
        self.data = data
        self.state_dir = state_dir
        self.limits = limits or {}
        self.tells_scores = tells_scores
        self.on_a_node = on_a_node

    def fit(
        self, parameters: list[np.ndarray], config: dict[str, Any]
    ) -> tuple[list[np.ndarray], int, dict[str, Any]]:
        """Train the subnet of ``config["architecture"]`` and return its new weights.

        Parameters
        ----------
        parameters
            One flat array: the subnet's tensors in ``state_dict`` order at ``wire-dtype``.
        config
            A flattened :class:`superfednas.wire.order.TrainOrder`.

        Returns
        -------
        tuple
            The new flat array (at 16 bits: what training changed,
            :func:`superfednas.wire.flat.sends_change`), the number of training images, and
            metrics: ``loss``, ``seconds``, ``images``, ``mac-images`` (multiply-accumulates times
            images, forward), ``round``, ``architecture``, ``evaluation`` (JSON list of [index,
            sums of the task's tally by name]) and ``evaluation-examples`` where an evaluation was
            ordered, and the code's ``source``. A client that keeps its scores leaves out ``loss``
            and ``evaluation``.

        Raises
        ------
        NotAllowedError
            For a subnet beyond the node's budget.
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
        if self.tells_scores:
            metrics["loss"] = result.loss
        if not self.on_a_node:
            metrics["source-root"] = str(source_root())
        metrics |= {
            "images": result.images,
            "mac-images": objective.mac_images,
            "round": order.round,
            "architecture": arch.to_json(),
            "source": source_fingerprint(),
            "seconds": time.perf_counter() - started,
        }
        if sends_change(order.wire_dtype):
            state = {name: tensor - received[name].float() for name, tensor in state.items()}
        return [pack(state, order.wire_dtype)], len(self.data.train), metrics

    def evaluate(
        self, parameters: list[np.ndarray], config: dict[str, Any]
    ) -> tuple[float, int, dict[str, Any]]:
        """Score the subnets of ``config["evaluate"]`` on the node's validation images.

        If ``config["personalise"]`` is set, each is then fine-tuned separately and scored on the
        node's test images before and after; the weights stay here.

        Parameters
        ----------
        parameters, config
            As for :meth:`fit`; the received weights are only read.

        Returns
        -------
        tuple
            The mean loss over the subnets, the number of validation images, and metrics:
            ``evaluation`` and ``evaluation-examples`` as from :meth:`fit`, ``architecture``; for
            personalised subnets ``personal``, a JSON list of [index, initial metric, personalised
            metric], and ``personal-examples``.

        Raises
        ------
        NotAllowedError
            For a subnet beyond the node's budget, and from a client that keeps its scores, unless
            it is to keep personalised subnets.
        ValueError
            As :meth:`fit`.
        """
        order, space, arch, received = self._read(parameters, config)
        keeps = order.personalise and order.keep and self.state_dir is not None
        if not self.tells_scores and not keeps:
            raise NotAllowedError("tell-scores = false: this node keeps its scores to itself")
        if order.personalise:
            found = self._personalise(space, arch, received, order)
            return 0.0, len(self.data.test) if self.tells_scores else 0, found
        metrics = self._evaluate(space, arch, received, order)
        metrics["architecture"] = arch.to_json()
        return 0.0, len(self.data.validation), metrics

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
        self._check_limits(space, arch)
        return order, space, arch, unpack(parameters[0], space.shapes(arch), order.wire_dtype)

    def _check_limits(self, space: SearchSpace, arch: Architecture) -> None:
        """Refuse a subnet beyond the budget: a server may forget what it was told."""
        for name, limit in self.limits.items():
            needed = cost(name).of(space, arch)
            if needed > cost(name).most(limit):
                raise NotAllowedError(
                    f"the subnet's {name} = {needed:,.0f}: this node takes at most max-{name} = "
                    f"{limit:,.0f}"
                )

    def _objective(
        self,
        module: torch.nn.Module,
        space: SearchSpace,
        arch: Architecture,
        order: TrainOrder,
        device: torch.device,
    ) -> Objective:
        """Return the objective of an order: the whole subnet, or several subnets inside it."""
        precision, subnets = usable_precision(order.precision, device), order.subnets
        task = self.data.task
        if not subnets.drawn:
            return Objective(module, task, order.local, space.macs(arch), precision)
        rng = stream(order.seed, Purpose.LOCAL_SUBNETS, round=order.round, name=self.name)
        return SharedWeights(
            module,
            task,
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
        """Score, as received, every ordered subnet inside the received one."""
        asked = decode_list(order.evaluate) if self.tells_scores else []
        if not asked or not len(self.data.validation):
            return {}
        rows = []
        for index, _, module in self._inside(space, arch, received, order):
            rows.append([index, dict(score(module, self.data, self.data.validation).sums)])
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
        """Fine-tune every ordered subnet inside the received one."""
        rows = []
        for index, candidate, module in self._inside(space, arch, received, order):
            found = personalise(
                module,
                space,
                self.data,
                order.local,
                order.tuning,
                seed=order.seed,
                name=self.name,
            )
            rows.append([index, found.initial, found.personalised])
            if order.keep and self.state_dir is not None:
                about = Kept(order.keep, order.space, candidate, order.tuning, found)
                keep(self.state_dir, module, self.data, about)
        if not self.tells_scores:
            return {"architecture": arch.to_json()}
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
        """Yield number, architecture and module of every ordered subnet inside the received one."""
        device = choose_device(order.device)
        for index, text in enumerate(decode_list(order.evaluate)):
            candidate = space.parse(text)
            boxes = space.within(arch, candidate)
            if boxes is not None:
                module = space.build(candidate)
                module.load_state_dict(extract(received, boxes))
                yield index, candidate, module.to(device)


def _bound_threads(threads: int) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
