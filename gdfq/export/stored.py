"""Quantized weights and activations as a file has them: integers, scales, zero points."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from gdfq.nn import QAct, QConv2d, QLinear

Weights = Literal["int8", "int4"]


# ---- weights ----


@dataclass(frozen=True)
class Folded:
    """A layer's quantized weight ``(codes + zero) * scale`` with a batch norm folded in.

    ``codes``: float64 whole numbers in the weight's shape; ``zero``, ``scale`` and ``bias``:
    float64 ``(outputs,)``. ``has_norm`` says whether ``mean`` and ``spread`` of the output, per
    channel, are known from a batch norm.
    """

    codes: Tensor
    zero: Tensor
    scale: Tensor
    bias: Tensor | None
    mean: Tensor | None = None
    spread: Tensor | None = None

    @property
    def whole(self) -> Tensor:
        """``codes + zero``."""
        return self.codes + _along_outputs(self.zero, self.codes)

    @property
    def values(self) -> Tensor:
        """The weight."""
        return self.whole * _along_outputs(self.scale, self.codes)


def _along_outputs(values: Tensor, weight: Tensor) -> Tensor:
    return values.view(-1, *[1] * (weight.dim() - 1))


@torch.no_grad()
def fold(layer: QConv2d | QLinear, norm: _BatchNorm | None) -> Folded:
    """The quantized weight of ``layer``, times what ``norm`` scales each output by.

    With ``g = gamma / sqrt(var + eps)``: the scale becomes ``|g| * scale``, codes and zero point
    take the sign of g, and the bias becomes ``beta + g * (bias - mean)``. Where g is 0, so are the
    codes.
    """
    codes, inv_scale, zero = (t.double().cpu() for t in layer.weight_codes())
    bias = None if layer.bias is None else layer.bias.double().cpu()
    scale = 1 / inv_scale
    if norm is None:
        return Folded(codes, zero, scale, bias)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var = norm.running_mean.double().cpu(), norm.running_var.double().cpu()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.double().cpu()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.double().cpu()
    g = gamma / torch.sqrt(var + norm.eps)
    # Of a code c with zero point z, -(c + z) is (-1 - c) + (1 - z): still a code of as many bits.
    negative, none = g < 0, g == 0
    codes = torch.where(_along_outputs(negative, codes), -1 - codes, codes)
    zero = torch.where(negative, 1 - zero, zero)
    codes = codes.masked_fill(_along_outputs(none, codes), 0)
    zero = zero.masked_fill(none, 0)
    scale = scale * g.abs()
    # An output that is constant keeps a scale like the others': runtimes divide by it.
    scale = torch.where(none, scale[~none].amin() if (~none).any() else 1.0, scale)
    shifted = -mean if bias is None else bias - mean
    return Folded(codes, zero, scale, beta + g * shifted, beta, gamma.abs())


@dataclass(frozen=True)
class StoredWeight:
    """A weight as a file has it: ``(codes - zero_points) * scale``.

    ``codes`` int8 (of 4 bits in the file if ``kind`` is ``"int4"``), ``zero_points`` int8 or None
    for 0, ``scale`` float32; with ``kind`` ``"float"``, ``codes`` are float32 values and there is
    no scale. ``note`` says what was done instead of the plain form, empty if nothing was.
    """

    kind: Literal["int8", "int4", "float"]
    codes: Tensor
    zero_points: Tensor | None
    scale: Tensor | None
    note: str = ""


def store(weight: Folded, bits: int, wanted: Weights, zero_points: bool = False) -> StoredWeight:
    """``weight`` with every value kept: the first of these that its codes fit.

    int4 if it is ``wanted``, with zero point 0 or one per output; int8 with zero point 0; int8
    with a zero point per output; float. ``zero_points`` leaves out those with zero point 0.
    """
    whole, scale = weight.whole, weight.scale.float()
    low = whole.flatten(1).amin(1)
    high = whole.flatten(1).amax(1)
    offset = -weight.zero
    notes = []
    if wanted == "int4":
        if not zero_points and low.min() >= -8 and high.max() <= 7:
            return StoredWeight("int4", whole.to(torch.int8), None, scale)
        if bits <= 4 and offset.min() >= -8 and offset.max() <= 7:
            codes = weight.codes.to(torch.int8)
            return StoredWeight("int4", codes, offset.to(torch.int8), scale)
        notes.append(f"int8 instead of int4: {_why(bits, 4, offset)}")
    if not zero_points and low.min() >= -127 and high.max() <= 127:
        return StoredWeight("int8", whole.to(torch.int8), None, scale, "; ".join(notes))
    outside = int(((low < -127) | (high > 127)).sum())
    if offset.min() >= -128 and offset.max() <= 127:
        if not zero_points:
            notes.append(f"a zero point per output: codes of {bits} bits do not fit int8 around 0")
        codes = weight.codes.to(torch.int8)
        return StoredWeight("int8", codes, offset.to(torch.int8), scale, "; ".join(notes))
    note = f"float values on the grid: the range of {outside} outputs lies too far from 0 for int8"
    return StoredWeight("float", weight.values.float(), None, None, note)


def _why(bits: int, width: int, offset: Tensor) -> str:
    if bits > width:
        return f"its codes have {bits} bits"
    outside = int(((offset < -(2 ** (width - 1))) | (offset > 2 ** (width - 1) - 1)).sum())
    return f"the range of {outside} outputs does not contain 0"


def largest_exact(activation: int) -> int:
    """The largest weight that a processor without VNNI multiplies by codes up to ``activation``.

    Such a processor adds two products in 16 bits before it adds on in 32 (``vpmaddubsw``), and
    saturates: ``2 * activation * weight`` must not exceed 32767.
    """
    return min(127, 32767 // (2 * max(activation, 1)))


def saturation(stored: StoredWeight, activation: int) -> str:
    """A note where ``stored``, times codes up to ``activation``, saturates without VNNI."""
    if stored.kind != "int8" or stored.zero_points is not None:
        return ""
    largest = int(stored.codes.to(torch.int16).abs().max())
    if largest <= largest_exact(activation):
        return ""
    return (
        f"weights up to {largest} times activations up to {activation}: integer kernels of "
        "processors without VNNI saturate, and answer otherwise"
    )


def store_symmetric(weight: Folded, activation: int) -> StoredWeight:
    """``weight`` as int8 with zero point 0, for integer kernels whose input's codes end there.

    Codes are multiplied by a whole number, as large as :func:`largest_exact` allows, which makes
    the scale, and with it that of an int32 bias, finer. A weight that does not fit is rounded to
    int8, which changes it.
    """
    whole = weight.whole
    largest = whole.abs().amax().clamp(min=1)
    if largest <= 127:
        factor = torch.floor(largest_exact(activation) / largest).clamp(min=1)
        codes, scale = whole * factor, weight.scale / factor
        return StoredWeight("int8", codes.to(torch.int8), None, scale.float())
    top = whole.abs().flatten(1).amax(1).clamp(min=1)
    codes = torch.round(whole * _along_outputs(127 / top, whole))
    scale = weight.scale * top / 127
    note = "rounded to int8 around 0, which its codes do not fit"
    return StoredWeight("int8", codes.to(torch.int8), None, scale.float(), note)


# ---- activations ----


@dataclass(frozen=True)
class Grid:
    """The grid of a quantized activation: the values ``n / inv_scale``, ``low <= n <= high``.

    In a file, n is stored as uint8 ``n + zero_point``; ``zero_point`` is None where none fits.
    """

    inv_scale: float
    low: int
    high: int
    zero_point: int | None
    bits: int
    note: str = ""

    @property
    def last_code(self) -> int:
        """The largest number that a file stores."""
        assert self.zero_point is not None
        return self.high + self.zero_point

    @property
    def step(self) -> float:
        """Distance between two values, in float32."""
        return float(
            torch.tensor(1.0, dtype=torch.float32)
            / torch.tensor(self.inv_scale, dtype=torch.float32)
        )


@torch.no_grad()
def act_grid(act: QAct) -> Grid:
    """The grid of ``act`` over its range, with the activation's own limits."""
    levels = 2**act.act_bits - 1
    # In float32, as the quantizer computes it.
    inv_scale = levels * (1 / torch.clamp(act.hi - act.lo, min=1e-8))
    low = int(torch.round(inv_scale * act.lo))
    high = low + levels
    if act.act in ("relu", "relu6"):
        low, high = max(low, 0), max(high, 0)
    if act.act == "relu6":
        top = int(torch.round(inv_scale * 6))
        low, high = min(low, top), min(high, top)
    grid = Grid(float(inv_scale), low, high, None, act.act_bits)
    zero_point = max(0, -low)
    if high + zero_point > 255 or zero_point > 255:
        bounds = f"{low / grid.inv_scale:.4g}, {high / grid.inv_scale:.4g}"
        note = f"float arithmetic: [{bounds}] in steps of "
        return replace(grid, note=f"{note}{grid.step:.4g} does not fit uint8 with its zero point")
    note = "" if low <= 0 <= high else "its range does not contain 0: codes start above 0"
    return replace(grid, zero_point=zero_point, note=note)


def range_grid(low: float, high: float) -> Grid:
    """The 8-bit grid with a zero point over ``[low, high]``, widened to contain 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = max((high - low) / 255, 1e-8)
    zero_point = min(255, max(0, round(-low / step)))
    return Grid(1 / step, -zero_point, 255 - zero_point, zero_point, 8)
