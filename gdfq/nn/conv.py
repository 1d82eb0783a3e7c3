"""Convolution with fake-quantized weights."""

from __future__ import annotations

from torch import Tensor, nn

from gdfq.nn.weight import QuantizedWeight


class QConv2d(QuantizedWeight, nn.Conv2d):
    """``nn.Conv2d`` whose weight is quantized per output channel at each forward.

    The range of an output channel is its minimum and maximum. ``weight`` and ``bias`` are float
    parameters under the same names; the bias is not quantized.

    Args:
        weight_bits: 2 to 8.
        act_bits: of the input, quantized by a :class:`QAct` named ``input_quantizer``; None leaves
            the input in float.
        ste: straight-through estimator, ``"identity"`` or ``"clip"``.
        zero_in_range: widen every range, of weight and input, to contain 0.
        dynamic_ranges: ``"weight"`` gives each kernel with at least ``2**weight_bits`` elements its
            own range, ``"act"`` computes the input's ranges on the fly, ``"both"`` does both; see
            :mod:`gdfq.nn.dynamic_ranges`.

    All other arguments, and the shapes, are those of ``nn.Conv2d``.

    Raises:
        InputError: ``weight_bits``, ``act_bits``, ``ste`` or ``dynamic_ranges`` is invalid.

    Source: Xu et al., ECCV 2020, section 3.3.
    """

    float_layer = nn.Conv2d
    shape_arguments = (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
        "padding_mode",
    )  # fmt: skip

    def forward(self, input: Tensor, quantized_weight: Tensor | None = None) -> Tensor:
        """Convolve ``input``, ``(N, C_in, H, W)`` or ``(C_in, H, W)``, as ``nn.Conv2d``.

        ``quantized_weight``: the quantized weight if the caller has computed it already.
        """
        if quantized_weight is None:
            quantized_weight = self._quantized_weight()
        return self._conv_forward(self._quantize_input(input), quantized_weight, self.bias)
