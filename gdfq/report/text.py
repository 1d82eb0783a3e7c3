"""Format numbers for reports."""

from __future__ import annotations

import math

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def fixed(value: float | None, digits: int, unit: str = "") -> str:
    """Format with so many digits behind the point."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{round(value, digits) + 0.0:,.{digits}f}{unit}"  # + 0.0: no minus before zero
    return MINUS + text[1:] if text.startswith("-") else text


def percent(value: float | None) -> str:
    """Format a percentage."""
    return fixed(value, 2, "%")


def plain_percent(value: float | None) -> str:
    """Format a percentage for a terminal, in ASCII."""
    return "-" if value is None else f"{value:.2f}%"


def compact(value: float | None, digits: int = 3) -> str:
    """Format with so many significant digits; very small or large numbers as powers of ten."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -3 <= exponent < 5:
        # One more digit could be added by rounding, as from 9.999 to 10.00: no matter.
        return fixed(value, max(0, digits - 1 - exponent))
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.replace('-', MINUS)}\N{MULTIPLICATION SIGN}10{superscript(int(power))}"


def superscript(value: int) -> str:
    """Format an exponent."""
    return str(value).translate(_SUPERSCRIPTS)


def size(value: int | None) -> str:
    """Format a file's size in three significant digits."""
    if value is None:
        return MISSING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{compact(value / factor)} {unit}"
    return f"{value} bytes"


def duration(seconds: float | None) -> str:
    """Format the two largest of hours, minutes and seconds."""
    if seconds is None:
        return MISSING
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
