"""The settings of :func:`gdfq.quantize_model`, which are a recipe's [quantization]."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gdfq.errors import InputError
from gdfq.ops._checks import MAX_BITS, MIN_BITS, Ste
from gdfq.settings import Settings

Bits = Annotated[int, Field(ge=MIN_BITS, le=MAX_BITS)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Whose = Literal["none", "act", "weight", "both"]


def concerns(whose: Whose, what: Literal["act", "weight"]) -> bool:
    """Whether ``whose`` includes activations or weights."""
    return whose in (what, "both")


class Quantization(Settings):
    """How a student is quantized; the keyword arguments of gdfq.quantize_model.

    ``first_last_bits`` is for the first and the last layer in order of execution, where no pattern
    of ``bits`` says otherwise; activations keep ``act_bits``. ``zero_in_range`` widens ranges of
    weights and of activations to 0, as integer kernels that pad with zeros need. A learned range
    behind ReLU is its upper bound. Dynamic ranges are those of each sample's each channel and of
    each kernel; where these have fewer elements than levels, each sample or output has one, see
    :mod:`gdfq.nn.dynamic_ranges`. No integer kernel computes with them.
    """

    weight_bits: Bits = Field(4, description="bits of weights, per output channel")
    act_bits: Bits = Field(4, description="bits of activations, per tensor")
    first_last_bits: Bits | None = Field(
        None, description="bits of the first and the last layer's weights, where not weight_bits"
    )
    ste: Ste = Field("identity", description="straight-through estimator of the quantizers")
    range_momentum: Momentum = Field(
        0.9, description="weight of the past in the activation ranges' average"
    )
    zero_in_range: bool = Field(
        False, description="every range also contains 0, as integer kernels need"
    )
    learned_ranges: Whose = Field("none", description="whose ranges are trained with the weights")
    dynamic_ranges: Whose = Field(
        "none",
        description="whose ranges are computed on the fly: per sample and channel, per kernel",
    )
    leaf_modules: tuple[str, ...] = Field(
        (), description="paths of modules that are not traced into and stay in float"
    )

    @model_validator(mode="after")
    def _ranges_are_learned_or_dynamic(self) -> Quantization:
        for what in ("act", "weight"):
            if self.learns(what) and self.is_dynamic(what):
                raise InputError(
                    f"dynamic_ranges: {self.dynamic_ranges!r} computes on the fly what "
                    f"learned_ranges = {self.learned_ranges!r} trains; a range is one or the other"
                )
        return self

    def learns(self, what: Literal["act", "weight"]) -> bool:
        """Whether the ranges of activations (weights) are trained."""
        return concerns(self.learned_ranges, what)

    def is_dynamic(self, what: Literal["act", "weight"]) -> bool:
        """Whether the ranges of activations (weights) are computed on the fly."""
        return concerns(self.dynamic_ranges, what)

    @property
    def of_weights(self) -> dict[str, Any]:
        """Keyword arguments of :class:`gdfq.nn.QConv2d` and :class:`gdfq.nn.QLinear`."""
        return {
            "ste": self.ste,
            "zero_in_range": self.zero_in_range,
            "dynamic_ranges": self.dynamic_ranges,
        }

    @property
    def of_acts(self) -> dict[str, Any]:
        """Keyword arguments of :class:`gdfq.nn.QAct`."""
        return {
            "ste": self.ste,
            "momentum": self.range_momentum,
            "zero_in_range": self.zero_in_range,
            "dynamic_range": self.is_dynamic("act"),
        }


DEFAULTS = Quantization()
