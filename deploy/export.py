"""One subnet to one file that runs elsewhere, kept only if it answers as the network does.

The file holds the bare network, float32 normalised images (N, C, H, W) to logits (N, classes) with
any N; what surrounds it (class names, pixel constants, architecture) travels inside as a
:class:`deploy.card.Card`. :mod:`deploy.runtime` reads it.
"""

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data import normalise
from deploy import runtime
from deploy.card import Card, DeployError
from deploy.folding import fold
from deploy.runtime import FORMATS
from supernet.norms import StaticBatchNorm2d

TOLERANCE = 1e-4
"""Largest absolute difference of any logit from the PyTorch module's that is let through."""
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
        One of :data:`deploy.runtime.FORMATS`.
    size
        In bytes.
    difference
        Largest absolute difference of a logit from the PyTorch module's.
    tolerance
        What was allowed.
    images
        Real images on which they were compared, together and one alone.
    folded
        Static batch norms folded into convolutions.
    """

    path: Path
    format: str
    size: int
    difference: float
    tolerance: float
    images: int
    folded: int


def export(
    module: nn.Module,
    card: Card,
    images: torch.Tensor,
    format: str,  # noqa: A002
    out: str | Path,
    *,
    overwrite: bool = False,
) -> Exported:
    """Write a subnet as one file, run that file on real images, and keep it if it agrees.

    Parameters
    ----------
    module
        The subnet (:func:`nas.accuracy.subnet_module`) on the CPU, in evaluation mode, calibrated
        where it holds static batch norm.
    card
        What travels with it.
    images
        uint8, (N, C, H, W), at least one: the file must answer on them as ``module`` does.
    format
        One of :data:`deploy.runtime.FORMATS`.
    out
        The file; its ending is the format's.
    overwrite
        Replace an existing file.

    Raises
    ------
    DeployError
        For an unknown format, one whose packages are not installed, a wrong or existing ``out``,
        images or a card that are not the network's, or a file that answers otherwise; nothing is
        left behind then.
    """
    out = Path(out)
    check_out(format, out, overwrite)
    shape = (card.in_channels, card.image_size, card.image_size)
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != shape or not len(images):
        raise DeployError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; uint8 of shape "
            f"(N, {', '.join(map(str, shape))}) with N at least 1 is needed"
        )
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            part = Path(folder) / out.name
            with runtime.quiet():
                folded = _WRITERS[format](module, card, part)
            difference = _difference(module, card, images, part)
            if not difference <= TOLERANCE:  # written so that NaN fails too
                raise DeployError(
                    f"the {format} file differs from the network by {difference:.3g} in a logit; "
                    f"{TOLERANCE:g} is allowed, so {out} is not written"
                )
            mode = Path(folder) / "mode"  # safetensors makes files that only their owner reads
            mode.touch()
            part.chmod(mode.stat().st_mode)
            part.replace(out)
    except OSError as error:
        raise DeployError(f"{out} cannot be written: {error}") from error
    size = out.stat().st_size
    return Exported(out, format, size, difference, TOLERANCE, len(images), folded)


def check_out(format: str, out: Path, overwrite: bool) -> None:  # noqa: A002
    """Refuse an unknown format, one that is not installed, and a wrong or existing file."""
    if format not in FORMATS:
        raise DeployError(f"format = {format!r}: must be one of {', '.join(FORMATS)}")
    if out.suffix != FORMATS[format]:
        raise DeployError(f"out = {str(out)!r}: a file of {format} ends with {FORMATS[format]}")
    if out.is_dir() or (out.exists() and not overwrite):
        raise DeployError(f"out = {str(out)!r} exists already: name another, or say overwrite")
    if not out.parent.is_dir():
        raise DeployError(f"out = {str(out)!r}: there is no folder {str(out.parent)!r}")
    for name in _PACKAGES.get(format, ()):
        try:
            with runtime.quiet():
                importlib.import_module(name)
        except ImportError as error:
            package = name.partition(".")[0]
            raise DeployError(
                f"format = {format!r} needs {package} (pip install {package}), but "
                f"{runtime.first_line(error)}"
            ) from error


@torch.inference_mode()
def _difference(module: nn.Module, card: Card, images: torch.Tensor, path: Path) -> float:
    """Compare the file's logits with the module's, in one batch and one image alone."""
    together = images if len(images) > 1 else images.expand(2, -1, -1, -1)
    batches = (together, together[:1])
    expected = np.concatenate(
        [module(normalise(batch, card.mean, card.std)).numpy() for batch in batches]
    )
    if expected.shape[1] != len(card.classes):
        raise DeployError(
            f"the card names {len(card.classes)} classes, the network answers {expected.shape[1]}"
        )
    model = runtime.load(path)
    found = np.concatenate(
        [model.logits(runtime.normalise(batch.numpy(), model.card)) for batch in batches]
    )
    return float(np.abs(found - expected).max())


# Writers: (module, card, path) to the number of norms folded


def _write_onnx(module: nn.Module, card: Card, path: Path) -> int:
    import onnx

    network, folded = fold(module)
    program = torch.onnx.export(
        network,
        (_example(card, 2),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["images"],
        output_names=["logits"],
        opset_version=_OPSET,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    # Source lines and scopes of every node: a fifth of a small network's file.
    graph = model.graph
    graph.ClearField("metadata_props")
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.metadata_props.add(key=runtime.CARD, value=card.to_json())
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return folded


def _write_torch_export(module: nn.Module, card: Card, path: Path) -> int:
    network, folded = fold(module)
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (_example(card, 2),), dynamic_shapes=batch)
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)  # half of a small network's graph
    program.example_inputs = None  # would be pickled
    torch.export.save(program, path, extra_files={runtime.CARD: card.to_json()})
    return folded


def _write_executorch(module: nn.Module, card: Card, path: Path) -> int:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    network, folded = fold(module)
    lowered = to_edge_transform_and_lower(
        # One image: the file's memory is planned for the largest batch.
        torch.export.export(network, (_example(card, 1),)),
        partitioner=[XnnpackPartitioner()],
        constant_methods={runtime.CARD: card.to_json()},
    )
    path.write_bytes(lowered.to_executorch().buffer)
    return folded


def _write_safetensors(module: nn.Module, card: Card, path: Path) -> int:
    from safetensors.torch import save_file

    tensors = dict(module.state_dict())
    for name, layer in module.named_modules():
        if isinstance(layer, StaticBatchNorm2d) and layer.mean is not None:
            assert layer.variance is not None
            tensors |= {f"{name}.mean": layer.mean, f"{name}.variance": layer.variance}
    solid = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    save_file(solid, path, {runtime.SAFETENSORS_CARD: card.to_json()})
    return 0


_WRITERS: dict[str, Callable[[nn.Module, Card, Path], int]] = {
    "onnx": _write_onnx,
    "torch-export": _write_torch_export,
    "executorch": _write_executorch,
    "safetensors": _write_safetensors,
}


def _example(card: Card, count: int) -> torch.Tensor:
    # Exporters take a batch of 0 or 1 for a constant, so an open batch is shown as 2.
    return torch.zeros(count, card.in_channels, card.image_size, card.image_size)
