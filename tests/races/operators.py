"""A pytest plugin: the CPU operators, with every access checked for races, take their own place.

``pytest -p tests.races.operators tests/ops`` runs the operators' whole suite so, slowly.
"""

from pathlib import Path

import torch

import gdfq  # noqa: F401  (registers the operators that are replaced)
from tests.standin.library import compile_tree

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "races"

compile_tree(HERE, BUILD)
torch.ops.load_library(str(BUILD / "libgdfq_races.so"))
torch.set_num_threads(8)  # with one, no loop is cut into tasks
