"""Export of finished students to ONNX, torch.export and packed safetensors files."""

from gdfq.export.onnx_file import export_onnx
from gdfq.export.pt2 import export_pt2

__all__ = ["export_onnx", "export_pt2"]
