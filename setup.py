"""Builds the native kernels with CMake; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MINIMUM_TORCH = (2, 11)
MINIMUM_SETUPTOOLS = 77
OTHER_REQUIREMENTS = (
    "jinja2>=3",
    "numpy",
    "pillow",
    "pydantic>=2.7",
    "rich>=13",
    "safetensors>=0.4.3",
    "tomli>=2; python_version < '3.11'",
    "tomli-w>=1",
    "typer>=0.15",
)
# For wheels: every GPU since 2020 has code of its own, later ones compile it when they load it.
ALL_ARCHITECTURES = "80-real;86-real;89-real;90-real;100-real;120"
# Where no GPU can be seen: code for the oldest, which later ones compile when they load it.
PORTABLE_ARCHITECTURE = "80"


def fail(sentence: str) -> NoReturn:
    raise SystemExit(f"gdfq: {sentence}")


def setting(name: str, allowed: tuple[str, ...], otherwise: str) -> str:
    """An environment variable with a few allowed values."""
    value = os.environ.get(name, "").lower() or otherwise
    if value not in allowed:
        fail(f"{name} is {value!r}: allowed are {', '.join(allowed[:-1])} and {allowed[-1]}.")
    return value


# ---- what is here ----


class Torch:
    """The installed torch, read without importing it, which takes seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        told = runpy.run_path(str(folder / "version.py"))
        self.version = str(told["__version__"])
        self.cuda: str | None = told.get("cuda")
        self.release = tuple(int(part) for part in re.findall(r"\d+", self.version)[:2])


def installed_torch() -> Torch | None:
    found = find_spec("torch")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent
    return Torch(folder) if (folder / "version.py").exists() else None


def find_torch() -> Torch:
    torch = installed_torch()
    if torch is None:
        fail(
            "building needs torch: run `pip install 'torch>=2.11'` first, then "
            "`pip install --no-build-isolation .`."
        )
    if torch.release < MINIMUM_TORCH:
        needed = ".".join(map(str, MINIMUM_TORCH))
        fail(f"torch {torch.version} is too old: {needed} or newer is needed.")
    return torch


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


def jobs() -> list[str]:
    """How many files are compiled at a time, for ``cmake --build``: by default one a core."""
    given = os.environ.get("MAX_JOBS", "")
    if not given:
        return []
    if not given.isdecimal() or int(given) < 1:
        fail(f"MAX_JOBS is {given!r}: allowed is a whole number of at least 1.")
    return ["--parallel", given]


def find_nvcc() -> str | None:
    """The CUDA compiler that CMake will find."""
    return shutil.which(os.environ.get("CUDACXX") or "nvcc")


def nvcc_version(nvcc: str) -> str:
    answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    release = re.search(r"release (\d+\.\d+)", answer.stdout)
    return release.group(1) if release else "of an unknown version"


