"""Quantized drop-in layers for PyTorch, and the teacher that records batch-norm statistics."""

from gdfq.nn.conv import QConv2d
from gdfq.nn.effective_bits import (
    average_weight_bits,
    effective_act_bits,
    effective_weight_bits,
    float_weight_share,
    float_weights,
)
from gdfq.nn.linear import QLinear
from gdfq.nn.qact import QAct
from gdfq.nn.quantization import Quantization
from gdfq.nn.statistics import StatisticsTeacher

__all__ = [
    "QAct",
    "QConv2d",
    "QLinear",
    "Quantization",
    "StatisticsTeacher",
    "average_weight_bits",
    "effective_act_bits",
    "effective_weight_bits",
    "float_weight_share",
    "float_weights",
]
