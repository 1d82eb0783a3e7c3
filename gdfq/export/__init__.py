"""Finished students as files that other people's runtimes execute."""

from gdfq.export.onnx_file import export_onnx
from gdfq.export.pt2 import export_pt2

__all__ = ["export_onnx", "export_pt2"]