def visible_gpus(torch: Torch) -> list[tuple[str, str]]:
    """Name and compute capability, such as "9.0", of each GPU."""
    if smi := shutil.which("nvidia-smi"):
        query = [smi, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True)
        lines = re.findall(r"^(.+), *(\d+\.\d+)$", answer.stdout, re.M)
        if answer.returncode == 0 and lines:
            return lines
    if not any(Path("/dev").glob("nvidia[0-9]*")) or torch.cuda is None:
        return []
    program = (
        "import torch\n"
        "for i in range(torch.cuda.device_count()):\n"
        "    name, cap = torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)\n"
        "    print(name, '%d.%d' % cap, sep=', ')\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return re.findall(r"^(.+), *(\d+\.\d+)$", answer.stdout, re.M)


# ---- what to build ----


def given_architectures() -> str | None:
    given = os.environ.get("GDFQ_CUDA_ARCHITECTURES", "").strip()
    if not given:
        return None
    if given.lower() == "all":
        return ALL_ARCHITECTURES
    names = re.split(r"[;,\s]+", given)
    if not all(re.fullmatch(r"\d{2,3}[af]?(-real|-virtual)?", name) for name in names):
        fail(
            f"GDFQ_CUDA_ARCHITECTURES is {given!r}: allowed are all, and architectures as CMake "
            "writes them, such as 90 or '80-real;90'."
        )
    return ";".join(names)


def cuda_part(torch: Torch) -> tuple[str | None, str]:
    """The architectures to build CUDA kernels for, None for none, and a sentence about it."""
    choice = setting("GDFQ_CUDA", ("auto", "on", "off"), "auto")
    if choice == "off":
        return None, "CPU kernels, no CUDA kernels: GDFQ_CUDA is off"
    given = given_architectures()
    gpus = visible_gpus(torch)
    nvcc = find_nvcc()
    reason = None
    if torch.cuda is None:
        reason = "needs a CUDA build of torch; the installed one has none."
    elif nvcc is None:
        reason = "needs nvcc on the PATH (or CUDACXX set); none was found."
    elif nvcc_version(nvcc).split(".")[0] != torch.cuda.split(".")[0]:
        reason = (
            f"needs nvcc {torch.cuda.split('.')[0]} like torch's CUDA, found {nvcc_version(nvcc)}."
        )
    if choice == "on" and reason:
        fail(f"GDFQ_CUDA=on {reason}")
    if reason:
        seen = f" for the GPU that is here ({gpus[0][0]})" if gpus else ""
        return None, f"CPU kernels, no CUDA kernels{seen}: that {reason.rstrip('.')}"
    if choice == "auto" and not gpus:
        return None, "CPU kernels, no CUDA kernels: no GPU can be seen here"
    if given:
        named = "GDFQ_CUDA_ARCHITECTURES"
        return given, f"CPU kernels, and CUDA kernels for {given.replace(';', ' ')}, by {named}"
    if gpus:
        capabilities = sorted({float(capability) for _, capability in gpus})
        architectures = ";".join(f"{round(10 * c)}-real" for c in capabilities)
        names = ", ".join(sorted({name for name, _ in gpus}))
        return architectures, f"CPU kernels, and CUDA kernels for the GPU that is here ({names})"
    return (
        PORTABLE_ARCHITECTURE,
        "CPU kernels, and portable CUDA kernels, for GPUs of compute capability 8.0 and later: "
        "no GPU can be seen here",
    )


# ---- the build ----


def start_anew(build: Path, depends_on: dict[str, str | None]) -> None:
    """Forget what an earlier build of other compilers, another torch or another place left."""
    stamp = build / "gdfq-build.json"
    text = json.dumps(depends_on, indent=1)
    if stamp.exists() and stamp.read_text() == text:
        return
    for name in ("CMakeCache.txt", "build.ninja", ".ninja_deps", ".ninja_log"):
        (build / name).unlink(missing_ok=True)
    shutil.rmtree(build / "CMakeFiles", ignore_errors=True)
    stamp.write_text(text)


class BuildKernels(build_ext):
    """One CMake project in a build folder that is kept: an unchanged tree builds nothing."""

    def build_extension(self, ext: Extension) -> None:
        torch = find_torch()
        find_compiler()
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        try:
            import pybind11
        except ImportError:
            fail("building needs pybind11: run `pip install pybind11` first.")
        clones = setting("GDFQ_CPU_CLONES", ("all", "avx2", "default"), "all")
        architectures, parts = cuda_part(torch)
        parallel = jobs()
        default = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        build = Path(os.environ.get("GDFQ_BUILD", default)).resolve()
        build.mkdir(parents=True, exist_ok=True)
        variables = ("CXX", "CXXFLAGS", "CUDACXX", "CUDAFLAGS", "LDFLAGS")
        start_anew(
            build,
            {
                "source": str(ROOT),
                "build": str(build),
                "python": sys.executable,
                "torch": f"{torch.version} {torch.folder}",
                **{name: os.environ.get(name) for name in variables},
            },
        )
        configure = [
            cmake,
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build / 'lib'}",
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DTORCH_ROOT={torch.folder}",
            f"-DGDFQ_CUDA={'ON' if architectures else 'OFF'}",
            f"-DGDFQ_CUDA_ARCHITECTURES={architectures or ''}",
            f"-DGDFQ_CPU_CLONES={'' if clones == 'all' else clones}",
            f"-DGDFQ_PARTS={parts}",
        ]
        done = subprocess.run(configure, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            sys.stderr.buffer.write(done.stdout)
            fail("CMake cannot configure the kernels' build; the output above says why.")
        print(f"gdfq: building {parts}.", flush=True)
        environment = {"NINJA_STATUS": "gdfq: file %f of %t, %es: ", **os.environ}
        if subprocess.run([cmake, "--build", str(build), *parallel], env=environment).returncode:
            fail("compiling the kernels failed; the output above says where.")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        # A new file: a process that has the old one loaded keeps it.
        fresh = target.with_suffix(".new")
        shutil.copy2(build / "lib" / target.name, fresh)
        fresh.replace(target)


def requirements() -> list[str]:
    """What the package needs: torch in the version that the kernels are compiled for."""
    torch = installed_torch()
    if torch is None or torch.release < MINIMUM_TORCH:
        return ["torch>=" + ".".join(map(str, MINIMUM_TORCH)), *OTHER_REQUIREMENTS]
    return ["torch==" + ".".join(map(str, torch.release)) + ".*", *OTHER_REQUIREMENTS]


def check_ground() -> None:
    """Refuse what setuptools itself would end with a trace on."""
    if int(setuptools.__version__.split(".")[0]) < MINIMUM_SETUPTOOLS:
        fail(
            f"setuptools {setuptools.__version__} is too old: run "
            f"`pip install 'setuptools>={MINIMUM_SETUPTOOLS}'`."
        )
    if not os.access(ROOT, os.W_OK):
        fail(
            f"{ROOT} cannot be written to, and a build leaves its files there: build from a copy, "
            f"`cp -r {ROOT} COPY`."
        )


check_ground()
setup(
    ext_modules=[Extension("gdfq._C", sources=[])],
    cmdclass={"build_ext": BuildKernels},
    install_requires=requirements(),
)
