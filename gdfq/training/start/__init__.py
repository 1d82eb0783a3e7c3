"""Steps between calibration and fine-tuning, each a small module."""

from gdfq.training.start.settings import NO_START, Start

__all__ = ["NO_START", "Start"]
