"""Modules that ``torch.onnx`` exports as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdfq.export.stored import Grid, StoredWeight

INPUT, OUTPUT = "images", "logits"  # of the file
OPSET = 21  # the first with int4; ONNX Runtime has no Q/DQ kernels for some later ones


def _dequantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int | None) -> Tensor:
    operands = [x, scale] if zero_point is None else [x, scale, zero_point]
    return torch.onnx.ops.symbolic(
        "DequantizeLinear",
        operands,
        attrs={} if axis is None else {"axis": axis},
        dtype=torch.float32,
        shape=x.shape,
        version=OPSET,
    )


def _codes(operation: str, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Emit ``operation`` with three operands and a uint8 result."""
    return torch.onnx.ops.symbolic(
        operation, [x, first, second], dtype=torch.uint8, shape=x.shape, version=OPSET
    )


class Quantize(nn.Module):
    """A quantized activation: values clamped to a grid, as uint8 between Q and DQ.

    Args:
        grid: of the values; without a zero point it is computed in float.
        clip_codes: clamp the codes rather than the values, so that nothing lies between an integer
            kernel and its QuantizeLinear; the clamp also computes the ReLU.
    """

    step: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, grid: Grid, clip_codes: bool) -> None:
        super().__init__()
        self.grid = grid
        self.clip_codes = clip_codes
        self.register_buffer("step", torch.tensor(grid.step, dtype=torch.float32))
        if grid.zero_point is not None:
            codes = {"zero_point": grid.zero_point}
            if clip_codes and self._narrower():
                codes["low"], codes["high"] = (grid.zero_point + n for n in (grid.lo, grid.hi))
            for name, code in codes.items():
                self.register_buffer(name, torch.tensor(code, dtype=torch.uint8))

    def _narrower(self) -> bool:
        """Whether the grid uses fewer codes than uint8 has."""
        assert self.grid.zero_point is not None
        return self.grid.lo + self.grid.zero_point > 0 or self.grid.hi + self.grid.zero_point < 255

    def forward(self, x: Tensor) -> Tensor:
        """Round ``x``, of any shape, to the grid."""
        grid = self.grid
        if grid.zero_point is None:
            return torch.clamp(torch.round(x * grid.inv_scale), grid.lo, grid.hi) / grid.inv_scale
        if not self.clip_codes and self._narrower():
            x = torch.clamp(x, grid.lo / grid.inv_scale, grid.hi / grid.inv_scale)
        codes = _codes("QuantizeLinear", x, self.step, self.zero_point)
        if self.clip_codes and self._narrower():
            codes = _codes("Clip", codes, self.low, self.high)
        return _dequantize(codes, self.step, self.zero_point, None)


class Hold(nn.Module):
    """Identity that keeps OpenVINO from moving a DequantizeLinear past the next operation.

    Otherwise OpenVINO computes some operations, such as averages and clips, on codes, and rounds
    the result to a code.

    Args:
        grid: of the input.
    """

    below: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        # One step below the lower bound, whose rounding may differ.
        below = (grid.lo - 1) / grid.inv_scale
        self.register_buffer("below", torch.tensor(below, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, of any shape."""
        return torch.maximum(x, self.below)


class _Weighted(nn.Module):
    """A layer with a stored weight; the bias is an operand, or added to the output."""

    weight: Tensor
    scale: Tensor | None
    zero_points: Tensor | None
    bias: Tensor | None
    int32_bias: Tensor | None
    bias_scale: Tensor

    def __init__(self, stored: StoredWeight, bias: Tensor | None, input_step: float | None) -> None:
        super().__init__()
        self.register_buffer("weight", stored.codes.contiguous())
        self.register_buffer("scale", stored.scale)
        self.register_buffer("zero_points", stored.zero_points)
        self.register_buffer("bias", None)
        self.register_buffer("int32_bias", None)
        if bias is not None and input_step is not None:
            assert stored.scale is not None
            scale = stored.scale.double() * input_step
            self.bias_scale: Tensor
            self.register_buffer("bias_scale", scale.float())
            limits = torch.iinfo(torch.int32)
            codes = torch.round(bias / scale).clamp(limits.min, limits.max)
            self.int32_bias = codes.to(torch.int32)
        elif bias is not None:
            self.bias = bias.float()

    def values(self) -> Tensor:
        """Return the dequantized weight."""
        if self.scale is None:
            return self.weight
        return _dequantize(self.weight, self.scale, self.zero_points, 0)

    def plus_bias(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Add the bias, reshaped to ``shape``, to the output ``y``.

        With float weights, the negative bias is subtracted: with an Add, or nothing, before the
        next quantizer, ONNX Runtime would round such weights and the bias to integers.
        """
        if self.scale is None:
            zeros = y.new_zeros(self.weight.shape[0])
            return y - (zeros if self.bias is None else -self.bias).view(shape)
        return y if self.bias is None else y + self.bias.view(shape)

    def inner_bias(self) -> Tensor | None:
        """Return the int32 bias that is an operand of integer kernels, if any."""
        if self.int32_bias is None:
            return None
        return _dequantize(self.int32_bias, self.bias_scale, None, 0)


class Convolution(_Weighted):
    """A convolution with a stored weight.

    Args:
        conv: gives stride, padding, dilation and groups.
        stored: its weight.
        bias: float64 ``(outputs,)`` or None.
        input_step: step size of the quantized input. The bias is then an int32 operand with a step
            size of ``input_step * stored.scale``, for integer kernels. None adds the bias in float
            after the convolution; as an operand, ONNX Runtime would round it to int32.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        stored: StoredWeight,
        bias: Tensor | None,
        input_step: float | None = None,
    ) -> None:
        super().__init__(stored, bias, input_step)
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.padding = conv.padding
        self.padding_mode = conv.padding_mode
        self.padded = list(conv._reversed_padding_repeated_twice)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, ``(N, C_in, H, W)``."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self.padded, mode=self.padding_mode), (0, 0)
        y = F.conv2d(
            x, self.values(), self.inner_bias(), self.stride, padding, self.dilation, self.groups
        )
        return self.plus_bias(y, (-1, 1, 1))


class Linear(_Weighted):
    """A linear layer with a stored weight, as a Gemm followed by the bias.

    With a MatMul of integer weights, ONNX Runtime would round float inputs to 8 bits.

    Args:
        stored: its weight.
        bias: float64 ``(outputs,)`` or None.
    """

    def __init__(self, stored: StoredWeight, bias: Tensor | None) -> None:
        super().__init__(stored, bias, None)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x``, ``(*, in_features)``."""
        rows = x.reshape(-1, x.shape[-1])
        y = torch.onnx.ops.symbolic(
            "Gemm",
            [rows, self.values()],
            attrs={"transB": 1},
            dtype=torch.float32,
            shape=(rows.shape[0], self.weight.shape[0]),
            version=13,
        )
        y = self.plus_bias(y, (-1,))
        return y if x.dim() == 2 else y.view(*x.shape[:-1], -1)
