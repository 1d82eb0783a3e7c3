"""The settings of a start, checked where they enter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from gdfq.errors import InputError
from gdfq.fields import changed_fields, describe_fields
from gdfq.nn.dynamic_ranges import has_dynamic
from gdfq.ops._checks import check_choice

ActRanges = Literal["minmax", "mse", "percentile"]
WeightRanges = Literal["minmax", "mse"]
Rounding = Literal["nearest", "flip"]
_PLURAL = {"act": "activations", "weight": "weights"}


@dataclass(frozen=True)
class Start:
    """What is done to the student when its ranges are calibrated; by default nothing more.

    Args:
        act_ranges: the ends of activation ranges: ``"minmax"``, the moving average of the
            batches' minima and maxima; ``"mse"``, the ends of least squared error over the
            calibration's images; ``"percentile"``, the ends that leave out the values beyond
            ``percentile``.
        percentile: percent of an activation's values that are at most the range's upper end; the
            lower end of a range with both signs is its mirror image.
        weight_ranges: ``"minmax"``, each output's minimum and maximum, taken anew at each forward;
            ``"mse"``, the ends of least squared error, which are kept from then on.
        equalize: scale channels such that they use their activation's range alike, see
            :mod:`gdfq.training.start.equalization`.
        bias_correction: take out of batch norms and biases by how much quantization moves each
            channel's mean, see :mod:`gdfq.training.start.correction`.
        bn_reestimate: the same for means and standard deviations.
        bn_reestimate_end: once more when training has ended, on what the generator makes by then.
        rounding: ``"nearest"``, or ``"flip"``: weights are moved beyond a tie where that cancels
            their kernel's error, see :mod:`gdfq.training.start.rounding`.

    Raises:
        InputError: an argument is not one of the above.
    """

    act_ranges: ActRanges = "minmax"
    percentile: float = 99.9
    weight_ranges: WeightRanges = "minmax"
    equalize: bool = False
    bias_correction: bool = False
    bn_reestimate: bool = False
    bn_reestimate_end: bool = False
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        check_choice("act_ranges", self.act_ranges, get_args(ActRanges))
        check_choice("weight_ranges", self.weight_ranges, get_args(WeightRanges))
        check_choice("rounding", self.rounding, get_args(Rounding))
        for name in ("equalize", "bias_correction", "bn_reestimate", "bn_reestimate_end"):
            check_choice(name, getattr(self, name), (True, False))
        if not 50 < self.percentile <= 100:
            raise InputError(f"percentile: must be in (50, 100], got {self.percentile!r}")
        if "percentile" in changed_fields(self) and self.act_ranges != "percentile":
            raise InputError(
                f"percentile: has no effect with act_ranges = {self.act_ranges!r}, only with "
                "'percentile'"
            )
        if self.bias_correction and self.bn_reestimate:
            raise InputError("bias_correction: bn_reestimate corrects means too; only one of both")

    def describe(self) -> str:
        """One line: the fields that are not at their defaults."""
        return describe_fields(self, "none, the paper's ranges")

    @property
    def corrects(self) -> bool:
        """Whether batch norms and biases are corrected before fine-tuning."""
        return self.bias_correction or self.bn_reestimate

    def check_dynamic_ranges(self, dynamic_ranges: str) -> None:
        """Raise an InputError for the first setting that ranges taken in the call leave no room.

        ``dynamic_ranges``: the student's, see :func:`gdfq.quantize_model`.
        """
        for name, what, off in (
            ("act_ranges", "act", "minmax"),
            ("equalize", "act", False),
            ("weight_ranges", "weight", "minmax"),
            ("rounding", "weight", "nearest"),
        ):
            given = getattr(self, name)
            if given != off and has_dynamic(dynamic_ranges, what):
                raise InputError(
                    f"{name}: {given!r} is for ranges that are kept, and dynamic_ranges = "
                    f"{dynamic_ranges!r} takes those of {_PLURAL[what]} in each call; must be "
                    f"{off!r}"
                )


NO_START = Start()
