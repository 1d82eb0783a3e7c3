"""Base of layers with a fake-quantized weight, and quantization of functions' weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.nn.dynamic_ranges import range_axes
from gdfq.nn.qact import QAct
from gdfq.nn.quantization import DEFAULTS, Bits, Quantization, Whose, concerns
from gdfq.ops._checks import LearnedSte, Ste
from gdfq.ops.fake_quantize import contain_zero, fake_quantize
from gdfq.ops.fake_quantize_minmax import fake_quantize_minmax
from gdfq.ops.quantize_codes import quantize_codes
from gdfq.settings import checked

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
        weight_bits: int = DEFAULTS.weight_bits,
        act_bits: int | None = None,
        ste: Ste = DEFAULTS.ste,
        zero_in_range: bool = DEFAULTS.zero_in_range,
        dynamic_ranges: Whose = DEFAULTS.dynamic_ranges,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.weight_bits = checked("weight_bits", weight_bits, Bits)
        self.act_bits = checked("act_bits", act_bits, Bits | None)
        self.ste = checked("ste", ste, Ste)
        self.zero_in_range = checked("zero_in_range", zero_in_range, bool)
        self.dynamic_ranges = checked("dynamic_ranges", dynamic_ranges, Whose)
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
                dynamic_range=concerns(self.dynamic_ranges, "act"),
            )

    @classmethod
    def from_float(
        cls,
        module: nn.Module,
        weight_bits: int = DEFAULTS.weight_bits,
        act_bits: int | None = None,
        ste: Ste = DEFAULTS.ste,
        zero_in_range: bool = DEFAULTS.zero_in_range,
        dynamic_ranges: Whose = DEFAULTS.dynamic_ranges,
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
        """Store the weight's range instead of computing it at each forward.

        ``weight_lo`` and ``weight_hi``, float32 ``(outputs,)``, are initialized with minima and
        maxima. They are buffers or, with ``learned``, parameters trained with the estimator
        ``"learned"``, see :func:`gdfq.functional.fake_quantize`.

        Raises:
            InputError: the weight's ranges are dynamic.
        """
        if self.dynamic_range:
            raise InputError(
                f"dynamic_ranges: {self.dynamic_ranges!r} computes the weight's range at each "
                "forward; it cannot be stored or learned"
            )
        for name, bound in zip(("weight_lo", "weight_hi"), self.weight_range(), strict=True):
            if name in self._parameters:
                continue
            if learned:
                del self._buffers[name]
                self.register_parameter(name, nn.Parameter(bound.clone()))
            else:
                self.register_buffer(name, bound.clone())

    @property
    def learned_weight_range(self) -> bool:
        """Whether the weight's range is trained."""
        return isinstance(self.weight_hi, nn.Parameter)

    @property
    def weight_shape(self) -> torch.Size:
        """The weight's shape."""
        return self.weight.shape

    @property
    def dynamic_range(self) -> bool:
        """Whether the weight's ranges are computed at each forward, per kernel if possible."""
        return concerns(self.dynamic_ranges, "weight")

    @property
    def per_kernel(self) -> bool:
        """Whether each kernel of the weight has its own range."""
        return self.dynamic_range and has_kernel_ranges(self.weight, self.weight_bits)

    def weight_range(self) -> tuple[Tensor, Tensor]:
        """Return lower and upper bounds of the weight's ranges.

        Their shape is ``(outputs,)``, or ``(outputs, inputs)`` per kernel. Without stored bounds
        they are :meth:`weight_minmax`.
        """
        if self.weight_lo is None or self.weight_hi is None:
            return self.weight_minmax()
        lo, hi = self.weight_lo.detach(), self.weight_hi.detach()
        return contain_zero(lo, hi) if self.zero_in_range else (lo, hi)

    def weight_minmax(self) -> tuple[Tensor, Tensor]:
        """Return minima and maxima of the weight per output or per kernel.

        With ``zero_in_range``, they are widened to contain 0.
        """
        lo, hi = _minmax(self.weight, self.per_kernel)
        return contain_zero(lo, hi) if self.zero_in_range else (lo, hi)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Ranges stay float32 under .half() and .bfloat16(): the quantizer computes in float32.
        bounds = {n: getattr(self, n, None) for n in ("weight_lo", "weight_hi")}
        kept = {n: bound.detach() for n, bound in bounds.items() if bound is not None}
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
        # A state with bounds makes the layer store them; one without resets them to min and max.
        bounds = {f"{prefix}{name}": name for name in ("weight_lo", "weight_hi")}
        given = not bounds.keys().isdisjoint(state_dict)
        kept = self.weight_lo is not None
        own = self._parameters.get("weight") is not None
        if given and not kept and own and not self.dynamic_range:
            self.keep_weight_range()
        lists = (missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        if kept and not given and f"{prefix}weight" in state_dict:
            missing_keys[:] = [key for key in missing_keys if key not in bounds]
            for name, bound in zip(bounds.values(), self.weight_minmax(), strict=True):
                getattr(self, name).detach().copy_(bound)

    def _quantized_weight(self) -> Tensor:
        if self.weight_lo is not None and self.weight_hi is not None:
            ste: LearnedSte = "learned" if self.learned_weight_range else self.ste
            lo, hi = self.weight_lo, self.weight_hi
            return fake_quantize(self.weight, lo, hi, self.weight_bits, 0, ste, self.zero_in_range)
        axis = (0, 1) if self.per_kernel else 0
        options = (self.weight_bits, axis, self.ste, self.zero_in_range)
        return fake_quantize_minmax(self.weight, *options)

    def weight_codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return int8 codes in the weight's shape, inverse scale and zero point.

        The last two are ``(outputs,)``, or ``(outputs, inputs)`` per kernel. :func:`dequantize`
        computes the quantized weight from all three. See
        :func:`gdfq.ops.quantize_codes.quantize_codes`.
        """
        return _codes(self.weight.detach(), *self.weight_range(), self.weight_bits)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        zero = ", zero_in_range=True" if self.zero_in_range else ""
        if self.dynamic_ranges != "none":
            zero += f", dynamic_ranges={self.dynamic_ranges!r}"
        bits = f"weight_bits={self.weight_bits}, act_bits={self.act_bits}"
        return f"{super().extra_repr()}, {bits}{zero}"


class WeightQuantizer(nn.Module):
    """Quantizes the weight argument of a function (``F.conv2d``, ``F.linear``) like a layer's.

    Args:
        weight_bits: 2 to 8.
        how: the other settings. With dynamic ranges of weights, each kernel with at least
            ``2**weight_bits`` elements has its own range.
    """

    def __init__(self, weight_bits: int, how: Quantization) -> None:
        super().__init__()
        self.weight_bits = weight_bits
        self.ste = how.ste
        self.zero_in_range = how.zero_in_range
        self.dynamic_range = how.is_dynamic("weight")

    def per_kernel_of(self, weight: Tensor) -> bool:
        """Whether each kernel of ``weight`` has its own range."""
        return self.dynamic_range and has_kernel_ranges(weight, self.weight_bits)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize ``weight``, with outputs along dimension 0, per output or per kernel."""
        axis = (0, 1) if self.per_kernel_of(weight) else 0
        return fake_quantize_minmax(weight, self.weight_bits, axis, self.ste, self.zero_in_range)

    def codes_of(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes of ``weight``, as :meth:`QuantizedWeight.weight_codes` does."""
        lo, hi = _minmax(weight, self.per_kernel_of(weight))
        bounds = contain_zero(lo, hi) if self.zero_in_range else (lo, hi)
        return _codes(weight.detach(), *bounds, self.weight_bits)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        zero = ", zero_in_range=True" if self.zero_in_range else ""
        zero += ", dynamic_range=True" if self.dynamic_range else ""
        return f"weight_bits={self.weight_bits}, ste={self.ste!r}{zero}"


def has_kernel_ranges(weight: Tensor, bits: int) -> bool:
    """Whether kernels of ``weight`` are large enough for their own ranges."""
    return range_axes(weight.shape, bits) == (0, 1)


def dequantize(codes: Tensor, inv_scale: Tensor, zero: Tensor) -> Tensor:
    """Return ``(codes + zero) / inv_scale``; the latter two per output or per kernel."""
    shape = (*inv_scale.shape, *[1] * (codes.dim() - inv_scale.dim()))
    return (codes + zero.view(shape)) / inv_scale.view(shape)


def _minmax(weight: Tensor, per_kernel: bool) -> tuple[Tensor, Tensor]:
    rows = weight.detach().float().flatten(2 if per_kernel else 1)
    return rows.amin(-1), rows.amax(-1)


def _codes(weight: Tensor, lo: Tensor, hi: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    if lo.dim() == 1:
        return quantize_codes(weight, lo, hi, bits, axis=0)
    kernels = weight.flatten(0, 1)
    codes, inv_scale, zero = quantize_codes(kernels, lo.flatten(), hi.flatten(), bits, axis=0)
    return codes.view(weight.shape), inv_scale.view(lo.shape), zero.view(lo.shape)
