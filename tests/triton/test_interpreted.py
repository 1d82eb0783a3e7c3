"""Every kernel in Triton's interpreter, in tiles so small that there are many of them.

tests/test_backend.py starts these, and the operators' own tests, where TRITON_INTERPRET is set.
"""

import importlib

import pytest
import torch

pytest.importorskip("triton")

from gdfq.ops import triton
from gdfq.ops.triton import _launch, kd_ce_loss
from tests.ops.cases import DTYPES, check_unknown_label, every_unknown_label
from tests.triton.examples import EXAMPLES

pytestmark = pytest.mark.skipif(
    not _launch.INTERPRETED, reason="needs a process with TRITON_INTERPRET=1"
)


def kernels(file):
    """The kernels of a file that programs are launched of, by name."""
    module = importlib.import_module(f"gdfq.ops.triton.{file}")
    return {
        name: value
        for name, value in vars(module).items()
        if name.startswith("_") and hasattr(value, "add_pre_run_hook")
    }


@pytest.mark.parametrize("file", sorted(set(triton.OPERATORS.values())))
def test_examples_launch_every_kernel_of_the_file(file, monkeypatch):
    launched = set()
    for name, kernel in kernels(file).items():
        hook = lambda *_, name=name, **__: launched.add(name)  # noqa: E731
        monkeypatch.setattr(kernel, "pre_run_hooks", [hook])
    for operator in (o for o, f in triton.OPERATORS.items() if f == file):
        for call in EXAMPLES[operator](torch.float32):
            call()
    assert launched == set(kernels(file))
    assert launched


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
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-5)  # sums cancel


@every_unknown_label
def test_unknown_label_makes_the_loss_nan(label, monkeypatch):
    """As it would be on a GPU, where the launcher doesn't look at values."""
    monkeypatch.setattr(kd_ce_loss, "check_classes", lambda *_: None)
    check_unknown_label(kd_ce_loss.kd_ce_loss, label, torch.float32)
