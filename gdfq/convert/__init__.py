"""Conversion of a float network into its quantized student."""

from gdfq.convert.comparison import require_same
from gdfq.convert.model import QuantizedModel
from gdfq.convert.quantize import quantize_model
from gdfq.convert.tables import SUMS

__all__ = ["SUMS", "QuantizedModel", "quantize_model", "require_same"]
