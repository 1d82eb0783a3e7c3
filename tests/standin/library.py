"""Builds the stand-in's libraries and calls the kernels in them on CPU tensors.

``operators.py`` puts every operator in the place of the CPU's, and ``test_builds.py`` runs some of
the operators' suite so with the sanitizers and the race checker. Where an operator needs more, such
as every alignment of its result, ``drivers/NAME.cpp`` makes its launcher callable for
``test_NAME.py``, which ``test_builds.py`` runs in all builds. ``GDFQ_STANDIN=races pytest
tests/standin/test_NAME.py`` runs one file with the race checker.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "standin"
BUILDS = ("shuffled", "asan", "races")

# Order of blocks, warps and lanes, and the byte that shared memory starts with.
SCHEDULES = ((0, 0xFF), (1, 0x5A), (2, 0xFF))
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class DeviceError(Exception):
    """The stand-in stopped a launch."""


def cuda_operators() -> list[str]:
    """The operators that csrc/cuda registers."""
    sources = (HERE.parents[1] / "csrc" / "cuda").glob("*.cpp")
    return sorted(
        name for source in sources for name in re.findall(r'm\.impl\("(\w+)"', source.read_text())
    )


def tool(name: str) -> str | None:
    """A build tool beside this interpreter or on the PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def missing_tools() -> str | None:
    """What is missing to build the stand-in, or None."""
    missing = [name for name in ("cmake", "ninja") if not tool(name)]
    if not any(map(shutil.which, ("c++", "g++"))):
        missing.append("a C++ compiler")
    return ", ".join(missing) or None


@functools.cache
def build() -> None:
    """Compile the three libraries; an unchanged tree compiles nothing."""
    compile_tree(HERE, BUILD)


def compile_tree(source: Path, build: Path) -> None:
    """Build a CMake project that takes TORCH_ROOT; another process waits for the first."""
    build.mkdir(parents=True, exist_ok=True)
    configure = [
        tool("cmake"),
        f"-S{source}",
        f"-B{build}",
        "-GNinja",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        f"-DTORCH_ROOT={Path(torch.__file__).parent}",
    ]
    with FileLock(build / ".lock"):
        for command in (configure, [tool("cmake"), "--build", str(build)]):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"building {source} failed:\n{done.stdout}\n{done.stderr}")


def environment(name: str) -> dict[str, str]:
    """The environment in which another process loads the library ``name``."""
    variables = {**os.environ, "GDFQ_STANDIN": name}
    if name == "asan":
        runtimes = (
            subprocess.run(
                ["g++", f"-print-file-name={library}"], capture_output=True, text=True
            ).stdout.strip()
            for library in ("libasan.so", "libubsan.so")
        )
        variables["LD_PRELOAD"] = ":".join(runtimes)
        variables["ASAN_OPTIONS"] = "detect_leaks=0"
        variables["UBSAN_OPTIONS"] = "print_stacktrace=1"
    return variables


def _argument(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, torch.dtype):
        return ctypes.c_int64(DTYPES[value])
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(value)


class Standin:
    """One of the three libraries."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.library = ctypes.CDLL(str(BUILD / f"libstandin_{name}.so"))
        self.library.standin_error.restype = ctypes.c_char_p

    def schedule(self, seed: int, poison: int) -> None:
        """The order of later launches, and what shared memory starts with."""
        self.library.standin_schedule(ctypes.c_ulong(seed), ctypes.c_int(poison))

    def launch(self, function: str, *arguments: Any, schedule: tuple[int, int] = (0, 0xFF)) -> None:
        """Run a driver's function; tensors are passed as pointers, dtypes as their number."""
        self.schedule(*schedule)
        if getattr(self.library, function)(*map(_argument, arguments)):
            raise DeviceError(self.library.standin_error().decode())


MARGIN = 32


class Output:
    """A result in the strides of ``like``, ``skew`` elements off alignment, between sentinels."""

    def __init__(self, like: Tensor, skew: int = 0, dtype: torch.dtype | None = None) -> None:
        self.numel = like.numel()
        self.skew = skew
        room = torch.full((self.numel + 2 * MARGIN + skew,), 77.0, dtype=dtype or like.dtype)
        self.room = room
        self.tensor = room[MARGIN + skew :].as_strided(like.shape, like.stride())

    def check(self) -> Tensor:
        """The result, after checking that nothing outside it was written."""
        begin = MARGIN + self.skew
        assert (self.room[:begin] == 77).all()
        assert (self.room[begin + self.numel :] == 77).all()
        return self.tensor


def layout_of(x: Tensor, axis: int | None) -> tuple[int, int, int]:
    """Memory of a dense tensor as [outer][channels][inner], like csrc/dense.h."""
    if axis is None or x.shape[axis] == 1:
        return 1, 1, x.numel()
    channels, inner = x.shape[axis], x.stride(axis)
    return x.numel() // (channels * inner), channels, inner


def dense(x: Tensor) -> Tensor:
    """``x`` where its elements fill their memory, else a dense copy."""
    return x if torch.ops.aten.is_non_overlapping_and_dense(x) else torch.empty_like(x).copy_(x)
