"""What layers with a fake-quantized weight have in common."""

from __future__ import annotations

from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.nn.qact import QAct
from gdfq.ops._checks import Ste, check_bits, check_ste
from gdfq.ops.fake_quantize_minmax import fake_quantize_minmax
from gdfq.ops.quantize_codes import quantize_codes


class QuantizedWeight(nn.Module):
    """Mixin for layers whose ``weight`` has its outputs along dimension 0."""

    weight: Tensor

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

    def _quantized_weight(self) -> Tensor:
        return fake_quantize_minmax(self.weight, self.weight_bits, 0, self.ste, self.zero_in_range)

    def weight_codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes ``(weight's shape)``, scale and zero point ``(outputs,)`` of the weight.

        ``(codes + zero) / scale`` is the quantized weight, see
        :func:`gdfq.ops.quantize_codes.quantize_codes`.
        """
        return _codes(self.weight, self.weight_bits, self.zero_in_range)

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
        return _codes(weight, self.weight_bits, self.zero_in_range)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        zero = ", zero_in_range=True" if self.zero_in_range else ""
        return f"weight_bits={self.weight_bits}, ste={self.ste!r}{zero}"


def _codes(weight: Tensor, bits: int, zero_in_range: bool) -> tuple[Tensor, Tensor, Tensor]:
    weight = weight.detach()
    rows = weight.float().flatten(1)
    return quantize_codes(weight, rows.amin(1), rows.amax(1), bits, 0, zero_in_range)


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
