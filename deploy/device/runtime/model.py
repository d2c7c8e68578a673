"""An exported model, opened from its file and run.

It needs numpy and the one library that reads the format: ``.onnx`` onnxruntime, ``.pt2`` torch,
``.pte`` executorch, ``.safetensors`` torch and this project's ``superfednas``. Two of them may run
code as they are opened, and are asked for ``trust_code`` then: ``.pt2``, whose contents torch may
unpickle, and a ``.safetensors`` whose card names modules.
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .card import Card
from .errors import DeployError, first_line, without_code
from .quiet import quiet

FORMATS = {
    "onnx": ".onnx",
    "torch-export": ".pt2",
    "executorch": ".pte",
    "safetensors": ".safetensors",
}
"""Name and file ending of every format."""
CARD = "superfednas"
"""Place of the card: ONNX metadata key, file name in a ``.pt2``, ExecuTorch method."""
SAFETENSORS_CARD = "superfednas-card"
"""Key of the card in the metadata of a safetensors file."""

Network = Callable[[Sequence[np.ndarray]], np.ndarray]
"""A bare model: from its input arrays, in the order of the arguments, to its output."""


class Model:
    """An exported model, ready to run.

    Parameters
    ----------
    card
        The card: inputs and outputs.
    network
        The bare model; called with at least one row.
    """

    def __init__(self, card: Card, network: Network) -> None:
        self.card = card
        self.network = network

    def run(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run rows of raw numbers, as stored: 8-bit pixels, category numbers.

        Parameters
        ----------
        rows
            One array per input of the card, (N, ...) of its shape: of its type, or other numbers
            that become it without harm (:meth:`.fields.Input.take`), or names of its categories.

        Returns
        -------
        dict
            The outputs (N, ...) by name.

        Raises
        ------
        DeployError
            For other arrays, or numbers that the card does not allow.
        """
        taken = self._take(rows)
        count = len(next(iter(taken.values())))
        name = self.card.output
        if not count:
            return {name: np.empty((0, *self.card.outputs[name].shape), np.float32)}
        read = [
            np.ascontiguousarray(each.prepare(taken[name]))
            for name, each in self.card.inputs.items()
        ]
        return {name: self.network(read)}

    def _take(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if rows.keys() != self.card.inputs.keys():
            raise DeployError(
                f"the network reads {', '.join(self.card.inputs)}, not "
                f"{', '.join(rows) or 'nothing'}"
            )
        taken = {}
        for name, each in self.card.inputs.items():
            try:
                taken[name] = each.take(rows[name])
            except ValueError as error:
                raise DeployError(f"{name} are {error}") from None
        if len({len(array) for array in taken.values()}) > 1:
            counts = ", ".join(f"{len(array)} of {name}" for name, array in rows.items())
            raise DeployError(f"inputs have different numbers of rows: {counts}")
        return taken


def load(path: str | Path, *, threads: int = 0, trust_code: bool = False) -> Model:
    """Open an exported model; the file's ending says how.

    Parameters
    ----------
    path
        A file with one of the endings of :data:`FORMATS`.
    threads
        Threads of the library that runs it; 0 leaves that to the library. For ``.pt2`` and
        ``.safetensors`` they are those of torch in the whole process; ``.pte`` has no such setting.
    trust_code
        Trust the file's code: what torch unpickles of a ``.pt2`` file, and the modules
        (``module:Name``) that the card of a ``.safetensors`` file names, which are imported. The
        other formats run none.

    Raises
    ------
    DeployError
        If the file is missing, damaged, not of this project, or its library is not installed, or
        it may run code that nobody has trusted.
    """
    path = Path(path)
    if path.suffix not in _LOADERS:
        raise DeployError(f"{path}: a model file ends with {', '.join(_LOADERS)}")
    if not path.is_file():
        raise DeployError(f"{path}: there is no such file")
    loader, packages = _LOADERS[path.suffix]
    try:
        return loader(path, threads, trust_code)
    except DeployError:
        raise
    except ImportError as error:
        raise DeployError(
            f"{path}: reading it needs {packages} (pip install {packages}), but {first_line(error)}"
        ) from error
    # Every library raises its own errors, and onnxruntime's have no base but Exception.
    except Exception as error:
        raise DeployError(
            f"{path}: the file is damaged, or another version wrote it ({first_line(error)})"
        ) from error


def _load_onnx(path: Path, threads: int, _: bool) -> Model:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    card = Card.from_json(session.get_modelmeta().custom_metadata_map.get(CARD, ""), str(path))
    card.check_inputs({each.name: each.shape[1:] for each in session.get_inputs()}, str(path))

    def network(read: Sequence[np.ndarray]) -> np.ndarray:
        answers: np.ndarray = session.run(None, dict(zip(card.inputs, read, strict=True)))[0]
        return answers

    return Model(card, network)


def _load_torch_export(path: Path, threads: int, trust_code: bool) -> Model:
    # The card first: foreign files never reach torch, which would log a traceback.
    with zipfile.ZipFile(path) as archive:
        ours = [name for name in archive.namelist() if name.endswith(f"/extra/{CARD}")]
        card = Card.from_json(archive.read(ours[0]).decode() if ours else "", str(path))
    if not trust_code:
        raise DeployError(
            f"{path}: torch may unpickle what is in a .pt2 file, and so run any code: if you trust "
            "where it came from, give --trust-code (in Python: trust_code=True)"
        )
    import torch

    return Model(card, _torch_network(torch.export.load(path).module(), threads))


def _load_safetensors(path: Path, threads: int, trust_code: bool) -> Model:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        card = Card.from_json((file.metadata() or {}).get(SAFETENSORS_CARD, ""), str(path))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    from superfednas.common.imports import NotImportableError
    from superfednas.common.trust import UntrustedCodeError
    from superfednas.supernet.norms import load_measured_state
    from superfednas.wire.described import check_tensors, described_space

    try:
        space = described_space(card.space, path, trust_code=trust_code)
    except UntrustedCodeError as error:
        raise DeployError(str(error)) from None
    except NotImportableError as error:
        raise without_code(path, error) from None
    card.check_inputs({name: each.shape for name, each in space.task.inputs.items()}, str(path))
    arch = space.parse(card.architecture)
    check_tensors(space, arch, tensors)
    module = space.build(arch)
    load_measured_state(module, tensors)
    return Model(card, _torch_network(module, threads))


def _torch_network(module: Callable[..., Any], threads: int) -> Network:
    import torch

    if threads:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def network(read: Sequence[np.ndarray]) -> np.ndarray:
        answers: np.ndarray = module(*map(torch.from_numpy, read)).numpy()
        return answers

    return network


def _load_executorch(path: Path, threads: int, _: bool) -> Model:
    with quiet():
        import torch
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path)
        ours = CARD in program.method_names
        text = program.load_method(CARD).execute([])[0] if ours else ""
        card = Card.from_json(text, str(path))
        forward = program.load_method("forward")

    def network(read: Sequence[np.ndarray]) -> np.ndarray:
        # The file's memory is planned for one row.
        rows = zip(*map(torch.from_numpy, read), strict=True)
        alone = ([one[None] for one in row] for row in rows)
        return np.concatenate([forward.execute(row)[0].numpy() for row in alone])

    return Model(card, network)


_LOADERS: dict[str, tuple[Callable[[Path, int, bool], Model], str]] = {
    ".onnx": (_load_onnx, "onnxruntime"),
    ".pt2": (_load_torch_export, "torch"),
    ".pte": (_load_executorch, "executorch"),
    ".safetensors": (_load_safetensors, "torch safetensors"),
}
