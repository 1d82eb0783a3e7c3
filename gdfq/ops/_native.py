"""Loads the native module, or says in one sentence why that failed."""

from __future__ import annotations

import torch

try:
    from gdfq import _C
except ImportError as error:
    if "No module named" in str(error) or "cannot import name" in str(error):
        reason = "its native module has not been built"
    else:
        reason = f"its native module does not load beside torch {torch.__version__} ({error})"
    raise ImportError(
        f"gdfq: {reason}; run `pip install --no-build-isolation .` in its source folder."
    ) from None

_built = _C.torch_version.split(".")[:2]
_running = torch.__version__.split(".")[:2]
if _built != _running:
    raise ImportError(
        f"gdfq: built for torch {'.'.join(_built)}, but torch {'.'.join(_running)} is running; "
        "run `pip install --no-build-isolation --force-reinstall --no-deps .` in its source folder."
    )

torch_version: str = _C.torch_version
compiler: str = _C.compiler
cuda_version: str | None = _C.cuda_version
cuda_architectures: str | None = _C.cuda_architectures
