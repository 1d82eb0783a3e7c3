"""Linear layer with fake-quantized weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gdfq.nn.weight import QuantizedWeight


class QLinear(QuantizedWeight, nn.Linear):  # type: ignore[misc]
    """``nn.Linear`` whose weight is quantized per output feature at each forward.

    The range of an output feature is its minimum and maximum. ``weight`` and ``bias`` are float
    parameters under the same names; the bias is not quantized.

    ``weight_bits``, ``act_bits``, ``ste``, ``zero_in_range`` and ``dynamic_ranges`` are those of
    :class:`QConv2d`, but weights always have one range per output feature. All other arguments, and
    the shapes, are those of ``nn.Linear``.

    Source: Xu et al., ECCV 2020, section 3.3.
    """

    float_layer = nn.Linear
    shape_arguments = ("in_features", "out_features")

    def forward(self, input: Tensor, quantized_weight: Tensor | None = None) -> Tensor:
        """Apply the layer to ``input``, ``(*, in_features)``, as ``nn.Linear``.

        ``quantized_weight``: the quantized weight if the caller has computed it already.
        """
        if quantized_weight is None:
            quantized_weight = self._quantized_weight()
        return F.linear(self._quantize_input(input), quantized_weight, self.bias)
