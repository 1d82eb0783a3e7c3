"""The choice of backend, and the operators' own tests on the backends that are not the default."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gdfq
from gdfq.functional import fake_quantize
from gdfq.ops import _backend, _native
from tests.ops.cases import same_bits

ROOT = Path(__file__).parent.parent
QUIET = ("-x", "-q", "-p", "no:cacheprovider")
LO, HI = torch.tensor(-1.0), torch.tensor(1.0)

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def run(*command, **environment):
    """The finished process of a Python command with other environment variables."""
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("GDFQ_BACKEND", "TRITON_INTERPRET")
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.thorough
def test_operators_pass_their_tests_on_the_reference():
    tests = run("-m", "pytest", *QUIET, "tests/ops", GDFQ_BACKEND="reference")
    assert tests.returncode == 0, tests.stdout[-5000:] + tests.stderr[-2000:]


@pytest.mark.thorough
@needs_triton
def test_operators_pass_their_tests_on_triton():
    # 19 divides no number of dtypes, layouts or shapes, so that each of them is met.
    folders = ("tests/ops", "tests/triton")
    environment = {"GDFQ_BACKEND": "triton", "TRITON_INTERPRET": "1"}
    tests = run("-m", "pytest", *QUIET, "--every=19", *folders, **environment)
    assert tests.returncode == 0, tests.stdout[-5000:] + tests.stderr[-2000:]


def test_every_operator_has_a_reference():
    names = {n for n in torch._C._dispatch_get_all_op_names() if n.startswith("gdfq::")}
    assert {f"gdfq::{operator}" for operator in _backend.operators()} == names


@pytest.fixture
def reference_calls(monkeypatch):
    calls = []
    reference = _backend._references["fake_quantize"]
    monkeypatch.setitem(
        _backend._references, "fake_quantize", lambda *a: calls.append(a) or reference(*a)
    )
    return calls


def test_context_manager_switches_and_restores(reference_calls):
    x = torch.randn(100)
    with gdfq.backend("auto"):
        native = fake_quantize(x, LO, HI, 4)
        assert not reference_calls
        with gdfq.backend("reference"):
            assert same_bits(fake_quantize(x, LO, HI, 4), native)
            assert len(reference_calls) == 1
            with gdfq.backend("cpu"):
                fake_quantize(x, LO, HI, 4)
            with pytest.raises(ZeroDivisionError), gdfq.backend("cpu"):
                raise ZeroDivisionError
            assert len(reference_calls) == 1
            fake_quantize(x, LO, HI, 4)
            assert len(reference_calls) == 2
        fake_quantize(x, LO, HI, 4)
        assert len(reference_calls) == 2


def test_compiled_graphs_follow_the_choice(reference_calls):
    compiled = torch.compile(
        lambda x: fake_quantize(x * 2, LO, HI, 4) + 1, fullgraph=True, backend="aot_eager"
    )
    x = torch.randn(50)
    with gdfq.backend("auto"):
        expected = compiled(x)
        assert not reference_calls
    with gdfq.backend("reference"):
        assert same_bits(compiled(x), expected)
    assert len(reference_calls) == 1


def test_gradients_follow_the_choice():
    x = torch.randn(50, requires_grad=True)
    y = fake_quantize(x, LO, HI, 4, ste="clip")
    with gdfq.backend("cuda" if _native.cuda_version else "reference"):
        if _native.cuda_version:
            with pytest.raises(gdfq.InputError, match="'cuda' was chosen, got a CPU tensor"):
                y.sum().backward()
        else:
            y.sum().backward()
            assert 0 < x.grad.sum() < 50


@needs_triton
@pytest.mark.skipif(torch.version.cuda is None, reason="a build of torch without CUDA")
@pytest.mark.parametrize("operator", _backend.triton_modules())
def test_cuda_tensors_have_a_kernel(operator):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"gdfq::{operator}", "CUDA")
    native = (operator, "CUDA") in _backend._native_kernels
    with gdfq.backend("auto"):
        assert _backend.uses(operator, "CUDA") == ("cuda" if native else "triton")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "gpu",
            "backend: must be one of 'auto', 'triton', 'cuda', 'cpu' or 'reference', got 'gpu'",
        ),
        pytest.param(
            "cuda",
            "backend: 'cuda' cannot be used: gdfq was built without it",
            marks=pytest.mark.skipif(_native.cuda_version is not None, reason="built with CUDA"),
        ),
    ],
)
def test_what_cannot_be_chosen(name, message):
    before = _backend.chosen()
    with pytest.raises(gdfq.InputError, match=message), gdfq.backend(name):
        pass
    assert _backend.chosen() == before


@needs_triton
def test_triton_refuses_cpu_tensors_where_it_does_not_interpret():
    script = """
import torch, gdfq
from gdfq.functional import fake_quantize
with gdfq.backend("triton"):
    fake_quantize(torch.ones(3), torch.tensor(0.0), torch.tensor(1.0), 4)
"""
    process = run("-c", script)
    assert "InputError: backend: 'triton' runs on CUDA tensors" in process.stderr


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({}, "cpu_kernels=cpu"),
        ({"GDFQ_BACKEND": "reference"}, "cuda_kernels=reference"),
        ({"GDFQ_BACKEND": "cpu"}, "cuda_kernels=refused"),
        pytest.param({"GDFQ_BACKEND": "triton"}, "cuda_kernels=triton", marks=needs_triton),
        pytest.param(
            {"GDFQ_BACKEND": "triton", "TRITON_INTERPRET": "1"},
            "cpu_kernels=triton, interpreted",
            marks=needs_triton,
        ),
    ],
)
def test_environment_says_what_runs(environment, line):
    script = (
        "from gdfq.environment import environment\n"
        "for e in environment().items(): print(*e, sep='=')"
    )
    process = run("-c", script, **environment)
    assert any(printed.startswith(line) for printed in process.stdout.splitlines()), process.stderr


def test_info_names_what_is_wrong_with_the_variable():
    process = run("-c", "from gdfq.cli import main; main()", "info", GDFQ_BACKEND="gpu")
    assert process.returncode == 2
    assert process.stderr.strip() == (
        "gdfq: GDFQ_BACKEND: must be one of 'auto', 'triton', 'cuda', 'cpu' or 'reference', "
        "got 'gpu'"
    )


def test_a_wrong_variable_stops_the_first_operator():
    script = """
import torch
from gdfq.functional import fake_quantize
fake_quantize(torch.ones(3), torch.tensor(0.0), torch.tensor(1.0), 4)
"""
    process = run("-c", script, GDFQ_BACKEND="gpu")
    assert "InputError: GDFQ_BACKEND: must be one of" in process.stderr
