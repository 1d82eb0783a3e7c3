"""Cross-layer equalization: channels that use an activation's range alike.

Behind a batch norm, ReLU and a quantizer, channel c is divided by ``s_c`` (in the batch norm's
weight and bias) and the weights of the layers that read it are multiplied by it. ``s_c`` is a power
of two, so that the float network computes the same, bit for bit. With the channel's upper bound
``r = bias + 3 * |weight|`` from the batch norm, and the greatest weight m that reads it,
``s = sqrt(r / m)``, divided by its geometric mean over channels; where a depthwise convolution
reads it, whose quantizer has a range for each channel, ``s = r``.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
2019, section 4.1; activations' ranges instead of the first layer's weights as in Meller et al.,
"Same, Same But Different", ICML 2019, because weights have a range per output here.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gdfq.nn import QAct, QConv2d, QLinear
from gdfq.nn.statistics import BATCH_NORMS

LARGEST = 16.0
# Each channel's values stay among themselves, and scale with them.
_PASS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Identity)


@torch.no_grad()
def equalize(student: nn.Module) -> list[str]:
    """Equalize the activations of ``student`` where that leaves its function as it is.

    Where a batch norm's only reader is a ReLU with its quantizer, whose only readers, pooling
    between them aside, are convolutions and linear layers that are called once.

    Returns:
        The quantizers' names that were equalized.
    """
    if not isinstance(student, fx.GraphModule):
        return []
    modules = dict(student.named_modules(remove_duplicate=False))
    calls = Counter(
        id(modules[str(node.target)]) for node in student.graph.nodes if node.op == "call_module"
    )
    done = []

    def called(node: Any, *kinds: type) -> Any:
        """Return the module that ``node`` alone calls, if it is one of ``kinds``, else None."""
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        module = modules[str(node.target)]
        alone = calls[id(module)] == 1 and len(node.args) == 1 and not node.kwargs
        return module if alone and isinstance(module, kinds) else None

    def readers(node: fx.Node) -> list[Any]:
        found: list[Any] = []
        for user in node.users:
            if called(user, *_PASS):
                found += readers(user)
            else:
                found.append(called(user, QConv2d, QLinear))
        return found

    for node in student.graph.nodes:
        q = called(node, QAct)
        source: Any = node.args[0] if q is not None and q.act == "relu" else None
        norm = called(source, _BatchNorm)
        if norm is None or type(norm) not in BATCH_NORMS or not norm.affine:
            continue
        layers = readers(node)
        if len(source.users) > 1 or not layers or not all(map(_fits(norm), layers)):
            continue
        scales = _scales(norm, layers)
        norm.weight.div_(scales)
        norm.bias.div_(scales)
        for layer in layers:
            layer.weight.mul_(_of_inputs(layer, scales))
        done.append(str(node.target))
    return done


def _fits(norm: _BatchNorm) -> Any:
    def fits(layer: Any) -> bool:
        if layer is None or layer.input_quantizer is not None:
            return False
        inputs = layer.in_channels if isinstance(layer, QConv2d) else layer.in_features
        # What pads by anything else than 0 or the values themselves would not scale along: zeros,
        # reflections and replications do. A linear layer behind a flattening has more inputs.
        return bool(inputs == norm.num_features)

    return fits


def _scales(norm: _BatchNorm, layers: list[Any]) -> Tensor:
    reach = norm.bias.detach() + 3 * norm.weight.detach().abs()
    most = torch.zeros_like(reach)
    for layer in layers:
        most = torch.maximum(most, _greatest(layer))
    depthwise = all(isinstance(x, QConv2d) and x.groups == x.in_channels > 1 for x in layers)
    alive = (reach > 1e-4 * reach.abs().max()) & (most > 0)
    if not bool(alive.any()):
        return torch.ones_like(reach)
    ratio = reach if depthwise else (reach / most).clamp(min=1e-12).sqrt()
    logs = torch.log2(torch.where(alive, ratio, 1.0).clamp(min=1e-12))
    logs = logs - logs[alive].mean()
    limit = torch.log2(torch.tensor(LARGEST, device=logs.device, dtype=torch.float32))
    return torch.where(alive, torch.exp2(torch.clamp(logs.round(), -limit, limit)), 1.0)


def _greatest(layer: Any) -> Tensor:
    """Return the greatest absolute weight that reads each input channel."""
    weight = layer.weight.detach().abs()
    groups = getattr(layer, "groups", 1)
    # (groups, outputs, inputs, elements)
    parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return parts.amax((1, 3)).flatten()


def _of_inputs(layer: Any, scales: Tensor) -> Tensor:
    """Return ``scales`` of input channels, in a shape that multiplies ``layer``'s weight."""
    weight = layer.weight
    groups = getattr(layer, "groups", 1)
    per_output = scales.view(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
    return per_output.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.dim() - 2))
