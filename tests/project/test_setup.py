"""What the build decides, and what it says when it cannot go on: one sentence, no trace."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

import gdfq
from tests.standin.library import tool

ROOT = Path(__file__).parents[2]
CMAKE = tool("cmake")


def build(tmp_path, torch=None, **environment):
    """Run the build in a copy that has no sources, with another torch if one is given."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "gdfq").mkdir()
    for name in ("__init__.py", "environment.py"):  # the latter has the version
        shutil.copy(ROOT / "gdfq" / name, copy / "gdfq")
    path = []
    if torch is not None:
        folder = tmp_path / "site" / "torch"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise ImportError('not to be imported')")
        if torch:  # else a folder that is no torch
            (folder / "version.py").write_text(torch)
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


CPU_TORCH = "__version__ = '2.14.1'\ncuda = None\n"


@pytest.fixture
def empty_path(tmp_path):
    """A PATH on which nothing is found."""
    (tmp_path / "bin").mkdir()
    return str(tmp_path / "bin")


def test_torch_too_old(tmp_path):
    code, lines = build(tmp_path, "__version__ = '2.5.1+cpu'\ncuda = None\n")
    assert code == 1
    assert lines == ["gdfq: torch 2.5.1+cpu is too old: 2.11 or newer is needed."]


def test_no_torch(tmp_path):
    code, lines = build(tmp_path, "")
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


