"""The CUDA extension, built for one architecture and read: resource usage and machine code.

Nothing here runs on a GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tests.standin.library import cuda_operators

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "cuda-test"
ARCHITECTURE = "90"

# Kernels that read and write no tensor by vectors: rows of channels no vector divides, partial sums
# and their results, statistics of layers, and rows of logits.
SCALAR_KERNELS = (
    r"batch_norm_stats_rowsI.*Li1E",
    r"sum_rowsI(f|6__half|13__nv_bfloat16)Li1E",
    *("finish_", "move_range", "quantizer_grids", "bns_loss", "kd_ce_loss"),
)
# Kernels that only reduce, and those whose one side is a stream of other than 4 bits a code.
KERNELS_THAT_STORE_NO_VECTOR = (
    *(r"batch_norm_stats_r.*Lb0E", "LeakySums", "range_flat", "range_rows", "count_changed_rows"),
    r"15pack_codes_flatILi[23567]E",
)
KERNELS_THAT_LOAD_NO_VECTOR = (r"17unpack_codes_flatILi[23567]E",)
QUANTIZER_KERNELS = (
    *("FakeQuantize", "ClipGradient", "LearnedGradient", "quantize_minmax_", "clip_gradient_list"),
    *("quantize_codes_flat", "count_changed_rows"),
)


def disassembler() -> str | None:
    """cuobjdump, of the CUDA toolkit or of the Triton wheel."""
    if found := shutil.which("cuobjdump"):
        return found
    try:
        import triton
    except ImportError:
        return None
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(bundled) if bundled.exists() else None


def missing() -> str | None:
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc")
    if not nvcc:
        return "nvcc is not on the PATH"
    if torch.version.cuda is None:
        return "torch is not a CUDA build"
    if not disassembler():
        return "there is no cuobjdump, neither on the PATH nor with triton"
    release = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    if f"release {torch.version.cuda.split('.')[0]}." not in release:
        return f"nvcc is not of torch's CUDA version, {torch.version.cuda}"
    return None


pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(bool(missing()), reason=missing() or ""),
]


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def extension() -> Path:
    """The extension, built in a folder of its own; an unchanged tree compiles nothing."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(BUILD / ".lock"):  # another worker of pytest-xdist waits for the first
        build()
    (library,) = (BUILD / "lib" / "gdfq").glob("_C*.so")
    return library


def build() -> None:
    run(
        *(sys.executable, "setup.py", "-q", "build_ext", "--build-lib", BUILD / "lib"),
        GDFQ_CUDA="on",
        GDFQ_CUDA_ARCHITECTURES=f"{ARCHITECTURE}-real",
        GDFQ_CPU_CLONES="default",  # which compile fastest; nothing here runs them
        GDFQ_BUILD=str(BUILD / "cmake"),
    )


class Instruction:
    """One instruction of SASS: opcode with modifiers, operands."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"^@!?U?P\w+ +", "", text.strip())
        self.opcode, _, operands = text.partition(" ")
        self.operands = [part.strip().replace(".reuse", "") for part in operands.split(",")]


def kernels_of(binary: Path) -> dict[str, list[Instruction]]:
    """The machine code of every kernel in ``binary``."""
    kernels: dict[str, list[Instruction]] = {}
    for line in run(disassembler(), "-sass", binary).splitlines():
        if name := re.match(r"\s+Function : (\S+)", line):
            code = kernels.setdefault(name.group(1), [])
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(Instruction(found.group(1)))
    return kernels


@pytest.fixture(scope="module")
def kernels(extension: Path) -> dict[str, list[Instruction]]:
    return kernels_of(extension)


def has(code: list[Instruction], pattern: str) -> bool:
    return any(re.match(pattern, i.opcode) for i in code)


def is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def contracted(code: list[Instruction]) -> bool:
    """Whether a multiply-subtract became one instruction.

    A correctly rounded division has multiply-adds of its own: -d*r+1, r*e+r, a*r+0, -d*q+a,
    r*e+q. None subtracts its last operand and none multiplies a value that was just converted or
    loaded, as scale * x - zero would.
    """
    fresh: set[str] = set()
    for i in code:
        if i.opcode.startswith("FFMA"):
            if i.operands[3].startswith("-"):
                return True
            if fresh & {operand.strip("-|") for operand in i.operands[1:3]}:
                return True
        fresh.discard(i.operands[0])
        if i.opcode.startswith("LDG") and ".128" in i.opcode:
            base = int(i.operands[0][1:])
            fresh |= {f"R{base + k}" for k in range(4)}
    return False


def test_imports_and_registers_every_operator(extension):
    program = f"""
