"""Builds the native kernels with CMake; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MINIMUM_TORCH = (2, 11)


def fail(sentence: str) -> None:
    raise SystemExit(f"gdfq: {sentence}")


def find_torch() -> tuple[Path, str | None]:
    """The folder of the installed torch, and the CUDA version it was built with, if any."""
    try:
        import torch
    except ImportError:
        fail(
            "building needs torch: run `pip install 'torch>=2.11'` first, then "
            "`pip install --no-build-isolation .`."
        )
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < MINIMUM_TORCH:
        needed = ".".join(map(str, MINIMUM_TORCH))
        fail(f"torch {torch.__version__} is too old: {needed} or newer is needed.")
    return Path(torch.__file__).parent, torch.version.cuda


def find_compiler() -> None:
    compiler = os.environ.get("CXX")
    if compiler and not shutil.which(compiler.split()[0]):
        fail(f"CXX is {compiler!r}, which is not on the PATH.")
    if not compiler and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        fail("no C++ compiler found: install g++ (Debian, Ubuntu: `apt-get install g++`).")


def find_tool(name: str) -> str:
    # The PyPI packages put cmake and ninja beside this interpreter, which need not be on the PATH.
    beside = Path(sys.executable).parent / name
    tool = str(beside) if beside.exists() else shutil.which(name)
    if not tool:
        fail(f"{name} not found: run `pip install {name}` first.")
    return tool


def nvcc_version() -> str | None:
    """The version of the CUDA compiler CMake will find, or None without one."""
    compiler = shutil.which(os.environ.get("CUDACXX") or "nvcc")
    if not compiler:
        return None
    answer = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    release = re.search(r"release (\d+\.\d+)", answer.stdout)
    return release.group(1) if release else None


def use_cuda(torch_cuda: str | None) -> bool:
    choice = os.environ.get("GDFQ_CUDA", "auto").lower()
    if choice not in ("auto", "on", "off"):
        fail(f"GDFQ_CUDA is {choice!r}: allowed are auto, on and off.")
    if choice == "off":
        return False
    nvcc = nvcc_version()
    reason = None
    if torch_cuda is None:
        reason = "needs a CUDA build of torch; the installed one has none."
    elif nvcc is None:
        reason = "needs nvcc on the PATH (or CUDACXX set); none was found."
    elif nvcc.split(".")[0] != torch_cuda.split(".")[0]:
        reason = f"needs nvcc {torch_cuda.split('.')[0]} like torch's CUDA, found {nvcc}."
    if choice == "on" and reason:
        fail(f"GDFQ_CUDA=on {reason}")
    return reason is None


class BuildKernels(build_ext):
    """One CMake project in a build folder that is kept: an unchanged tree builds nothing."""

    def build_extension(self, ext: Extension) -> None:
        torch_root, torch_cuda = find_torch()
        find_compiler()
        try:
            import pybind11
        except ImportError:
            fail("building needs pybind11: run `pip install pybind11` first.")
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        default = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        build = Path(os.environ.get("GDFQ_BUILD", default)).resolve()
        build.mkdir(parents=True, exist_ok=True)
        cuda = use_cuda(torch_cuda)
        clones = os.environ.get("GDFQ_CPU_CLONES", "")
        if clones not in ("", "avx2", "default"):
            fail(f"GDFQ_CPU_CLONES is {clones!r}: allowed are avx2 and default, unset for all.")
        configure = [
            find_tool("cmake"),
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DTORCH_ROOT={torch_root}",
            f"-DGDFQ_CUDA={'ON' if cuda else 'OFF'}",
            f"-DGDFQ_CPU_CLONES={clones}",
        ]
        if "GDFQ_CUDA_ARCHITECTURES" in os.environ:
            configure.append(f"-DGDFQ_CUDA_ARCHITECTURES={os.environ['GDFQ_CUDA_ARCHITECTURES']}")
        for command in (configure, [find_tool("cmake"), "--build", str(build)]):
            if subprocess.run(command).returncode:
                fail(f"building the kernels failed; the output above says where ({command[0]}).")


setup(ext_modules=[Extension("gdfq._C", sources=[])], cmdclass={"build_ext": BuildKernels})