# ---- what is built ----


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Run setup.py without building, with only the given programs on the PATH; its names."""
    monkeypatch.setattr(setuptools, "setup", lambda **given: None)
    for name in ("GDFQ_CUDA", "GDFQ_CUDA_ARCHITECTURES", "CUDACXX", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def run(programs=(), **environment):
        for name, text in dict(programs).items():
            (folder / name).write_text(f"#!/bin/sh\necho '{text}'\n")
            (folder / name).chmod(0o755)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return runpy.run_path(str(ROOT / "setup.py"))

    return run


def torch_with(cuda):
    """What setup.py knows of a torch."""
    return type("Torch", (), {"cuda": cuda, "version": "2.14.1", "release": (2, 14)})()


NVCC = {"nvcc": "Cuda compilation tools, release 13.0, V13.0.88"}
H200 = {"nvidia-smi": "NVIDIA H200, 9.0"}
TWO = {"nvidia-smi": "NVIDIA A100, 8.0\nNVIDIA H200, 9.0"}


@pytest.mark.parametrize(
    ("programs", "environment", "architectures", "sentence"),
    [
        (NVCC, {}, None, "CPU kernels, no CUDA kernels: no GPU can be seen here"),
        (NVCC | H200, {}, "90-real", "CUDA kernels for the GPU that is here (NVIDIA H200)"),
        (NVCC | TWO, {}, "80-real;90-real", "(NVIDIA A100, NVIDIA H200)"),
        (NVCC | H200, {"GDFQ_CUDA": "off"}, None, "GDFQ_CUDA is off"),
        (NVCC, {"GDFQ_CUDA": "on"}, "80", "portable CUDA kernels"),
        (
            NVCC | H200,
            {"GDFQ_CUDA_ARCHITECTURES": "all"},
            "80-real;86-real;89-real;90-real;100-real;120",
            "by GDFQ_CUDA_ARCHITECTURES",
        ),
        (NVCC | H200, {"GDFQ_CUDA_ARCHITECTURES": "86, 90-real"}, "86;90-real", "for 86 90-real"),
        (H200, {}, None, "for the GPU that is here (NVIDIA H200): that needs nvcc"),
        (
            {"nvcc": "release 12.4, V12.4.131"} | H200,
            {},
            None,
            "that needs nvcc 13 like torch's CUDA, found 12.4",
        ),
    ],
)
def test_cuda_kernels_are_built_for_the_gpus_that_are_there(
    script, programs, environment, architectures, sentence
):
    found, parts = script(programs, **environment)["cuda_part"](torch_with("13.0"))
    assert found == architectures
    assert sentence in parts


@pytest.mark.parametrize("given", ["hopper", "90;", "9.0", "90-fast"])
def test_an_architecture_that_is_none_is_refused(script, given):
    with pytest.raises(SystemExit, match=re.escape(f"GDFQ_CUDA_ARCHITECTURES is {given!r}")):
        script(NVCC, GDFQ_CUDA="on", GDFQ_CUDA_ARCHITECTURES=given)["cuda_part"](torch_with("13.0"))


@pytest.mark.parametrize(("given", "expected"), [("3", ["--parallel", "3"]), ("", [])])
def test_max_jobs(script, given, expected):
    assert script(MAX_JOBS=given)["jobs"]() == expected


@pytest.mark.parametrize("given", ["0", "-1", "many", "1.5"])
def test_max_jobs_that_is_no_number_of_jobs(script, given):
    with pytest.raises(SystemExit, match=re.escape(f"gdfq: MAX_JOBS is {given!r}")):
        script(MAX_JOBS=given)["jobs"]()


def test_a_build_folder_of_another_place_is_begun_anew_and_its_own_is_kept(script, tmp_path):
    build = tmp_path / "cmake"
    (build / "CMakeFiles").mkdir(parents=True)
    (build / "CMakeCache.txt").write_text("CMAKE_HOME_DIRECTORY:INTERNAL=/elsewhere")
    (build / "notes.txt").write_text("not the build's")
    start_anew = script()["start_anew"]
    start_anew(build, {"source": "/here", "CXX": None})
    assert sorted(p.name for p in build.iterdir()) == ["gdfq-build.json", "notes.txt"]
    (build / "CMakeCache.txt").write_text("of this build")
    start_anew(build, {"source": "/here", "CXX": None})
    assert (build / "CMakeCache.txt").exists()
    start_anew(build, {"source": "/here", "CXX": "clang++"})
    assert not (build / "CMakeCache.txt").exists()


def test_what_is_built_needs_the_torch_it_was_built_for(script):
    import torch

    needed = script()["requirements"]()
    major, minor = torch.__version__.split(".")[:2]
    assert needed[0] == f"torch=={major}.{minor}.*"
    assert "pydantic>=2.7" in needed


def test_an_old_setuptools(script, monkeypatch):
    monkeypatch.setattr(setuptools, "__version__", "65.5.0")
    with pytest.raises(SystemExit, match=r"setuptools 65\.5\.0 is too old: run `pip install 'set"):
        script()


def test_a_source_folder_that_cannot_be_written_to(script, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SystemExit, match=re.escape(f"gdfq: {ROOT} cannot be written to")):
        script()


# ---- one version ----


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == gdfq.__version__
    changes = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert changes[0] == "Unreleased"
    assert changes[1] == gdfq.__version__
    assert "\nversion = " not in (ROOT / "pyproject.toml").read_text().split("[tool.")[0]


@pytest.mark.skipif(not CMAKE, reason="no CMake")
def test_the_reason_of_a_build_reaches_the_module_with_its_punctuation(tmp_path):
    text = (ROOT / "CMakeLists.txt").read_text()
    lines = re.findall(r"^string\(REPLACE \S+ \S+ parts .*|^set\(module_definitions .*", text, re.M)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(reason LANGUAGES CXX)\n"
        + "\n".join(lines)
        + "\nadd_executable(reason reason.cpp)\nset_source_files_properties(reason.cpp PROPERTIES "
        'COMPILE_DEFINITIONS "${module_definitions}")\n'
    )
    (tmp_path / "reason.cpp").write_text(
        "#include <cstdio>\nint main() { std::puts(GDFQ_PARTS); }\n"
    )
    reason = "CPU kernels: that needs nvcc (or CUDACXX set); none was found"
    for step in (f"-S{tmp_path}", f"-B{tmp_path}", f"-DGDFQ_PARTS={reason}"), ("--build", tmp_path):
        subprocess.run([CMAKE, *step], check=True, capture_output=True)
    done = subprocess.run([tmp_path / "reason"], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == reason
