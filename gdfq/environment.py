"""The software and hardware environment that a result depends on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from gdfq.errors import InputError
from gdfq.ops import _backend, _native

__version__ = "0.1.0"


def environment() -> dict[str, Any]:
    """Return versions, the machine, and the kernels that run on it."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    return {
        "gdfq": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "built": _native.parts,
        "built_for_torch": _native.torch_version,
        "built_with_cuda": _native.cuda_version,
        "built_for_cuda_architectures": _native.cuda_architectures,
        "compiler": _native.compiler,
        "triton": _backend.triton_version(),
        "backend": _backend.chosen(),
        "cpu_kernels": _backend.describe("CPU"),
        "cuda_kernels": _backend.describe("CUDA"),
    }


def not_built() -> str | None:
    """Say how to build the kernels that this build lacks; None if it has all."""
    build = "`pip install --no-build-isolation --force-reinstall --no-deps .` in the source folder"
    if _native.cuda_architectures is None:
        return (
            f"For CUDA kernels: GDFQ_CUDA=on {build}, with nvcc and a CUDA build of torch; it "
            "builds for the GPU that is there, or portable ones, and with "
            "GDFQ_CUDA_ARCHITECTURES=all for every GPU."
        )
    if len(_native.cuda_architectures.split()) < 2:
        return f"For other GPUs too: GDFQ_CUDA=on GDFQ_CUDA_ARCHITECTURES=all {build}."
    return None


def resolve_device(name: str) -> str:
    """Return "cpu" or "cuda", where "auto" prefers a GPU; raise InputError otherwise."""
    gpu = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not gpu):
        raise InputError(f"device: must be auto, cpu, or cuda where there is a GPU, got {name!r}")
    return ("cuda" if gpu else "cpu") if name == "auto" else name
