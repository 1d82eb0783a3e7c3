"""Settings in a line: the fields of a dataclass that are not at their defaults."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def changed_fields(settings: Any) -> dict[str, Any]:
    """The fields of the dataclass ``settings`` that are not at their defaults."""
    return {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if getattr(settings, field.name) != field.default
    }


def describe_fields(settings: Any, nothing: str) -> str:
    """:func:`changed_fields` as ``name=value, ...``, or ``nothing`` where there are none."""
    changed = changed_fields(settings).items()
    return ", ".join(f"{name}={value!r}" for name, value in changed) or nothing
