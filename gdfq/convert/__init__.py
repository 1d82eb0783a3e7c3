"""``quantize_model``: a float network in, its quantized student out."""

from gdfq.convert.comparison import require_same
from gdfq.convert.model import QuantizedModel
from gdfq.convert.quantize import quantize_model
from gdfq.convert.tables import SUMS

__all__ = ["SUMS", "QuantizedModel", "quantize_model", "require_same"]
