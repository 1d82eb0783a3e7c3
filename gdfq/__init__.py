"""Data-free quantization of convolutional networks to 4 bits and below.

>>> result = gdfq.quantize(model, num_classes=10, image_size=32, weight_bits=4, act_bits=4)
>>> result.export("student.onnx")

The same by its parts:

>>> student = gdfq.quantize_model(model, weight_bits=4, act_bits=4)
>>> generator = gdfq.models.Generator(num_classes=10, image_size=32)
>>> trainer = gdfq.GDFQTrainer(model, student, generator, num_classes=10, batch_size=64)
>>> trainer.train()
"""

import importlib
from typing import TYPE_CHECKING, Any

from gdfq import distributed, functional, losses, memory, models, nn
from gdfq.convert import quantize_model
from gdfq.environment import __version__ as __version__
from gdfq.errors import InputError, NonFiniteLossError
from gdfq.ops import backend
from gdfq.training import GDFQTrainer

if TYPE_CHECKING:
    from gdfq.api import open_run, quantize, resume
    from gdfq.export.packed import load, save
    from gdfq.runs.run import Run

__all__ = [
    "GDFQTrainer",
    "InputError",
    "NonFiniteLossError",
    "Run",
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

# Imported when first used: nothing that trains needs these.
_LATER = {
    "Run": "gdfq.runs.run.Run",
    "load": "gdfq.export.packed.load",
    "open_run": "gdfq.api.open_run",
    "quantize": "gdfq.api.quantize",
    "resume": "gdfq.api.resume",
    "save": "gdfq.export.packed.save",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'gdfq' has no attribute {name!r}")
    module, _, attribute = _LATER[name].rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
