"""The CPU kernels on tensors that threads share, with every access checked for races."""

import sys
from pathlib import Path

import pytest

from tests.helpers.distribution import run
from tests.standin.library import missing_tools

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(bool(missing_tools()), reason=f"missing: {missing_tools()}"),
]


def test_no_kernel_shares_memory_among_threads():
    run(
        *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.races.operators"),
        "tests/races",
        cwd=Path(__file__).parents[2],
    )
