"""Tables of operations and how the conversion treats them."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gdfq.nn.effective_bits import SUMS
from gdfq.nn.statistics import BATCH_NORMS
from gdfq.ops._checks import Activation

LAYERS = (nn.Conv2d, nn.Linear)
LAYER_CALLS = {F.conv2d: nn.Conv2d, F.linear: nn.Linear}

# ---- activations fused with their quantizer ----

ACTIVATION_MODULES: dict[type, Activation] = {nn.ReLU: "relu", nn.ReLU6: "relu6"}
ACTIVATION_CALLS: dict[Any, Activation] = {
    F.relu: "relu",
    F.relu_: "relu",
    F.relu6: "relu6",
    torch.relu: "relu",
    torch.relu_: "relu",
    "relu": "relu",
    "relu_": "relu",
}
CLAMPS = (torch.clamp, torch.clamp_, torch.clip, torch.clip_, "clamp", "clamp_", "clip", "clip_")
CLAMP_BOUNDS: dict[tuple[Any, Any], Activation] = {(0, None): "relu", (0, 6): "relu6"}

# ---- activations followed by a quantizer ----

FLOAT_ACTIVATION_MODULES = (
    nn.SiLU, nn.Hardswish, nn.GELU, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.PReLU,
    nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardtanh,
    nn.RReLU, nn.Threshold, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink,
)  # fmt: skip
# Names of other libraries' activation classes, such as timm's memory-efficient ones.
FLOAT_ACTIVATION_NAMES = frozenset(
    name + suffix
    for name in (
        "relu", "relu6", "swish", "silu", "hardswish", "hswish", "gelu", "quickgelu", "gelutanh",
        "hardsigmoid", "hsigmoid", "sigmoid", "tanh", "leakyrelu", "prelu", "elu", "selu", "celu",
        "mish", "hardmish", "softplus",
    )
    for suffix in ("", "me", "jit")
)  # fmt: skip
FLOAT_ACTIVATION_CALLS = (
    F.silu, F.hardswish, F.gelu, F.hardsigmoid, F.sigmoid, F.tanh, F.leaky_relu, F.prelu, F.elu,
    F.selu, F.celu, F.mish, F.softplus, F.softsign, F.logsigmoid, F.hardtanh, F.rrelu, F.threshold,
    F.hardshrink, F.softshrink, F.tanhshrink, torch.sigmoid, torch.special.expit, torch.tanh,
    torch.prelu, torch.selu, torch.celu, torch.rrelu, "sigmoid", "tanh", "prelu", "hardshrink",
)  # fmt: skip

# In-place activations and their out-of-place forms.
OUT_OF_PLACE: dict[Any, Any] = {
    F.leaky_relu_: F.leaky_relu,
    F.elu_: F.elu,
    F.selu_: F.selu,
    F.celu_: F.celu,
    F.hardtanh_: F.hardtanh,
    F.rrelu_: F.rrelu,
    torch.sigmoid_: torch.sigmoid,
    torch.tanh_: torch.tanh,
    "sigmoid_": "sigmoid",
    "tanh_": "tanh",
}

# ---- operations that draw random numbers ----

# With their default of ``training``.
DROPOUTS: dict[Any, bool] = {
    F.dropout: True, F.dropout1d: True, F.dropout2d: True, F.dropout3d: True,
    F.alpha_dropout: False, F.feature_alpha_dropout: False,
}  # fmt: skip
DRAWS = (
    torch.rand_like, torch.randn_like, torch.randint_like, torch.bernoulli, torch.multinomial,
    torch.normal, torch.poisson, F.gumbel_softmax, "bernoulli", "bernoulli_", "multinomial",
    "normal_", "uniform_", "random_", "exponential_", "log_normal_", "cauchy_", "geometric_",
)  # fmt: skip

# ---- operations that stay in float ----

_POOLS = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
    torch.max_pool2d, torch.adaptive_avg_pool1d, torch.mean, "mean", torch.amax, "amax",
)  # fmt: skip
_MOVES = (
    nn.Flatten, nn.Unflatten, nn.Identity, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle,
    nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.Upsample, nn.Dropout, nn.Dropout1d,
    nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, F.dropout, F.dropout2d,
    F.alpha_dropout, F.pad, F.interpolate, F.channel_shuffle, F.pixel_shuffle, F.pixel_unshuffle,
    torch.flatten, torch.reshape, torch.cat, torch.concat, torch.chunk, torch.split, torch.stack,
    torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze, torch.roll, getattr,
    operator.getitem, operator.floordiv, "flatten", "reshape", "view", "size", "dim", "chunk",
    "split", "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "expand", "expand_as",
    "unbind", "view_as", "reshape_as", "unflatten", "detach", "clone",
)  # fmt: skip
# Functions of other libraries that are the identity in evaluation mode.
DROPS_BY_NAME = ("stochastic_depth", "drop_path", "drop_block_2d")
_MOVES_BY_NAME = (*DROPS_BY_NAME, "pad_same")
SPLITS = (torch.chunk, torch.split, torch.unbind, "chunk", "split", "unbind")
JOINS = (torch.cat, torch.concat, torch.stack)
_DIFFERENCES = (operator.sub, operator.isub, torch.sub, "sub", "sub_", operator.neg, torch.neg)
_PRODUCTS = (
    operator.mul, operator.imul, torch.mul, "mul", "mul_",
    operator.truediv, operator.itruediv, torch.div, "div", "div_",
)  # fmt: skip
ARITHMETIC: dict[Any, str] = {
    **dict.fromkeys((*SUMS, torch.sum, "sum"), "a sum"),
    **dict.fromkeys(_DIFFERENCES, "a difference"),
    **dict.fromkeys(_PRODUCTS, "a product"),
}
SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")
SHAPE_METHODS = ("size", "dim", "numel")

POOLING = "pooling: averages or picks values, within their range"
MOVING = "moves values, computes none"
_FLOAT_REASONS: dict[Any, str] = {
    **dict.fromkeys(_POOLS, POOLING),
    **dict.fromkeys(_MOVES, MOVING),
    **dict.fromkeys(
        (*BATCH_NORMS, F.batch_norm, torch.batch_norm),
        "batch norm: a per-channel scale and shift with frozen statistics",
    ),
}


def float_reason(operation: Any) -> str | None:
    """Say why a function, method name or module class stays in float; None if it is unknown."""
    if getattr(operation, "__name__", None) in _MOVES_BY_NAME:
        return MOVING
    return _FLOAT_REASONS.get(operation)


def is_float_activation(module: nn.Module) -> bool:
    """Whether ``module`` is an activation that is followed by a separate quantizer."""
    if type(module).__module__.startswith("torch.nn."):
        return type(module) in FLOAT_ACTIVATION_MODULES
    return type(module).__name__.lower() in FLOAT_ACTIVATION_NAMES and not module._modules
