"""Bit widths of quantizers, by glob patterns of their names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from pydantic import model_validator

from gdfq.errors import InputError
from gdfq.nn.quantization import Bits
from gdfq.settings import Settings

KEYS = ("weight", "act")


class LayerBits(Settings):
    """Bits of what a pattern matches; at least one of the two."""

    weight: Bits | None = None
    act: Bits | None = None

    @model_validator(mode="after")
    def _has_one(self) -> LayerBits:
        if self.weight is None and self.act is None:
            raise InputError("must have weight or act or both, got {}")
        return self


class Exceptions(Settings):
    """Exceptions to bit widths, by glob pattern of names in the student."""

    bits: dict[str, LayerBits]


class BitWidths:
    """Default bit widths, and patterns that override them; the last match wins.

    Args:
        weight_bits, act_bits: the defaults.
        patterns: glob patterns of paths in the student, each with ``"weight"`` bits, ``"act"``
            bits or both.

    Raises:
        InputError: a width is not 2 to 8, or ``patterns`` has another form.
    """

    def __init__(
        self, weight_bits: int, act_bits: int, patterns: Mapping[str, Mapping[str, int]]
    ) -> None:
        exceptions = Exceptions(bits=patterns).bits  # type: ignore[arg-type]
        self.patterns = {
            p: widths.model_dump(exclude_none=True) for p, widths in exceptions.items()
        }
        self.defaults = {"weight": weight_bits, "act": act_bits}
        self.fixed: dict[Any, int] = {}
        self.names: dict[str, list[str]] = {key: [] for key in KEYS}
        self.unused = {
            (pattern, key) for pattern, widths in self.patterns.items() for key in widths
        }

    def fix_weights(self, layers: Iterable[Any], bits: int) -> None:
        """Set the default of these layers' weights to ``bits``."""
        self.fixed.update(dict.fromkeys(layers, bits))

    def weight(self, name: str, aliases: Iterable[str] = (), *, key: Any) -> int:
        """Return the bits of the weight of layer ``key``; patterns match ``name`` and aliases."""
        return self._of("weight", [name, *aliases], self.fixed.get(key))

    def act(self, name: str, aliases: Iterable[str] = ()) -> int:
        """Return the bits of an activation quantizer; patterns match ``name`` and aliases."""
        return self._of("act", [name, *aliases], None)

    def _of(self, key: str, names: list[str], fixed: int | None) -> int:
        self.names[key].append(names[0])
        bits = self.defaults[key] if fixed is None else fixed
        for pattern, widths in self.patterns.items():
            if key in widths and any(fnmatchcase(name, pattern) for name in names):
                self.unused.discard((pattern, key))
                bits = widths[key]
        return bits

    def require_matches(self) -> None:
        """Raise InputError for the first pattern without a match."""
        for pattern, widths in self.patterns.items():
            for key in widths:
                if (pattern, key) in self.unused:
                    raise InputError(self._unmatched(pattern, key))

    def _unmatched(self, pattern: str, key: str) -> str:
        what = {"weight": "layer with a quantized weight", "act": "quantized activation"}
        names: list[Any] = self.names[key]
        return f"bits: {pattern!r} matches no {what[key]}; {near_names(pattern, names)}"


def near_names(pattern: str, names: Sequence[str]) -> str:
    """Return the names nearest to a pattern that matches none, or the first, in words."""
    # Compare names with the pattern without its wildcards.
    plain = "".join(letter for letter in pattern if letter not in "*?[]!")
    near = difflib.get_close_matches(plain, names, n=3, cutoff=0.4)
    more = "" if near or len(names) <= 3 else ", ..."
    return f"{'near to it' if near else 'there are'}: {', '.join(near or names[:3])}{more}"
