"""Layers of a finished student, whose weights are packed codes."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gdfq.nn.conv import QConv2d
from gdfq.nn.linear import QLinear
from gdfq.nn.quantization import Bits
from gdfq.nn.weight import WeightQuantizer, dequantize
from gdfq.ops.pack_codes import PACKED_BITS, pack_codes, unpack_codes
from gdfq.settings import Settings


class LayerFacts(Settings):
    """Format of a packed weight: bits, and shape, dtype and memory format of its float values."""

    kind: Literal["conv2d", "linear", "call"]  # "call": an argument of a function
    weight_bits: Bits
    shape: tuple[int, ...]
    dtype: Literal["float32", "float64", "float16", "bfloat16"]
    channels_last: bool
    per_kernel: bool = False  # one scale and zero point for each kernel

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as PyTorch's."""
        return getattr(torch, self.dtype)


class PackedWeight(nn.Module):
    """Mixin for a quantized layer whose weight is codes, scales and zero points.

    Its outputs equal those of the original layer bit for bit; the weight cannot be trained.
    Buffers: ``codes`` (uint8 stream of ``weight_bits`` per code; int8 for 8 bits), ``inv_scale``
    and ``zero`` float32 ``(outputs,)`` or, per kernel, ``(outputs, inputs)``. The float ``weight``
    is kept only if the network also reads it elsewhere (``keep_weight``).
    """

    codes: Tensor
    inv_scale: Tensor
    zero: Tensor
    stored: LayerFacts

    def __init__(
        self,
        layer: QConv2d | QLinear | WeightQuantizer,
        stored: LayerFacts,
        device: Any = None,
        keep_weight: bool = False,
    ) -> None:
        # Attributes and submodules of the layer, and uninitialized buffers.
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
        for name in ("weight_lo", "weight_hi"):  # replaced by inv_scale and zero
            self.register_buffer(name, None)
        for name in ("inv_scale", "zero"):
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
        return codes, self.inv_scale, self.zero

    def _quantized_weight(self) -> Tensor:
        weight = dequantize(*self.weight_codes()).to(self.stored.torch_dtype)
        if self.stored.channels_last:
            # Unlike contiguous(), clone also sets the strides of a 1x1 kernel, which select the
            # convolution's algorithm and thereby its rounding.
            weight = weight.clone(memory_format=torch.channels_last)
        return weight


class PackedConv2d(PackedWeight, QConv2d):
    """:class:`~gdfq.nn.QConv2d` with a packed weight; created by :func:`pack`."""


class PackedLinear(PackedWeight, QLinear):  # type: ignore[misc]
    """:class:`~gdfq.nn.QLinear` with a packed weight; created by :func:`pack`."""


class PackedCall(PackedWeight, WeightQuantizer):
    """:class:`~gdfq.nn.weight.WeightQuantizer` that holds the packed weight itself."""

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


KINDS: dict[str, type[PackedWeight]] = {
    "conv2d": PackedConv2d,
    "linear": PackedLinear,
    "call": PackedCall,
}


def kind_of(layer: QConv2d | QLinear | WeightQuantizer) -> Literal["conv2d", "linear", "call"]:
    """Return the kind of ``layer`` in :class:`LayerFacts`."""
    if isinstance(layer, WeightQuantizer):
        return "call"
    return "conv2d" if isinstance(layer, QConv2d) else "linear"


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
    stored = LayerFacts(
        kind=kind_of(layer),
        weight_bits=layer.weight_bits,
        shape=weight.shape,
        dtype=str(weight.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        channels_last=last,
        per_kernel=inv_scale.dim() == 2,
    )
    packed = KINDS[stored.kind](layer, stored, weight.device, keep_weight)
    if stored.weight_bits in PACKED_BITS:
        codes = pack_codes(codes, stored.weight_bits)
    packed.codes.copy_(codes)
    packed.inv_scale.copy_(inv_scale)
    packed.zero.copy_(zero)
    return packed
