"""What layers with a fake-quantized weight have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.nn.dynamic_ranges import (
    DynamicRanges,
    check_dynamic_ranges,
    has_dynamic,
    range_axes,
)
from gdfq.nn.qact import QAct
from gdfq.ops._checks import LearnedSte, Ste, check_bits, check_ste
from gdfq.ops.fake_quantize import contain_zero, fake_quantize
from gdfq.ops.fake_quantize_minmax import fake_quantize_minmax
from gdfq.ops.quantize_codes import quantize_codes

if TYPE_CHECKING:
    from typing_extensions import Self


class QuantizedWeight(nn.Module):
    """Mixin for a layer of PyTorch whose ``weight`` has its outputs along dimension 0.

    Arguments and errors are :class:`gdfq.nn.QConv2d`'s.
    """

    float_layer: ClassVar[type[nn.Module]]  # of PyTorch, and the arguments that make one like it
    shape_arguments: ClassVar[tuple[str, ...]]

    weight: Tensor
    bias: Tensor | None
    weight_lo: Tensor | None
    weight_hi: Tensor | None

    def __init__(
        self,
        *args: Any,
        weight_bits: int = 4,
        act_bits: int | None = None,
        ste: Ste = "identity",
        zero_in_range: bool = False,
        dynamic_ranges: DynamicRanges = "none",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_bits(weight_bits, "weight_bits")
        check_ste(ste)
        check_dynamic_ranges(dynamic_ranges)
        self.weight_bits = weight_bits
        self.act_bits = act_bits
        self.ste = ste
        self.zero_in_range = zero_in_range
        self.dynamic_ranges = dynamic_ranges
        self.input_quantizer: QAct | None = None
        self._make_input_quantizer()
        self.register_buffer("weight_lo", None)
        self.register_buffer("weight_hi", None)

    def _make_input_quantizer(self) -> None:
        if self.act_bits is not None:
            self.input_quantizer = QAct(
                self.act_bits,
                "none",
                self.ste,
                device=self.weight.device,
                zero_in_range=self.zero_in_range,
                dynamic_range=has_dynamic(self.dynamic_ranges, "act"),
            )

    @classmethod
    def from_float(
        cls,
        module: nn.Module,
        weight_bits: int = 4,
        act_bits: int | None = None,
        ste: Ste = "identity",
        zero_in_range: bool = False,
        dynamic_ranges: DynamicRanges = "none",
    ) -> Self:
        """Return the quantized counterpart of ``module``, sharing its parameters."""
        if not isinstance(module, cls.float_layer):
            kind = cls.float_layer.__name__
            raise InputError(f"module: must be an nn.{kind}, got {type(module).__name__}")
        quantized = cls(
            **{name: getattr(module, name) for name in cls.shape_arguments},
            bias=module.bias is not None,
            device="meta",
            weight_bits=weight_bits,
            act_bits=act_bits,
            ste=ste,
            zero_in_range=zero_in_range,
            dynamic_ranges=dynamic_ranges,
        )
        quantized.weight, quantized.bias = module.weight, module.bias  # type: ignore[assignment]
        quantized._make_input_quantizer()  # on the weight's device
        return quantized.train(module.training)

    def _quantize_input(self, input: Tensor) -> Tensor:
        return input if self.input_quantizer is None else self.input_quantizer(input)

    def keep_weight_range(self, learned: bool = False) -> None:
        """Keep the weight's range from now on, instead of taking it anew at each forward.

        Its ends are ``weight_lo`` and ``weight_hi``, float32 ``(outputs,)``, at first the minima
        and maxima; buffers, or with ``learned`` parameters, which makes the estimator
        ``"learned"``, see :func:`gdfq.functional.fake_quantize`.

        Raises:
            InputError: the weight's ranges are dynamic.
        """
        if self.dynamic_weight_ranges:
            raise InputError(
                f"dynamic_ranges: {self.dynamic_ranges!r} takes the weight's range anew at each "
                "forward; none can be kept or learned"
            )
        for name, end in zip(("weight_lo", "weight_hi"), self.weight_range(), strict=True):
            if name in self._parameters:
                continue
            if learned:
                del self._buffers[name]
                self.register_parameter(name, nn.Parameter(end.clone()))
            else:
                self.register_buffer(name, end.clone())

    @property
    def learned_weight_range(self) -> bool:
        """Whether the weight's range is trained."""
        return isinstance(self.weight_hi, nn.Parameter)

    @property
    def weight_shape(self) -> torch.Size:
        """The weight's shape."""
        return self.weight.shape

    @property
    def dynamic_weight_ranges(self) -> bool:
        """Whether the weight's ranges are computed in each call, per kernel if that is possible."""
        return has_dynamic(self.dynamic_ranges, "weight")

    @property
    def per_kernel(self) -> bool:
        """Whether each kernel of the weight has a range of its own."""
        return self.dynamic_weight_ranges and has_kernel_ranges(self.weight, self.weight_bits)

    def weight_range(self) -> tuple[Tensor, Tensor]:
        """Both ends of the range that each output's weight is quantized over, ``(outputs,)``.

        Those that are kept, else its minimum and maximum. Of each kernel, ``(outputs, inputs)``,
        where it has a range of its own.
        """
        if self.weight_lo is None or self.weight_hi is None:
            return self.weight_extremes()
        lo, hi = self.weight_lo.detach(), self.weight_hi.detach()
        return contain_zero(lo, hi) if self.zero_in_range else (lo, hi)

    def weight_extremes(self) -> tuple[Tensor, Tensor]:
        """The minima and maxima of each output's weights, of 0 too where ranges contain it.

        Of each kernel's where it has a range of its own.
        """
        lo, hi = _extremes(self.weight, self.per_kernel)
        return contain_zero(lo, hi) if self.zero_in_range else (lo, hi)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # As activations' ranges, these stay float32: the quantizer computes in float32.
        ends = {n: getattr(self, n, None) for n in ("weight_lo", "weight_hi")}
        kept = {n: end.detach() for n, end in ends.items() if end is not None}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = getattr(self, name)
            if after.dtype != torch.float32:
                after.data = before.to(after.device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # A state says by its entries whether ranges are kept; else they are the weights' extremes.
        ends = {f"{prefix}{name}": name for name in ("weight_lo", "weight_hi")}
        given = not ends.keys().isdisjoint(state_dict)
        kept = self.weight_lo is not None
        own = self._parameters.get("weight") is not None
        if given and not kept and own and not self.dynamic_weight_ranges:
            self.keep_weight_range()
        lists = (missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        if kept and not given and f"{prefix}weight" in state_dict:
            missing_keys[:] = [key for key in missing_keys if key not in ends]
            for name, end in zip(ends.values(), self.weight_extremes(), strict=True):
                getattr(self, name).detach().copy_(end)

    def _quantized_weight(self) -> Tensor:
        if self.weight_lo is not None and self.weight_hi is not None:
            ste: LearnedSte = "learned" if self.learned_weight_range else self.ste
            ends = (self.weight_lo, self.weight_hi)
            return fake_quantize(self.weight, *ends, self.weight_bits, 0, ste, self.zero_in_range)
        axis = (0, 1) if self.per_kernel else 0
        options = (self.weight_bits, axis, self.ste, self.zero_in_range)
        return fake_quantize_minmax(self.weight, *options)

    def weight_codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes ``(weight's shape)``, inverse scale and zero point ``(outputs,)`` of the weight.

        Inverse scale and zero point are ``(outputs, inputs)`` where each kernel has its own.
        :func:`dequantize` makes the quantized weight of the three; see
        :func:`gdfq.ops.quantize_codes.quantize_codes`.
        """
        return _codes(self.weight.detach(), *self.weight_range(), self.weight_bits)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        zero = ", zero_in_range=True" if self.zero_in_range else ""
        if self.dynamic_ranges != "none":
            zero += f", dynamic_ranges={self.dynamic_ranges!r}"
        bits = f"weight_bits={self.weight_bits}, act_bits={self.act_bits}"
        return f"{super().extra_repr()}, {bits}{zero}"


class WeightQuantizer(nn.Module):
    """Quantizes a weight that a function is called with, as the layers do their own.

    Args:
        weight_bits: 2 to 8.
        ste: straight-through estimator, ``"identity"`` or ``"clip"``.
        zero_in_range: every range also contains 0.
        dynamic_ranges: ``"weight"`` or ``"both"`` gives each kernel a range of its own, if it has
            at least ``2**weight_bits`` elements.

    Raises:
        InputError: an argument is not one of the above.
    """

    def __init__(
        self,
        weight_bits: int = 4,
        ste: Ste = "identity",
        zero_in_range: bool = False,
        dynamic_ranges: DynamicRanges = "none",
    ) -> None:
        super().__init__()
        check_bits(weight_bits, "weight_bits")
        check_ste(ste)
        check_dynamic_ranges(dynamic_ranges)
        self.weight_bits = weight_bits
        self.ste = ste
        self.zero_in_range = zero_in_range
        self.kernel_ranges = has_dynamic(dynamic_ranges, "weight")

    def per_kernel_of(self, weight: Tensor) -> bool:
        """Whether each kernel of ``weight`` has a range of its own."""
        return self.kernel_ranges and has_kernel_ranges(weight, self.weight_bits)

    def forward(self, weight: Tensor) -> Tensor:
        """``weight``, outputs along dimension 0, quantized per output or per kernel."""
        axis = (0, 1) if self.per_kernel_of(weight) else 0
        return fake_quantize_minmax(weight, self.weight_bits, axis, self.ste, self.zero_in_range)

    def codes_of(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what :meth:`QuantizedWeight.weight_codes` does, of ``weight``."""
        lo, hi = _extremes(weight, self.per_kernel_of(weight))
        ends = contain_zero(lo, hi) if self.zero_in_range else (lo, hi)
        return _codes(weight.detach(), *ends, self.weight_bits)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        zero = ", zero_in_range=True" if self.zero_in_range else ""
        zero += ", kernel_ranges=True" if self.kernel_ranges else ""
        return f"weight_bits={self.weight_bits}, ste={self.ste!r}{zero}"


def has_kernel_ranges(weight: Tensor, bits: int) -> bool:
    """Whether kernels of ``weight`` are large enough for a range each."""
    return range_axes(weight.shape, bits) == (0, 1)


def dequantize(codes: Tensor, inv_scale: Tensor, zero: Tensor) -> Tensor:
    """``(codes + zero) / inv_scale``, with inverse scale and zero point per output or kernel."""
    each = (*inv_scale.shape, *[1] * (codes.dim() - inv_scale.dim()))
    return (codes + zero.view(each)) / inv_scale.view(each)


def _extremes(weight: Tensor, per_kernel: bool) -> tuple[Tensor, Tensor]:
    rows = weight.detach().float().flatten(2 if per_kernel else 1)
    return rows.amin(-1), rows.amax(-1)


def _codes(weight: Tensor, lo: Tensor, hi: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    if lo.dim() == 1:
        return quantize_codes(weight, lo, hi, bits, axis=0)
    kernels, ends = weight.flatten(0, 1), (lo.flatten(), hi.flatten())
    codes, inv_scale, zero = quantize_codes(kernels, *ends, bits, axis=0)
    return codes.view(weight.shape), inv_scale.view(lo.shape), zero.view(lo.shape)
