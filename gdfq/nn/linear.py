"""Linear layer with fake-quantized weights."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.nn.dynamic_ranges import DynamicRanges
from gdfq.nn.weight import QuantizedWeight
from gdfq.ops._checks import Ste


class QLinear(QuantizedWeight, nn.Linear):  # type: ignore[misc]
    """``nn.Linear`` whose weight is quantized per output feature at each forward.

    The range of an output feature is its minimum and maximum, taken anew each time; the bias
    stays float. ``weight`` and ``bias`` are the float parameters, under the same names.

    Args:
        weight_bits: 2 to 8.
        act_bits: quantize the input too, with a :class:`QAct` named ``input_quantizer``; None
            leaves it as it comes.
        ste: straight-through estimator, ``"identity"`` or ``"clip"``.
        zero_in_range: every range, of weights and of the input, also contains 0.
        dynamic_ranges: ``"act"`` or ``"both"`` gives the input ranges that are taken in the call,
            see :mod:`gdfq.nn.dynamic_ranges`; weights keep one per output feature.

    All other arguments, and the shapes, are those of ``nn.Linear``.

    Raises:
        InputError: ``weight_bits``, ``act_bits``, ``ste`` or ``dynamic_ranges`` is not one of the
            above.

    Source: Xu et al., ECCV 2020, section 3.3.
    """

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
        self._init_quantizers(weight_bits, act_bits, ste, zero_in_range, dynamic_ranges)

    @classmethod
    def from_float(
        cls,
        module: nn.Linear,
        weight_bits: int = 4,
        act_bits: int | None = None,
        ste: Ste = "identity",
        zero_in_range: bool = False,
        dynamic_ranges: DynamicRanges = "none",
    ) -> QLinear:
        """The quantized counterpart of ``module``, sharing its parameters."""
        if not isinstance(module, nn.Linear):
            raise InputError(f"module: must be an nn.Linear, got {type(module).__name__}")
        quantized = cls(
            module.in_features,
            module.out_features,
            module.bias is not None,
            device="meta",
            weight_bits=weight_bits,
            act_bits=act_bits,
            ste=ste,
            zero_in_range=zero_in_range,
            dynamic_ranges=dynamic_ranges,
        )
        quantized._share_parameters(module)
        return quantized

    def forward(self, input: Tensor, quantized_weight: Tensor | None = None) -> Tensor:
        """``(*, in_features)``, as ``nn.Linear``.

        ``quantized_weight``: the weight's quantized values, where the caller has them already.
        """
        if quantized_weight is None:
            quantized_weight = self._quantized_weight()
        return F.linear(self._quantize_input(input), quantized_weight, self.bias)
