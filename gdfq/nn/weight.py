"""What layers with a fake-quantized weight have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.nn.qact import QAct
from gdfq.ops._checks import LearnedSte, Ste, check_bits, check_ste
from gdfq.ops.fake_quantize import contain_zero, fake_quantize
from gdfq.ops.fake_quantize_minmax import fake_quantize_minmax
from gdfq.ops.quantize_codes import quantize_codes


class QuantizedWeight(nn.Module):
    """Mixin for layers whose ``weight`` has its outputs along dimension 0."""

    weight: Tensor
    weight_lo: Tensor | None
    weight_hi: Tensor | None

    def _init_quantizers(
        self, weight_bits: int, act_bits: int | None, ste: Ste, zero_in_range: bool
    ) -> None:
        check_bits(weight_bits, "weight_bits")
        check_ste(ste)
        self.weight_bits = weight_bits
        self.act_bits = act_bits
        self.ste = ste
        self.zero_in_range = zero_in_range
        self.input_quantizer: QAct | None = None
        self._make_input_quantizer()
        self.register_buffer("weight_lo", None)
        self.register_buffer("weight_hi", None)

    def _make_input_quantizer(self) -> None:
        if self.act_bits is not None:
            device, zero_in_range = self.weight.device, self.zero_in_range
            self.input_quantizer = QAct(
                self.act_bits, "none", self.ste, device=device, zero_in_range=zero_in_range
            )

    def _share_parameters(self, module: nn.Conv2d | nn.Linear) -> None:
        self.weight, self.bias = module.weight, module.bias
        self._make_input_quantizer()
        self.train(module.training)

    def _quantize_input(self, input: Tensor) -> Tensor:
        return input if self.input_quantizer is None else self.input_quantizer(input)

    def keep_weight_range(self, learned: bool = False) -> None:
        """Keep the weight's range from now on, instead of taking it anew at each forward.

        Its ends are ``weight_lo`` and ``weight_hi``, float32 ``(outputs,)``, at first the minima
        and maxima; buffers, or with ``learned`` parameters, which makes the estimator
        ``"learned"``, see :func:`gdfq.functional.fake_quantize`.
        """
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

    def weight_range(self) -> tuple[Tensor, Tensor]:
        """Both ends of the range that each output's weight is quantized over, ``(outputs,)``.

        Those that are kept, else its minimum and maximum.
        """
        if self.weight_lo is None or self.weight_hi is None:
            return self.weight_extremes()
        lo, hi = self.weight_lo.detach(), self.weight_hi.detach()
        return contain_zero(lo, hi) if self.zero_in_range else (lo, hi)

    def weight_extremes(self) -> tuple[Tensor, Tensor]:
        """The minima and maxima of each output's weights, of 0 too where ranges contain it."""
        rows = self.weight.detach().float().flatten(1)
        lo, hi = rows.amin(1), rows.amax(1)
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

    def _quantized_weight(self) -> Tensor:
        if self.weight_lo is not None and self.weight_hi is not None:
            ste: LearnedSte = "learned" if self.learned_weight_range else self.ste
            ends = (self.weight_lo, self.weight_hi)
            return fake_quantize(self.weight, *ends, self.weight_bits, 0, ste, self.zero_in_range)
        return fake_quantize_minmax(self.weight, self.weight_bits, 0, self.ste, self.zero_in_range)

    def weight_codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes ``(weight's shape)``, scale and zero point ``(outputs,)`` of the weight.

        ``(codes + zero) / scale`` is the quantized weight, see
        :func:`gdfq.ops.quantize_codes.quantize_codes`.
        """
        return quantize_codes(self.weight.detach(), *self.weight_range(), self.weight_bits, axis=0)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        zero = ", zero_in_range=True" if self.zero_in_range else ""
        bits = f"weight_bits={self.weight_bits}, act_bits={self.act_bits}"
        return f"{super().extra_repr()}, {bits}{zero}"


class WeightQuantizer(nn.Module):
    """Quantizes a weight that a function is called with, as the layers do their own.

    Args:
        weight_bits: 2 to 8.
        ste: straight-through estimator, ``"identity"`` or ``"clip"``.
        zero_in_range: every range also contains 0.

    Raises:
        InputError: an argument is not one of the above.
    """

    def __init__(
        self, weight_bits: int = 4, ste: Ste = "identity", zero_in_range: bool = False
    ) -> None:
        super().__init__()
        check_bits(weight_bits, "weight_bits")
        check_ste(ste)
        self.weight_bits = weight_bits
        self.ste = ste
        self.zero_in_range = zero_in_range

    def forward(self, weight: Tensor) -> Tensor:
        """``weight``, outputs along dimension 0, quantized per output."""
        return fake_quantize_minmax(weight, self.weight_bits, 0, self.ste, self.zero_in_range)

    def codes_of(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scale and zero point of ``weight``, see :meth:`QuantizedWeight.weight_codes`."""
        weight = weight.detach()
        rows = weight.float().flatten(1)
        ends = rows.amin(1), rows.amax(1)
        return quantize_codes(weight, *ends, self.weight_bits, 0, self.zero_in_range)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        zero = ", zero_in_range=True" if self.zero_in_range else ""
        return f"weight_bits={self.weight_bits}, ste={self.ste!r}{zero}"


def average_weight_bits(model: nn.Module) -> float:
    """Bits of the quantized weights in ``model``, each counted once, averaged over their elements.

    Raises:
        InputError: ``model`` has no quantized weight.
    """
    layers = [module for module in model.modules() if isinstance(module, QuantizedWeight)]
    elements = sum(layer.weight.numel() for layer in layers)
    if not elements:
        raise InputError("model: has no layer with a quantized weight")
    return sum(layer.weight_bits * layer.weight.numel() for layer in layers) / elements
