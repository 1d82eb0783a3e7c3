"""The settings of a start."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from gdfq.errors import InputError
from gdfq.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self


class Start(Settings):
    """What is done to the student when its ranges are calibrated; by default nothing more.

    ``act_ranges`` is ``"minmax"``, the moving average of the batches' minima and maxima; ``"mse"``,
    the MSE-optimal bounds over the calibration's images; or ``"percentile"``, the bounds that leave
    out the values beyond ``percentile``: of a range with both signs, the lower bound mirrors the
    upper one. ``weight_ranges`` is ``"minmax"``, each output's minimum and maximum, computed in
    each forward, or ``"mse"``, MSE-optimal bounds, which are stored. See the modules
    :mod:`~gdfq.training.start.equalization`, :mod:`~gdfq.training.start.correction` and
    :mod:`~gdfq.training.start.rounding`.
    """

    none: ClassVar[str] = "none, the paper's ranges"

    act_ranges: Literal["minmax", "mse", "percentile"] = Field(
        "minmax",
        description="bounds of activation ranges: minimum and maximum, MSE-optimal or percentile",
    )
    percentile: float = Field(
        99.9, gt=50, le=100, description="percent of an activation's values below its upper bound"
    )
    weight_ranges: Literal["minmax", "mse"] = Field(
        "minmax", description="bounds of weight ranges: minimum and maximum, or MSE-optimal"
    )
    equalize: bool = Field(False, description="scale channels to use their ranges alike")
    bias_correction: bool = Field(
        False, description="take out by how much quantization moves each channel's mean"
    )
    bn_reestimate: bool = Field(
        False, description="the same for means and standard deviations, in the batch norms"
    )
    bn_reestimate_end: bool = Field(False, description="once more when training has ended")
    rounding: Literal["nearest", "flip"] = Field(
        "nearest", description="'flip' rounds otherwise where that cancels a kernel's error"
    )

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.percentile != 99.9 and self.act_ranges != "percentile":
            raise InputError(
                f"percentile: has no effect with act_ranges = {self.act_ranges!r}, only with "
                "'percentile'"
            )
        if self.bias_correction and self.bn_reestimate:
            raise InputError("bias_correction: bn_reestimate corrects means too; only one of both")
        return self

    @property
    def corrects(self) -> bool:
        """Whether batch norms and biases are corrected before fine-tuning."""
        return self.bias_correction or self.bn_reestimate

    def check_dynamic_ranges(self, acts: bool, weights: bool) -> None:
        """Raise InputError if a setting needs stored ranges that are computed on the fly.

        Args:
            acts: whether ranges of activations are dynamic, see :func:`gdfq.quantize_model`.
            weights: whether ranges of weights are.
        """
        for names, dynamic, whose in (
            (("act_ranges", "equalize"), acts, "activations"),
            (("weight_ranges", "rounding"), weights, "weights"),
        ):
            for name in sorted(self.changed().keys() & names) if dynamic else ():
                raise InputError(
                    f"{name}: {getattr(self, name)!r} is for stored ranges, and dynamic_ranges "
                    f"computes those of {whose} on the fly; must be "
                    f"{type(self).model_fields[name].default!r}"
                )


NO_START = Start()
