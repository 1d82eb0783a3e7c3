"""Exceptions to a recipe's bits, by pattern of names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gdfq.errors import InputError

# "layer1.*=w8a6", with either part alone too; the pattern may hold a "=" itself.
_OPTION = re.compile(r"(?P<pattern>.+)=(?=[wa])(?:w(?P<weight>\d{1,9}))?(?:a(?P<act>\d{1,9}))?")


def parse_bits(options: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return ``{"layer1.*": {"weight": 8, "act": 6}}`` for ``["layer1.*=w8a6"]``.

    Raises:
        InputError: an entry is not of this form. Widths and patterns are checked where the recipe
            is, and where the network is known.
    """
    table: dict[str, dict[str, int]] = {}
    for option in options:
        match = _OPTION.fullmatch(option)
        if match is None:
            raise InputError(
                f"bits: must be PATTERN=wN, PATTERN=aN or PATTERN=wNaN, as in 'layer1.*=w8a6', "
                f"got {option!r}"
            )
        widths = {key: int(match[key]) for key in ("weight", "act") if match[key]}
        table = with_exceptions(table, {match["pattern"]: widths})
    return table


def bits_label(
    weights: float,
    acts: int,
    dynamic_ranges: str = "none",
    effective: tuple[float | None, float | None] = (None, None),
) -> str:
    """Return ``"W4A4"``; for dynamic ranges also the bits that values take with their scales.

    Args:
        weights: on average.
        acts: usual width.
        dynamic_ranges: of the recipe.
        effective: of weights and activations, see :mod:`gdfq.nn.effective_bits`; None if unknown.
    """
    label = f"W{round(weights, 2):g}A{acts}"
    if dynamic_ranges == "none":
        return label
    weight, act = (value or 0 for value in effective)
    known = f" (with scales W{weight:.2f}A{act:.2f})" if weight and act else ""
    return f"{label}, dynamic ranges{known}"


def with_exceptions(
    table: Mapping[str, Mapping[str, Any]], more: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return ``table`` followed by ``more``: the last pattern that matches a name wins.

    A pattern that is in both moves to the end, and keeps the width that only ``table`` gives it.
    """
    merged = {pattern: dict(widths) for pattern, widths in table.items()}
    for pattern, widths in more.items():
        merged[pattern] = {**merged.pop(pattern, {}), **widths}
    return merged
