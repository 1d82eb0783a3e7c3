"""A pytest plugin: the CUDA operators, on the stand-in, take the CPU operators' place.

``pytest -p tests.standin.operators tests/ops`` runs the operators' whole suite, dispatcher side
included, with the CUDA kernels in the build that GDFQ_STANDIN names. Blocks, warps and lanes run in
a shuffled order.
"""

import os

import torch

import gdfq  # noqa: F401  (registers the CPU operators that are replaced)
from tests.standin import library

library.build()
_build = os.environ.get("GDFQ_STANDIN", "shuffled")
torch.ops.load_library(str(library.BUILD / f"libstandin_operators_{_build}.so"))
library.Standin(_build).schedule(*library.SCHEDULES[1])

for _name in library.cuda_operators():
    _table = torch._C._dispatch_dump_table(f"gdfq::{_name}")
    _cpu = next(line for line in _table.splitlines() if line.startswith("CPU:"))
    if "csrc/cuda/" not in _cpu:
        raise RuntimeError(f"{_name} was not replaced: {_cpu}")
