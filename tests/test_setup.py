"""What the build says when it cannot go on: one sentence, no trace."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(tmp_path, torch=None, **environment):
    """Run the build in a copy that has no sources, with another torch if one is given."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "gdfq").mkdir()
    path = []
    if torch is not None:
        folder = tmp_path / "site" / "torch"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(torch)
        path = [str(folder.parent)]
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "GDFQ_CUDA": "auto", **environment},
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("gdfq: ")]
    assert "Traceback" not in done.stderr
    return done.returncode, lines


CPU_TORCH = "__version__ = '2.14.1'\nclass version: cuda = None\n"


@pytest.fixture
def empty_path(tmp_path):
    """A PATH on which nothing is found."""
    (tmp_path / "bin").mkdir()
    return str(tmp_path / "bin")


def test_torch_too_old(tmp_path):
    code, lines = build(tmp_path, "__version__ = '2.5.1+cpu'\nclass version: cuda = None\n")
    assert code == 1
    assert lines == ["gdfq: torch 2.5.1+cpu is too old: 2.11 or newer is needed."]


def test_no_torch(tmp_path):
    code, lines = build(tmp_path, "raise ImportError('no torch here')")
    assert code == 1
    assert len(lines) == 1
    assert "building needs torch" in lines[0]


def test_no_compiler(tmp_path, empty_path):
    code, lines = build(tmp_path, CPU_TORCH, PATH=empty_path, CXX="")
    assert code == 1
    assert len(lines) == 1
    assert "no C++ compiler found" in lines[0]


def test_a_compiler_that_is_not_there(tmp_path):
    code, lines = build(tmp_path, CPU_TORCH, CXX="icpc")
    assert code == 1
    assert lines == ["gdfq: CXX is 'icpc', which is not on the PATH."]


@pytest.mark.parametrize(
    ("torch", "choice", "message"),
    [
        (CPU_TORCH, "on", "needs a CUDA build of torch"),
        (CPU_TORCH.replace("None", "'13.0'"), "on", "needs nvcc"),
        (CPU_TORCH, "yes", "GDFQ_CUDA is 'yes': allowed are auto, on and off."),
    ],
)
def test_cuda_choices(tmp_path, empty_path, torch, choice, message):
    compiler = Path(empty_path) / "c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    code, lines = build(
        tmp_path, torch, GDFQ_CUDA=choice, PATH=empty_path, CXX=str(compiler), CUDACXX=""
    )
    assert code == 1
    assert len(lines) == 1
    assert message in lines[0]
