"""Every kernel in Triton's interpreter, in tiles so small that there are many of them.

tests/test_backend.py starts these, and the operators' own tests, where TRITON_INTERPRET is set.
"""

import importlib

import pytest
import torch

pytest.importorskip("triton")

from gdfq.ops import _backend
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


@pytest.mark.parametrize("file", sorted(set(_backend.triton_modules().values())))
def test_examples_launch_every_kernel_of_the_file(file, monkeypatch):
    launched = set()
    for name, kernel in kernels(file).items():
        hook = lambda *_, name=name, **__: launched.add(name)  # noqa: E731
        monkeypatch.setattr(kernel, "pre_run_hooks", [hook])
    for operator in (o for o, f in _backend.triton_modules().items() if f == file):
        for call in EXAMPLES[operator](torch.float32):
            call()
    assert launched == set(kernels(file))
    assert launched


def tensors(value):
    """The tensors of a result, which may be one, or lists of them."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value for tensor in tensors(part)]


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
        for a, b in zip(tensors(actual), tensors(expected), strict=True):
            # Sums cancel, and where they move by an ulp a half result can round the other way.
            half = a.dtype in (torch.float16, torch.bfloat16)
            rtol = torch.finfo(a.dtype).eps if half else 1e-6
            torch.testing.assert_close(a, b, rtol=rtol, atol=1e-5)
            if half:
                assert (a != b).double().mean() <= 0.01


@every_unknown_label
def test_unknown_label_makes_the_loss_nan(label, monkeypatch):
    """As it would be on a GPU, where the launcher doesn't look at values."""
    monkeypatch.setattr(kd_ce_loss, "check_classes", lambda *_: None)
    check_unknown_label(kd_ce_loss.kd_ce_loss, label, torch.float32)
