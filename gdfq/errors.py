"""Errors that are about what the user gave, not about what the program did."""

from __future__ import annotations


class InputError(ValueError):
    """An argument, recipe or file that cannot be used; the message names it and what is allowed."""


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite during training; the message says what to change."""


class ProcessLostError(RuntimeError):
    """Another process of the run is gone, so that this one cannot go on."""
