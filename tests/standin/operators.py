"""A pytest plugin: the CUDA operators, on the stand-in, take the CPU operators' place.

``pytest -p tests.standin.operators tests/ops`` runs the operators' whole suite, dispatcher side
included, with the CUDA kernels.
"""

import torch

import gdfq  # noqa: F401  (registers the CPU operators that are replaced)
from tests.standin import library

library.build()
torch.ops.load_library(str(library.BUILD / "libstandin_operators.so"))

for _name in library.cuda_operators():
    _table = torch._C._dispatch_dump_table(f"gdfq::{_name}")
    _cpu = next(line for line in _table.splitlines() if line.startswith("CPU:"))
    if "csrc/cuda/" not in _cpu:
        raise RuntimeError(f"{_name} was not replaced: {_cpu}")
