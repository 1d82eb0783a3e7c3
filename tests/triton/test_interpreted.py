"""Every kernel in Triton's interpreter, in tiles so small that there are many of them.

tests/test_backend.py starts these, and the operators' own tests, where TRITON_INTERPRET is set.
"""

import inspect

import pytest
import torch

pytest.importorskip("triton")

from gdfq.ops import _backend, triton
from gdfq.ops.triton import _launch
from tests.ops.cases import DTYPES
from tests.triton.examples import EXAMPLES

pytestmark = pytest.mark.skipif(
    not _launch.INTERPRETED, reason="needs a process with TRITON_INTERPRET=1"
)


def kernels(operator):
    """Names of the kernels in an operator's file that programs are launched of."""
    launcher = _backend._triton_kernel(operator)
    return {
        name: value
        for name, value in vars(inspect.getmodule(launcher)).items()
        if name.startswith("_") and hasattr(value, "add_pre_run_hook")
    }


@pytest.mark.parametrize("operator", [o for o in triton.OPERATORS if not o.endswith("_backward")])
def test_examples_launch_every_kernel_of_the_file(operator, monkeypatch):
    launched = set()
    for name, kernel in kernels(operator).items():
        hook = lambda *_, name=name, **__: launched.add(name)  # noqa: E731
        monkeypatch.setattr(kernel, "pre_run_hooks", [hook])
    for name in {operator, f"{operator}_backward"} & set(triton.OPERATORS):
        for call in EXAMPLES[name](torch.float32):
            call()
    assert launched == set(kernels(operator))


@pytest.mark.parametrize("block", [64, 1024])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("operator", EXAMPLES)
def test_results_do_not_depend_on_the_tiles(operator, dtype, block, monkeypatch):
    torch.manual_seed(0)
    for call in EXAMPLES[operator](dtype):
        expected = call()
        with monkeypatch.context() as patch:
            patch.setattr(_launch, "block", block)
            actual = call()
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
