"""The sdist, and the wheel that is built from it: once for all tests that need them.

The wheel's CPU kernels are those for processors without extensions, which compile fastest and which
``test_cpu_clones.py`` runs too.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "distribution"
CLONES = "default"


@dataclass(frozen=True)
class Distributions:
    sdist: Path
    wheel: Path


def run(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def tracked() -> list[str]:
    """What a fresh clone with the changes in this one would hold."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file())


def can_build() -> bool:
    """Whether this is a clone: git lists what belongs into an sdist."""
    return bool(shutil.which("git")) and (ROOT / ".git").exists()


@functools.cache
def build() -> Distributions:
    """Of this clone's files; an unchanged ``csrc`` compiles nothing."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / ".lock"):  # another worker of pytest-xdist waits for the first
        return _build()


def _date(folder: Path, before: Path) -> None:
    """Have the files that are not as they were in ``before`` newer than all that is built."""
    for path in filter(Path.is_file, folder.rglob("*")):
        old = before / path.relative_to(folder)
        same = old.is_file() and old.read_bytes() == path.read_bytes()
        os.utime(path, (old.stat().st_mtime,) * 2 if same else None)


def _build() -> Distributions:
    tree, unpacked, out = FOLDER / "tree", FOLDER / "unpacked", FOLDER / "dist"
    before = FOLDER / "before"
    for folder in (tree, before, out):
        shutil.rmtree(folder, ignore_errors=True)
    if unpacked.exists():
        unpacked.rename(before)
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    out.mkdir()
    hook = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", hook, out, cwd=tree)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        # Python 3.11.4 has the filter.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        archive.extractall(unpacked)
    (source,) = unpacked.iterdir()
    _date(unpacked, before)
    environment = {
        **os.environ,
        "GDFQ_CUDA": "off",
        "GDFQ_CPU_CLONES": CLONES,
        "GDFQ_BUILD": str(FOLDER / "cmake"),
    }
    run(
        *(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"),
        *("--wheel-dir", out, source),
        env=environment,
    )
    (wheel,) = out.glob("*.whl")
    return Distributions(sdist, wheel)
