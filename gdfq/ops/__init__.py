"""The operators: one file each, with wrapper, checks, tracing kernel, gradient and reference.

Importing this package loads the native module and registers ``torch.ops.gdfq``. :func:`backend`
chooses the kernels.
"""

import importlib
import pkgutil

import torch  # noqa: F401  (its libraries must be loaded before the native module)

from gdfq.ops import _backend
from gdfq.ops._backend import backend

for _module in pkgutil.iter_modules(__path__):
    if not _module.ispkg:
        importlib.import_module(f"gdfq.ops.{_module.name}")  # registers its operators

_backend.start()

__all__ = ["backend"]
