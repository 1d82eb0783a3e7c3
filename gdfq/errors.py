"""The package's exceptions."""

from __future__ import annotations


class InputError(ValueError):
    """Invalid argument, recipe or file; the message names it and states what is allowed."""


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite during training; the message says what to change."""


class ProcessLostError(RuntimeError):
    """Another process of the run has ended, so this one cannot continue."""
