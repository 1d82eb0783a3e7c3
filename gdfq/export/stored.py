"""Quantized weights and activations in an ONNX file: integers, scales, zero points."""

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

    ``codes``: float64 integers in the weight's shape; ``zero``, ``scale`` (step size) and ``bias``:
    float64 ``(outputs,)``. ``mean`` and ``spread`` (standard deviation) of each output channel are
    known from the batch norm, else None.
    """

    codes: Tensor
    zero: Tensor
    scale: Tensor
    bias: Tensor | None
    mean: Tensor | None = None
    spread: Tensor | None = None

    @property
    def whole(self) -> Tensor:
        """Weight in units of the step size: ``codes + zero``."""
        return self.codes + _along_outputs(self.zero, self.codes)

    @property
    def values(self) -> Tensor:
        """Weight in float64."""
        return self.whole * _along_outputs(self.scale, self.codes)


def _along_outputs(values: Tensor, weight: Tensor) -> Tensor:
    return values.view(-1, *[1] * (weight.dim() - 1))


@torch.no_grad()
def fold(layer: QConv2d | QLinear, norm: _BatchNorm | None) -> Folded:
    """Fold ``norm`` into the quantized weight of ``layer``.

    With ``g = gamma / sqrt(var + eps)``, the step size is multiplied by ``|g|``, codes and zero
    point take the sign of g, and the bias becomes ``beta + g * (bias - mean)``. Where g is 0, codes
    are 0.
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
    # For code c and zero point z, -(c + z) = (-1 - c) + (1 - z), and -1 - c has as many bits.
    negative, none = g < 0, g == 0
    codes = torch.where(_along_outputs(negative, codes), -1 - codes, codes)
    zero = torch.where(negative, 1 - zero, zero)
    codes = codes.masked_fill(_along_outputs(none, codes), 0)
    zero = zero.masked_fill(none, 0)
    scale = scale * g.abs()
    # A constant output needs a scale above 0, since runtimes divide by it.
    scale = torch.where(none, scale[~none].amin() if (~none).any() else 1.0, scale)
    shifted = -mean if bias is None else bias - mean
    return Folded(codes, zero, scale, beta + g * shifted, beta, gamma.abs())


@dataclass(frozen=True)
class StoredWeight:
    """A weight as stored in a file: ``(codes - zero_points) * scale``.

    ``codes`` int8 (4 bits in the file for ``kind`` ``"int4"``), ``zero_points`` int8 or None for 0,
    ``scale`` float32. For ``kind`` ``"float"``, ``codes`` are the float32 weight and ``scale`` is
    None. ``note`` explains a deviation from the plain form, else it is empty.
    """

    kind: Literal["int8", "int4", "float"]
    codes: Tensor
    zero_points: Tensor | None
    scale: Tensor | None
    note: str = ""


def store(weight: Folded, bits: int, wanted: Weights, zero_points: bool = False) -> StoredWeight:
    """Store ``weight`` exactly, in the first format that fits.

    The order is: int4 if ``wanted``, with zero point 0, then with one per output; int8 with zero
    point 0, then with one per output; float. ``zero_points`` excludes zero point 0.
    """
    whole, scale = weight.whole, weight.scale.float()
    lo = whole.flatten(1).amin(1)
    hi = whole.flatten(1).amax(1)
    offset = -weight.zero
    notes = []
    if wanted == "int4":
        if not zero_points and lo.min() >= -8 and hi.max() <= 7:
            return StoredWeight("int4", whole.to(torch.int8), None, scale)
        if bits <= 4 and offset.min() >= -8 and offset.max() <= 7:
            codes = weight.codes.to(torch.int8)
            return StoredWeight("int4", codes, offset.to(torch.int8), scale)
        notes.append(f"int8 instead of int4: {_why(bits, 4, offset)}")
    if not zero_points and lo.min() >= -127 and hi.max() <= 127:
        return StoredWeight("int8", whole.to(torch.int8), None, scale, "; ".join(notes))
    outside = int(((lo < -127) | (hi > 127)).sum())
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
    """Return the largest weight code that does not saturate with codes up to ``activation``.

    Processors without VNNI add two products in 16 bits (``vpmaddubsw``), with saturation:
    ``2 * activation * weight`` must not exceed 32767.
    """
    return min(127, 32767 // (2 * max(activation, 1)))


def saturation(stored: StoredWeight, activation: int) -> str:
    """Return a note if ``stored`` times codes up to ``activation`` saturates without VNNI."""
    if stored.kind != "int8" or stored.zero_points is not None:
        return ""
    largest = int(stored.codes.to(torch.int16).abs().max())
    if largest <= largest_exact(activation):
        return ""
    return (
        f"weights up to {largest} times activations up to {activation}: integer kernels of "
        "processors without VNNI saturate, which changes results"
    )


def store_symmetric(weight: Folded, activation: int) -> StoredWeight:
    """Store ``weight`` as int8 with zero point 0, for inputs with codes up to ``activation``.

    Codes are multiplied by the largest integer that :func:`largest_exact` allows. This reduces the
    step size, and with it that of the int32 bias. A weight that does not fit is rounded to int8,
    which changes it.
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
    """The grid of a quantized activation: the values ``n / inv_scale``, ``lo <= n <= hi``.

    A file stores n as uint8 ``n + zero_point``; ``zero_point`` is None if that does not fit.
    """

    inv_scale: float
    lo: int
    hi: int
    zero_point: int | None
    bits: int
    note: str = ""

    @property
    def last_code(self) -> int:
        """Largest code in a file."""
        assert self.zero_point is not None
        return self.hi + self.zero_point

    @property
    def step(self) -> float:
        """Step size, rounded to float32."""
        inv_scale = torch.tensor(self.inv_scale, dtype=torch.float32)
        return float(torch.tensor(1.0, dtype=torch.float32) / inv_scale)


@torch.no_grad()
def act_grid(act: QAct) -> Grid:
    """Return the grid of ``act``: its range, clipped to the outputs of its ReLU or ReLU6."""
    levels = 2**act.act_bits - 1
    # In float32, as the quantizer computes it.
    inv_scale = levels * (1 / torch.clamp(act.hi - act.lo, min=1e-8))
    lo = int(torch.round(inv_scale * act.lo))
    hi = lo + levels
    if act.act in ("relu", "relu6"):
        lo, hi = max(lo, 0), max(hi, 0)
    if act.act == "relu6":
        six = int(torch.round(inv_scale * 6))
        lo, hi = min(lo, six), min(hi, six)
    grid = Grid(float(inv_scale), lo, hi, None, act.act_bits)
    zero_point = max(0, -lo)
    if hi + zero_point > 255 or zero_point > 255:
        bounds = f"[{lo / grid.inv_scale:.4g}, {hi / grid.inv_scale:.4g}]"
        note = f"float arithmetic: {bounds} in steps of {grid.step:.4g} does not fit uint8"
        return replace(grid, note=f"{note} with its zero point")
    note = "" if lo <= 0 <= hi else "its range does not contain 0: codes start above 0"
    return replace(grid, zero_point=zero_point, note=note)


def range_grid(lo: float, hi: float) -> Grid:
    """Return the 8-bit grid with a zero point over ``[lo, hi]``, widened to contain 0."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    step = max((hi - lo) / 255, 1e-8)
    zero_point = min(255, max(0, round(-lo / step)))
    return Grid(1 / step, -zero_point, 255 - zero_point, zero_point, 8)
