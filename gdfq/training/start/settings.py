"""The settings of a start, checked where they enter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from gdfq.errors import InputError

ActRanges = Literal["minmax", "mse", "percentile"]


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

    Raises:
        InputError: an argument is not one of the above.
    """

    act_ranges: ActRanges = "minmax"
    percentile: float = 99.9

    def __post_init__(self) -> None:
        _check_choice("act_ranges", self.act_ranges, get_args(ActRanges))
        if not 50 < self.percentile <= 100:
            raise InputError(f"percentile: must be in (50, 100], got {self.percentile!r}")


def _check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}: must be one of {allowed}, got {value!r}")


NO_START = Start()
