"""Static batch norm, folded into the preceding convolution so that it costs nothing on a device.

A calibrated static batch norm is one factor and one offset per channel, whatever the image: the
factors go into the convolution's weight, the offsets become its bias. Group norm has no such
constants (its mean and variance differ for each image), so it stays.
"""

import copy

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from superfednas.supernet.norms import StaticBatchNorm2d

_EPS = 1e-5  # torch's default, with which StaticBatchNorm2d normalises


def fold(module: nn.Module) -> tuple[nn.Module, int]:
    """Copy a subnet and fold its static batch norms.

    Parameters
    ----------
    module
        A subnet, calibrated if it has static batch norm; left unchanged.

    Returns
    -------
    tuple
        The copy, in evaluation mode, whose tensors share no memory with others and take no
        gradient, and the number of norms folded. A norm that cannot be folded (it follows no
        convolution, or its convolution is also read elsewhere) becomes a
        :class:`torch.nn.BatchNorm2d` with the measured statistics.

    Raises
    ------
    RuntimeError
        If static batch norm is not calibrated.
    """
    copied = copy.deepcopy(module).requires_grad_(False).eval()
    convolutions = _convolutions_before(copied)
    for name, norm in list(copied.named_modules()):
        if not isinstance(norm, StaticBatchNorm2d):
            continue
        plain = _batch_norm(norm)
        if name in convolutions:
            conv = copied.get_submodule(convolutions[name])
            assert isinstance(conv, nn.Conv2d)
            copied.set_submodule(convolutions[name], fuse_conv_bn_eval(conv, plain))
            copied.set_submodule(name, nn.Identity())
        else:
            copied.set_submodule(name, plain)
    return copied, len(convolutions)


def _batch_norm(norm: StaticBatchNorm2d) -> nn.BatchNorm2d:
    if norm.mean is None or norm.variance is None:
        raise RuntimeError("static batch norm: call calibrate(module, batches) before an export")
    plain = nn.BatchNorm2d(len(norm.weight), eps=_EPS).eval()
    plain.weight, plain.bias = norm.weight, norm.bias
    plain.running_mean, plain.running_var = norm.mean, norm.variance
    return plain


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, StaticBatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def _convolutions_before(module: nn.Module) -> dict[str, str]:
    """Map each foldable norm to its convolution, whose result nothing else reads."""
    try:
        nodes = _Tracer().trace(module).nodes
    except (TypeError, ValueError, RuntimeError):
        return {}  # a module that branches on its values has no single graph to read this from
    calls = [node for node in nodes if node.op == "call_module"]
    targets = [str(node.target) for node in calls]
    found = {}
    for node in calls:
        norm, before = str(node.target), node.all_input_nodes[0]
        conv = str(before.target)
        if (
            isinstance(module.get_submodule(norm), StaticBatchNorm2d)
            and before.op == "call_module"
            and isinstance(module.get_submodule(conv), nn.Conv2d)
            and len(before.users) == 1
            and targets.count(norm) == targets.count(conv) == 1
        ):
            found[norm] = conv
    return found
