"""What is known about operations."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gdfq.functional import Activation
from gdfq.nn.statistics import BATCH_NORMS

LAYERS = (nn.Conv2d, nn.Linear)
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

IN_PLACE = (F.relu_, torch.relu_, "relu_")

_POOLS = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
    torch.adaptive_avg_pool1d, torch.mean, "mean",
)  # fmt: skip
_MOVES = (
    nn.Flatten, nn.Unflatten, nn.Identity, nn.ChannelShuffle, nn.PixelShuffle, nn.ZeroPad2d,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, F.dropout, F.dropout2d, F.pad,
    torch.flatten, torch.reshape, torch.cat, torch.concat, torch.chunk, torch.split, torch.stack,
    torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze, getattr, operator.getitem,
    operator.floordiv, "flatten", "reshape", "view", "size", "dim", "chunk", "split", "permute",
    "transpose", "contiguous", "squeeze", "unsqueeze", "detach", "clone",
)  # fmt: skip
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
FLOAT_REASONS: dict[Any, str] = {
    **dict.fromkeys(_POOLS, "pooling: works on values that are quantized already"),
    **dict.fromkeys(_MOVES, "moves values, computes none"),
    **dict.fromkeys(
        BATCH_NORMS, "batch norm: a per-channel scale and shift with frozen statistics"
    ),
}
