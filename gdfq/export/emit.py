"""Modules that emit ONNX's QuantizeLinear and DequantizeLinear when ``torch.onnx`` exports them."""

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
    """uint8 codes that ``operation`` makes of ``x`` with its two other operands."""
    return torch.onnx.ops.symbolic(
        operation, [x, first, second], dtype=torch.uint8, shape=x.shape, version=OPSET
    )


class Quantize(nn.Module):
    """A quantized activation: clamped to its grid, and as uint8 between Q and DQ.

    Args:
        grid: of the values. Without a zero point it is computed in float.
        clip_codes: clamp the codes rather than the values: integer kernels then see nothing
            between them and QuantizeLinear, and the activation's ReLU is done by the clamp.
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
                codes["low"], codes["high"] = (grid.zero_point + n for n in (grid.low, grid.high))
            for name, code in codes.items():
                self.register_buffer(name, torch.tensor(code, dtype=torch.uint8))

    def _narrower(self) -> bool:
        """Whether the grid leaves out codes that uint8 has."""
        assert self.grid.zero_point is not None
        return (
            self.grid.low + self.grid.zero_point > 0 or self.grid.high + self.grid.zero_point < 255
        )

    def forward(self, x: Tensor) -> Tensor:
        """``x``, any shape, on the grid."""
        grid = self.grid
        if grid.zero_point is None:
            return (
                torch.clamp(torch.round(x * grid.inv_scale), grid.low, grid.high) / grid.inv_scale
            )
        if not self.clip_codes and self._narrower():
            x = torch.clamp(x, grid.low / grid.inv_scale, grid.high / grid.inv_scale)
        codes = _codes("QuantizeLinear", x, self.step, self.zero_point)
        if self.clip_codes and self._narrower():
            codes = _codes("Clip", codes, self.low, self.high)
        return _dequantize(codes, self.step, self.zero_point, None)


class Hold(nn.Module):
    """Its input, unchanged, by an operation that OpenVINO does not move a DequantizeLinear past.

    What reads it computes with values. Without, OpenVINO computes some operations, averages and
    clips among them, with codes, and rounds what comes out to a code.

    Args:
        grid: that the input is on.
    """

    below: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        # A step below the lowest value, which may have been rounded otherwise.
        self.register_buffer(
            "below", torch.tensor((grid.low - 1) / grid.inv_scale, dtype=torch.float32)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``x``, any shape."""
        return torch.maximum(x, self.below)


class _Weighted(nn.Module):
    """A layer with a stored weight, and a bias that is added behind it or given to it."""

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
        """The weight."""
        if self.scale is None:
            return self.weight
        return _dequantize(self.weight, self.scale, self.zero_points, 0)

    def plus_bias(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """``y`` with the bias, of ``shape``, added behind the operation.

        Weights stored as floats: subtracted, negative. An Add, or nothing between the operation and
        the next quantizer, would have ONNX Runtime round such weights and the bias to integers.
        """
        if self.scale is None:
            zeros = y.new_zeros(self.weight.shape[0])
            return y - (zeros if self.bias is None else -self.bias).view(shape)
        return y if self.bias is None else y + self.bias.view(shape)

    def inner_bias(self) -> Tensor | None:
        """The bias that the operation takes itself: int32, for integer kernels."""
        if self.int32_bias is None:
            return None
        return _dequantize(self.int32_bias, self.bias_scale, None, 0)


class Convolution(_Weighted):
    """A convolution with a stored weight.

    Args:
        conv: whose stride, padding, dilation and groups are taken.
        stored: its weight.
        bias: float64 ``(outputs,)`` or None.
        input_step: that of the quantized input: the bias becomes int32 in steps of it times the
            weight's scale, which integer kernels take. None adds it behind the convolution in
            float: given to it, ONNX Runtime would round it to int32 as well.
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
        """``(N, C_in, H, W)``."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self.padded, mode=self.padding_mode), (0, 0)
        y = F.conv2d(
            x, self.values(), self.inner_bias(), self.stride, padding, self.dilation, self.groups
        )
        return self.plus_bias(y, (-1, 1, 1))


class Linear(_Weighted):
    """A linear layer with a stored weight, as a Gemm; its bias is added behind it.

    As a Gemm, because of a MatMul with integer weights ONNX Runtime rounds a float input to 8 bits.

    Args:
        stored: its weight.
        bias: float64 ``(outputs,)`` or None.
    """

    def __init__(self, stored: StoredWeight, bias: Tensor | None) -> None:
        super().__init__(stored, bias, None)

    def forward(self, x: Tensor) -> Tensor:
        """``(*, in_features)``."""
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
