"""Peak activation memory of a module, from the order of its operations.

The model: convolutions, poolings and matrix products write a new tensor; everything else that keeps
the shape (norms, activations, additions) works in place where its operand is not needed again; a
tensor is dropped after its last use; the input counts until then, parameters never. This is what a
planned runtime needs; PyTorch's eager mode holds some tensors a little longer.
"""

import torch
from torch import fx, nn

from superfednas.tasks import Inputs

_VIEWS = (nn.Identity, nn.Flatten)
_VIEW_NAMES = (
    "flatten",
    "view",
    "reshape",
    "squeeze",
    "unsqueeze",
    "contiguous",
    "transpose",
    "permute",
)
_NEW = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.AvgPool2d, nn.MaxPool2d)
_NEW_NAMES = ("conv1d", "conv2d", "conv3d", "linear", "matmul", "bmm", "einsum", "mean")


class _Shapes(fx.Interpreter):
    """Run a graph on the meta device and note how many numbers each node gives."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.numbers: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> object:
        """Note a node's size."""
        result = super().run_node(n)
        counts = isinstance(result, torch.Tensor) and n.op != "get_attr"
        self.numbers[n] = result.numel() if counts else 0
        return result


def peak_activations(module: nn.Module, inputs: Inputs) -> int:
    """Return the most numbers alive at once while a module runs on one example.

    Parameters
    ----------
    module
        A module on the meta device that ``torch.fx`` can trace.
    inputs
        What it reads, on the meta device: two examples, as one has no batch statistics.

    Raises
    ------
    ValueError
        Where the module cannot be traced.
    """
    module = module.train()  # uncalibrated static batch norm runs with the batch's statistics
    try:
        traced = fx.symbolic_trace(module)
    except Exception as error:
        raise ValueError(f"peak activations: the module cannot be traced ({error})") from error
    shapes = _Shapes(traced)
    with torch.no_grad():
        shapes.run(*inputs)
    sizes = {node: numbers // 2 for node, numbers in shapes.numbers.items()}
    last = {
        operand: at
        for at, node in enumerate(traced.graph.nodes)
        for operand in node.all_input_nodes
    }
    buffer: dict[fx.Node, fx.Node] = {}  # node to the node whose memory its result lies in
    alive: set[fx.Node] = set()
    peak = 0
    for at, node in enumerate(traced.graph.nodes):
        if node.op == "output":
            break
        needed = {buffer[n] for n in buffer if last.get(n, -1) > at}
        operands = [buffer[n] for n in node.all_input_nodes]
        free = [holder for holder in operands if holder not in needed]
        buffer[node] = _holder(traced, node, sizes, operands, free)
        alive.add(buffer[node])
        peak = max(peak, sum(sizes[holder] for holder in alive))
        alive &= {buffer[n] for n in buffer if last.get(n, -1) > at}
    return peak


def _holder(
    traced: fx.GraphModule,
    node: fx.Node,
    sizes: dict[fx.Node, int],
    operands: list[fx.Node],
    free: list[fx.Node],
) -> fx.Node:
    """Return the node in whose memory an operation's result lies: its own, or an operand's.

    ``operands`` are the holders of what it reads, ``free`` those that nobody reads afterwards.
    """
    if node.op in ("placeholder", "get_attr"):
        return node
    layer = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    name = getattr(node.target, "__name__", str(node.target)) if layer is None else ""
    if isinstance(layer, _VIEWS) or name in _VIEW_NAMES:
        return operands[0]
    if isinstance(layer, _NEW) or name in _NEW_NAMES:
        return node
    return next((holder for holder in free if 0 < sizes[holder] == sizes[node]), node)
