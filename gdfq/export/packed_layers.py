"""Layers of a finished student, whose weights are packed codes."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gdfq.nn.conv import QConv2d
from gdfq.nn.linear import QLinear
from gdfq.nn.weight import WeightQuantizer, dequantize
from gdfq.ops.pack_codes import PACKED_BITS, pack_codes, unpack_codes


class Stored(NamedTuple):
    """Format of a packed weight: bits, and shape, dtype and memory format of its float values.

    ``per_kernel``: one scale and zero point for each kernel, not for each output channel.
    """

    weight_bits: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool
    per_kernel: bool = False


class PackedWeight(nn.Module):
    """Mixin for a quantized layer whose weight is codes, scales and zero points.

    Its outputs equal those of the original layer bit for bit; the weight cannot be trained.
    Buffers: ``codes`` (uint8 stream of ``weight_bits`` per code; int8 for 8 bits), ``scale`` (the
    name of the inverse scale in files) and ``zero`` float32 ``(outputs,)`` or, per kernel,
    ``(outputs, inputs)``. The float ``weight`` is kept only if the network also reads it elsewhere.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    stored: Stored

    def _adopt(
        self,
        layer: QConv2d | QLinear | WeightQuantizer,
        stored: Stored,
        device: Any,
        keep_weight: bool = False,
    ) -> None:
        """Take over attributes and submodules of ``layer``, and allocate the buffers."""
        nn.Module.__init__(self)
        for name, value in vars(layer).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                self.__dict__[name] = copy.copy(value)
        self._modules.update(layer._modules)
        self.weight_bits = stored.weight_bits
        self.stored = stored
        packed = stored.weight_bits in PACKED_BITS
        numel = torch.Size(stored.shape).numel()
        self.register_buffer(
            "codes",
            torch.empty(-(-numel * stored.weight_bits // 8), dtype=torch.uint8, device=device)
            if packed
            else torch.empty(stored.shape, dtype=torch.int8, device=device),
        )
        for name in ("weight_lo", "weight_hi"):  # replaced by scale and zero
            self.register_buffer(name, None)
        for name in ("scale", "zero"):
            scales = stored.shape[: 2 if stored.per_kernel else 1]
            self.register_buffer(name, torch.empty(scales, device=device, dtype=torch.float32))
        bias = getattr(layer, "bias", None)
        if bias is not None:
            bias = nn.Parameter(bias.detach(), requires_grad=False)
        self.register_parameter("bias", bias)
        if keep_weight:
            weight = layer.weight
            assert isinstance(weight, nn.Parameter)
            weight.requires_grad = False
            self.register_parameter("weight", weight)

    @property
    def per_kernel(self) -> bool:
        """Whether each kernel of the weight has its own scale."""
        return self.stored.per_kernel

    @property
    def weight_shape(self) -> torch.Size:
        """The weight's shape."""
        return torch.Size(self.stored.shape)

    def weight_codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return int8 codes in the weight's shape, inverse scale and zero point."""
        codes = self.codes
        if codes.dtype == torch.uint8:
            codes = unpack_codes(codes, self.stored.weight_bits, self.stored.shape)
        return codes, self.scale, self.zero

    def _quantized_weight(self) -> Tensor:
        weight = dequantize(*self.weight_codes()).to(self.stored.dtype)
        if self.stored.channels_last:
            # Unlike contiguous(), clone also sets the strides of a 1x1 kernel, which select the
            # convolution's algorithm and thereby its rounding.
            weight = weight.clone(memory_format=torch.channels_last)
        return weight


class PackedConv2d(PackedWeight, QConv2d):
    """:class:`~gdfq.nn.QConv2d` with a packed weight; created by :func:`pack`."""

    def __init__(
        self, layer: QConv2d, stored: Stored, device: Any = None, keep_weight: bool = False
    ) -> None:
        self._adopt(layer, stored, device, keep_weight)


class PackedLinear(PackedWeight, QLinear):  # type: ignore[misc]
    """:class:`~gdfq.nn.QLinear` with a packed weight; created by :func:`pack`."""

    def __init__(
        self, layer: QLinear, stored: Stored, device: Any = None, keep_weight: bool = False
    ) -> None:
        self._adopt(layer, stored, device, keep_weight)


class PackedCall(PackedWeight, WeightQuantizer):
    """:class:`~gdfq.nn.weight.WeightQuantizer` that holds the packed weight itself."""

    def __init__(self, quantizer: WeightQuantizer, stored: Stored, device: Any = None) -> None:
        self._adopt(quantizer, stored, device)

    def forward(self) -> Tensor:  # type: ignore[override]
        """Return the quantized weight."""
        return self._quantized_weight()


class ConstantWeight(nn.Module):
    """The float values of a :class:`PackedCall`, as a replacement for it."""

    weight: Tensor

    def __init__(self, packed: PackedCall) -> None:
        super().__init__()
        self.register_buffer("weight", packed())

    def forward(self) -> Tensor:
        """Return the quantized weight."""
        return self.weight


def allocate_packed(
    layer: QConv2d | QLinear | WeightQuantizer,
    stored: Stored,
    device: Any = None,
    keep_weight: bool = False,
) -> PackedWeight:
    """Create the packed counterpart of ``layer`` with uninitialized codes."""
    if isinstance(layer, WeightQuantizer):
        return PackedCall(layer, stored, device)
    kind = PackedConv2d if isinstance(layer, QConv2d) else PackedLinear
    return kind(layer, stored, device, keep_weight)  # type: ignore[arg-type]


def pack(layer: QConv2d | QLinear, keep_weight: bool = False) -> PackedWeight:
    """Pack the weight of ``layer``; its outputs stay equal bit for bit.

    ``keep_weight`` also keeps the float weight, for other readers in the network.
    """
    if isinstance(layer, PackedWeight):
        return layer
    return _filled(layer, layer.weight, *layer.weight_codes(), keep_weight)


def pack_call(quantizer: WeightQuantizer, weight: Tensor) -> PackedWeight:
    """Return a module whose output equals ``quantizer(weight)`` bit for bit."""
    return _filled(quantizer, weight, *quantizer.codes_of(weight))


def _filled(
    layer: Any,
    weight: Tensor,
    codes: Tensor,
    inv_scale: Tensor,
    zero: Tensor,
    keep_weight: bool = False,
) -> PackedWeight:
    last = torch._prims_common.suggest_memory_format(weight) == torch.channels_last
    per_kernel = inv_scale.dim() == 2
    stored = Stored(layer.weight_bits, tuple(weight.shape), weight.dtype, last, per_kernel)
    packed = allocate_packed(layer, stored, weight.device, keep_weight)
    if stored.weight_bits in PACKED_BITS:
        codes = pack_codes(codes, stored.weight_bits)
    packed.codes.copy_(codes)
    packed.scale.copy_(inv_scale)
    packed.zero.copy_(zero)
    return packed
