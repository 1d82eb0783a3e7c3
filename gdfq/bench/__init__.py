"""How long a training step takes, where, and beside what."""

from gdfq.bench.measure import Measurement, measure

__all__ = ["Measurement", "measure"]
