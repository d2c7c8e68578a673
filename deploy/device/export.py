"""Export of one subnet to one file that runs elsewhere, kept only if it agrees with PyTorch.

The file holds the bare subnet, from prepared inputs to answers for any number of rows; what
surrounds it (how raw numbers are prepared, what answers mean, the architecture) travels inside as a
``Card``. :mod:`superfednas.deploy.device.runtime.model` reads it.
"""

import importlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from superfednas.common.files import written_whole
from superfednas.deploy.device.fold_norms import fold
from superfednas.deploy.device.runtime import model as runtime
from superfednas.deploy.device.runtime.card import Card
from superfednas.deploy.device.runtime.errors import DeployError, first_line
from superfednas.deploy.device.runtime.model import FORMATS
from superfednas.deploy.device.runtime.quiet import quiet
from superfednas.supernet.norms import measured_state
from superfednas.tasks import Input, Inputs

TOLERANCE = 1e-4
"""Largest absolute difference of any number from the PyTorch module's that is let through."""
_OPSET = 20  # onnxruntime 1.17 and later, where group norm from 21 on is slower (1.1 to 1.4 times)
_PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "executorch": ("executorch.exir", "executorch.runtime"),
}


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Parameters
    ----------
    path
        The file.
    format
        One of :data:`superfednas.deploy.device.runtime.model.FORMATS`.
    size
        In bytes.
    difference
        Largest absolute difference of a number from the PyTorch module's.
    tolerance
        What was allowed.
    examples
        Real examples on which they were compared, together and one alone.
    folded
        Static batch norms folded into convolutions.
    """

    path: Path
    format: str
    size: int
    difference: float
    tolerance: float
    examples: int
    folded: int


def export(
    module: nn.Module,
    card: Card,
    rows: Mapping[str, torch.Tensor],
    format: str,  # noqa: A002
    out: str | Path,
    *,
    overwrite: bool = False,
) -> Exported:
    """Write a subnet as one file, run that file on real examples, and keep it if it agrees.

    Parameters
    ----------
    module
        The subnet (``nas.score.tallies.subnet_module``) on the CPU, in evaluation mode,
        calibrated where it holds static batch norm.
    card
        What travels with it.
    rows
        Raw examples, one tensor an input of the card, at least one row: the file must answer on
        them as ``module`` does.
    format
        One of :data:`superfednas.deploy.device.runtime.model.FORMATS`.
    out
        The file; its ending is the format's.
    overwrite
        Replace an existing file.

    Raises
    ------
    DeployError
        For an unknown format, one whose packages are not installed, a wrong or existing ``out``,
        rows or a card that are not the subnet's, or a file that answers otherwise; nothing is left
        behind then.
    """
    out = Path(out)
    check_out(format, out, overwrite)
    examples = _examples(card, rows)
    count = len(next(iter(examples.values())))
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            part = Path(folder) / out.name
            with quiet():
                folded = _WRITERS[format](module, card, _read(card, examples, 2), part)
            difference = _difference(module, card, examples, part)
            if not difference <= TOLERANCE:  # written so that NaN fails too
                raise DeployError(
                    f"the {format} file differs from the network by {difference:.3g} in a number; "
                    f"{TOLERANCE:g} is allowed, so {out} is not written"
                )
            mode = Path(folder) / "mode"  # safetensors makes files that only their owner reads
            mode.touch()
            part.chmod(mode.stat().st_mode)
            part.replace(out)
    except OSError as error:
        raise DeployError(f"{out} cannot be written: {error}") from error
    size = out.stat().st_size
    return Exported(out, format, size, difference, TOLERANCE, count, folded)


def check_out(format: str, out: Path, overwrite: bool) -> None:  # noqa: A002
    """Refuse an unknown format, one that is not installed, and a wrong or existing file."""
    if format not in FORMATS:
        raise DeployError(f"format = {format!r}: must be one of {', '.join(FORMATS)}")
    if out.suffix != FORMATS[format]:
        raise DeployError(f"out = {str(out)!r}: a file of {format} ends with {FORMATS[format]}")
    if out.is_dir() or (out.exists() and not overwrite):
        raise DeployError(f"out = {str(out)!r} exists already: name another, or set overwrite")
    if not out.parent.is_dir():
        raise DeployError(f"out = {str(out)!r}: there is no folder {str(out.parent)!r}")
    for name in _PACKAGES.get(format, ()):
        try:
            with quiet():
                importlib.import_module(name)
        except ImportError as error:
            package = name.partition(".")[0]
            raise DeployError(
                f"format = {format!r} needs {package} (pip install {package}), but "
                f"{first_line(error)}"
            ) from error


def _examples(card: Card, rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Hold rows against the card; return those of its inputs."""
    if not rows.keys() >= card.inputs.keys():
        raise DeployError(f"rows have {', '.join(rows)}; {', '.join(card.inputs)} is needed")
    every = {}
    for name, each in card.inputs.items():
        if not len(rows[name]):
            raise DeployError(f"{name} are none; at least one row is needed")
        try:
            every[name] = torch.from_numpy(each.take(rows[name].numpy()))
        except ValueError as error:
            raise DeployError(f"{name} are {error}") from None
    return every


