"""Data-free quantization of convolutional networks to 4 bits and below.

>>> result = gdfq.quantize(model, num_classes=10, image_size=32, weight_bits=4, act_bits=4)
>>> result.export("student.onnx")

The same by its parts:

>>> student = gdfq.quantize_model(model, weight_bits=4, act_bits=4)
>>> generator = gdfq.models.Generator(num_classes=10, image_size=32)
>>> trainer = gdfq.GDFQTrainer(model, student, generator, num_classes=10, batch_size=64)
>>> trainer.train()
"""

from gdfq import distributed, functional, losses, memory, models, nn
from gdfq.api import open_run, quantize, resume
from gdfq.convert import quantize_model
from gdfq.errors import InputError, NonFiniteLossError
from gdfq.ops import backend
from gdfq.packed import load, save
from gdfq.result import QuantizationResult
from gdfq.training import GDFQTrainer

__version__ = "0.1.0"

__all__ = [
    "GDFQTrainer",
    "InputError",
    "NonFiniteLossError",
    "QuantizationResult",
    "backend",
    "distributed",
    "functional",
    "load",
    "losses",
    "memory",
    "models",
    "nn",
    "open_run",
    "quantize",
    "quantize_model",
    "resume",
    "save",
]