import importlib.util, torch
spec = importlib.util.spec_from_file_location("gdfq._C", {str(extension)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.cuda_architectures == "{ARCHITECTURE}-real", module.cuda_architectures
for name in {cuda_operators()}:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("gdfq::" + name, "CUDA"), name
print("imported", module.cuda_version)
"""
    assert "imported" in run(sys.executable, "-c", program)


def test_no_stack_and_no_local_memory(extension, kernels):
    usage = run(disassembler(), "-res-usage", extension)
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert {name for name, *_ in found} == set(kernels)
    for name, _, stack, local in found:
        assert (int(stack), int(local)) == (0, 0), name
        assert not has(kernels[name], r"(LDL|STL)\b"), name


def test_128_bit_loads_and_stores(kernels):
    loading = {n for n in kernels if not is_one_of(n, SCALAR_KERNELS + KERNELS_THAT_LOAD_NO_VECTOR)}
    storing = {
        n for n in kernels if not is_one_of(n, SCALAR_KERNELS + KERNELS_THAT_STORE_NO_VECTOR)
    }
    assert len(loading) >= 80
    assert len(storing) >= 60
    for name in loading:
        assert has(kernels[name], r"LDG\.E(\.\w+)*\.128"), name
    for name in storing:
        assert has(kernels[name], r"STG\.E(\.\w+)*\.128"), name


def quantizers(kernels: dict[str, list[Instruction]]) -> dict[str, list[Instruction]]:
    return {
        name: code
        for name, code in kernels.items()
        if any(part in name for part in QUANTIZER_KERNELS)
    }


def test_no_contracted_multiply_subtract_in_the_quantizer(kernels):
    found = quantizers(kernels)
    assert len(found) == 69
    for name, code in found.items():
        assert not contracted(code), name
        assert has(code, "FMUL"), name


def test_contraction_would_be_noticed(tmp_path):
    """The same kernels from a header with plain operators, contraction allowed."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    header = tmp_path / "csrc" / "quantizer.h"
    text = header.read_text()
    for intrinsic, operator in (("__fmul_rn", "*"), ("__fsub_rn", "-"), ("__fadd_rn", "+")):
        assert intrinsic in text
        text = text.replace(f"{intrinsic}(a, b)", f"a {operator} b")
    header.write_text(text)
    nvcc = os.environ.get("CUDACXX") or "nvcc"
    flags = ("-std=c++20", "-O3", f"-arch=sm_{ARCHITECTURE}", "-cubin")
    for name in ("fake_quantize", "fake_quantize_minmax"):
        cubin = tmp_path / f"{name}.cubin"
        run(nvcc, *flags, tmp_path / "csrc" / "cuda" / f"{name}.cu", "-o", cubin)
        for kernel, code in quantizers(kernels_of(cubin)).items():
            assert contracted(code), kernel


def test_a_spill_fails_the_build(tmp_path):
    """The flags of CMakeLists.txt turn ptxas' warnings into errors."""
    source = tmp_path / "spills.cu"
    source.write_text(
        "__global__ void __launch_bounds__(1024, 2) spills(float* x) {\n"
        "  float v[80];\n"
        "#pragma unroll\n"
        "  for (int i = 0; i < 80; ++i) v[i] = x[i * 1024 + threadIdx.x];\n"
        "  __syncthreads();\n"
        "#pragma unroll\n"
        "  for (int i = 0; i < 80; ++i) x[(79 - i) * 1024 + threadIdx.x] = v[i] * v[79 - i];\n"
        "}\n"
    )
    line = next(
        line for line in (ROOT / "CMakeLists.txt").read_text().splitlines() if "-Xptxas" in line
    )
    flags = [f for f in re.findall(r"-(?:Xptxas|Werror)=[\w,-]+", line) if "Xcompiler" not in f]
    assert len(flags) == 2
    nvcc = os.environ.get("CUDACXX") or "nvcc"
    done = subprocess.run(
        [
            nvcc,
            f"-arch=sm_{ARCHITECTURE}",
            "-cubin",
            *flags,
            source,
            "-o",
            tmp_path / "spills.cubin",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "spilled" in done.stdout + done.stderr
