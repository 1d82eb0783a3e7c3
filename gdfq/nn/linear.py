"""Linear layer with fake-quantized weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gdfq.nn.weight import QuantizedWeight


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

    float_layer = nn.Linear
    shape_arguments = ("in_features", "out_features")

    def forward(self, input: Tensor, quantized_weight: Tensor | None = None) -> Tensor:
        """``(*, in_features)``, as ``nn.Linear``.

        ``quantized_weight``: the weight's quantized values, where the caller has them already.
        """
        if quantized_weight is None:
            quantized_weight = self._quantized_weight()
        return F.linear(self._quantize_input(input), quantized_weight, self.bias)