def _read(card: Card, rows: Mapping[str, torch.Tensor], count: int) -> Inputs:
    """Prepare so many rows, by the arithmetic of training."""
    inputs = {name: Input(**vars(each)) for name, each in card.inputs.items()}
    return tuple(each.prepare(_first(rows[name], count)) for name, each in inputs.items())


@torch.inference_mode()
def _difference(
    module: nn.Module, card: Card, examples: Mapping[str, torch.Tensor], path: Path
) -> float:
    """Compare the file's answers with the module's, in one batch and one row alone."""
    model, found, expected = runtime.load(path, trust_code=True), [], []
    for count in (max(2, len(next(iter(examples.values())))), 1):
        expected.append(module(*_read(card, examples, count)).numpy())
        rows = {name: _first(tensor, count).numpy() for name, tensor in examples.items()}
        found.append(model.run(rows)[card.output])
    shape = card.outputs[card.output].shape
    if expected[0].shape[1:] != shape:
        raise DeployError(
            f"the card says that the network answers {shape}; it answers {expected[0].shape[1:]}"
        )
    return float(np.abs(np.concatenate(found) - np.concatenate(expected)).max())


def _first(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """Return so many rows; of one row, that row again and again."""
    return tensor[:count] if len(tensor) >= count else tensor[:1].repeat_interleave(count, 0)


# Writers: (module, card, two rows as the subnet reads them, path) to the number of norms folded


def _write_onnx(module: nn.Module, card: Card, read: Inputs, path: Path) -> int:
    import onnx

    network, folded = fold(module)
    program = torch.onnx.export(
        network,
        read,
        dynamo=True,
        dynamic_shapes=_any_number(read),
        input_names=list(card.inputs),
        output_names=list(card.outputs),
        opset_version=_OPSET,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    # Source lines and scopes of every node: a fifth of a small subnet's file.
    graph = model.graph
    graph.ClearField("metadata_props")
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.metadata_props.add(key=runtime.CARD, value=card.to_json())
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return folded


def _write_torch_export(module: nn.Module, card: Card, read: Inputs, path: Path) -> int:
    network, folded = fold(module)
    program = torch.export.export(network, read, dynamic_shapes=_any_number(read))
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)  # half of a small network's graph
    program.example_inputs = None  # would be pickled
    torch.export.save(program, path, extra_files={runtime.CARD: card.to_json()})
    return folded


def _write_executorch(module: nn.Module, card: Card, read: Inputs, path: Path) -> int:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    network, folded = fold(module)
    lowered = to_edge_transform_and_lower(
        # One row: the file's memory is planned for the largest batch.
        torch.export.export(network, tuple(tensor[:1] for tensor in read)),
        partitioner=[XnnpackPartitioner()],
        constant_methods={runtime.CARD: card.to_json()},
    )
    path.write_bytes(lowered.to_executorch().buffer)
    return folded


def _write_safetensors(module: nn.Module, card: Card, read: Inputs, path: Path) -> int:
    from safetensors.torch import save_file

    solid = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in measured_state(module).items()
    }
    with written_whole(path) as part:
        save_file(solid, part, {runtime.SAFETENSORS_CARD: card.to_json()})
    return 0


_WRITERS: dict[str, Callable[[nn.Module, Card, Inputs, Path], int]] = {
    "onnx": _write_onnx,
    "torch-export": _write_torch_export,
    "executorch": _write_executorch,
    "safetensors": _write_safetensors,
}


def _any_number(read: Inputs) -> tuple[dict[int, Any], ...]:
    """Return that the rows of all inputs are any number, the same of each."""
    # Exporters take a batch of 0 or 1 for a constant, so an open one is shown as 2.
    batch = torch.export.Dim("batch")
    return tuple({0: batch} for _ in read)
