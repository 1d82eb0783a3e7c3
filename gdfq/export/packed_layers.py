"""Layers that keep their weight as packed codes, for a student that is finished."""

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
    """How a weight is kept: bits, shape, dtype and memory format of the values, scales."""

    weight_bits: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool
    per_kernel: bool = False


class PackedWeight(nn.Module):
    """Mixin for a quantized layer whose weight is codes, scales and zero points.

    The forward pass is that of the layer it was made of, bit for bit; the weight cannot be trained.
    Buffers: ``codes`` (uint8, a stream of ``weight_bits`` a code; int8 with 8 bits),
    ``scale`` (in files the name of the inverse scale) and ``zero`` float32 ``(outputs,)``, or
    ``(outputs, inputs)``. A float ``weight`` exists if something besides the layer reads it.
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
        """Take over ``layer``'s arguments and modules, with room for a weight as ``stored``."""
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
        for name in ("weight_lo", "weight_hi"):  # scale and zero point say it all
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
        """Whether each kernel of the weight has a scale of its own."""
        return self.stored.per_kernel

    @property
    def weight_shape(self) -> torch.Size:
        """The weight's shape."""
        return torch.Size(self.stored.shape)

    def weight_codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes ``(weight's shape)``, inverse scale and zero point, of the buffers' shape."""
        codes = self.codes
        if codes.dtype == torch.uint8:
            codes = unpack_codes(codes, self.stored.weight_bits, self.stored.shape)
        return codes, self.scale, self.zero

    def _quantized_weight(self) -> Tensor:
        weight = dequantize(*self.weight_codes()).to(self.stored.dtype)
        if self.stored.channels_last:
            # clone, unlike contiguous(), sets the strides of a 1x1 kernel too, which decide about
            # the convolution's algorithm and so its rounding.
            weight = weight.clone(memory_format=torch.channels_last)
        return weight


class PackedConv2d(PackedWeight, QConv2d):
    """:class:`~gdfq.nn.QConv2d` whose weight is packed codes; made by :func:`pack`."""

    def __init__(
        self, layer: QConv2d, stored: Stored, device: Any = None, keep_weight: bool = False
    ) -> None:
        self._adopt(layer, stored, device, keep_weight)


class PackedLinear(PackedWeight, QLinear):  # type: ignore[misc]
    """:class:`~gdfq.nn.QLinear` whose weight is packed codes; made by :func:`pack`."""

    def __init__(
        self, layer: QLinear, stored: Stored, device: Any = None, keep_weight: bool = False
    ) -> None:
        self._adopt(layer, stored, device, keep_weight)


class PackedCall(PackedWeight, WeightQuantizer):
    """:class:`~gdfq.nn.weight.WeightQuantizer` that has the weight itself, as packed codes."""

    def __init__(self, quantizer: WeightQuantizer, stored: Stored, device: Any = None) -> None:
        self._adopt(quantizer, stored, device)

    def forward(self) -> Tensor:  # type: ignore[override]
        """The quantized weight."""
        return self._quantized_weight()


class ConstantWeight(nn.Module):
    """In the place of a :class:`PackedCall`, its values."""

    weight: Tensor

    def __init__(self, packed: PackedCall) -> None:
        super().__init__()
        self.register_buffer("weight", packed())

    def forward(self) -> Tensor:
        """The quantized weight."""
        return self.weight


def make_room(
    layer: QConv2d | QLinear | WeightQuantizer,
    stored: Stored,
    device: Any = None,
    keep_weight: bool = False,
) -> PackedWeight:
    """The packed counterpart of ``layer``, its codes not set; ``keep_weight``: its weight too."""
    if isinstance(layer, WeightQuantizer):
        return PackedCall(layer, stored, device)
    kind = PackedConv2d if isinstance(layer, QConv2d) else PackedLinear
    return kind(layer, stored, device, keep_weight)  # type: ignore[arg-type]


def pack(layer: QConv2d | QLinear, keep_weight: bool = False) -> PackedWeight:
    """The packed counterpart of ``layer``: the same outputs, bit for bit.

    ``keep_weight``: with the float weight beside, for what else reads it.
    """
    if isinstance(layer, PackedWeight):
        return layer
    return _filled(layer, layer.weight, *layer.weight_codes(), keep_weight)


def pack_call(quantizer: WeightQuantizer, weight: Tensor) -> PackedWeight:
    """What gives ``quantizer(weight)``, bit for bit, without the weight."""
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
    stored = Stored(
        layer.weight_bits, tuple(weight.shape), weight.dtype, last, inv_scale.dim() == 2
    )
    packed = make_room(layer, stored, weight.device, keep_weight)
    if stored.weight_bits in PACKED_BITS:
        codes = pack_codes(codes, stored.weight_bits)
    packed.codes.copy_(codes)
    packed.scale.copy_(inv_scale)
    packed.zero.copy_(zero)
    return packed
