"""One-line descriptions of dataclasses of settings."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def changed_fields(settings: Any) -> dict[str, Any]:
    """Return the fields of the dataclass ``settings`` that differ from their defaults."""
    return {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if getattr(settings, field.name) != field.default
    }


def describe_fields(settings: Any, nothing: str) -> str:
    """Format :func:`changed_fields` as ``name=value, ...``, or ``nothing`` if there are none."""
    changed = changed_fields(settings).items()
    return ", ".join(f"{name}={value!r}" for name, value in changed) or nothing
