"""The clones of the CPU kernels that this machine's processor would pass over, each in a build.

Each build takes a minute or two.
"""

import os
import platform
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import distribution
from tests.helpers.distribution import run
from tests.standin.library import missing_tools

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(bool(missing_tools()), reason=f"missing: {missing_tools()}"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="there are no clones"),
]


def build(clones: str, folder: Path) -> None:
    """Put the package with a build of its own into ``folder``; one is in the tests' wheel."""
    if clones == distribution.CLONES and distribution.can_build():
        with zipfile.ZipFile(distribution.build().wheel) as wheel:
            wheel.extractall(folder)
        return
    shutil.copytree(ROOT / "gdfq", folder / "gdfq", ignore=shutil.ignore_patterns("_C*.so"))
    options = {"GDFQ_CUDA": "off", "GDFQ_BUILD": str(folder / "cmake"), "GDFQ_CPU_CLONES": clones}
    run(
        *(sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder),
        cwd=ROOT,
        env={**os.environ, **options},
    )


@pytest.mark.parametrize("clones", ["avx2", "default"])
def test_operators_with_one_clone(clones, tmp_path):
    build(clones, tmp_path)
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (library,) = (tmp_path / "gdfq").glob("_C*.so")
    for suffix in (b".avx512f", b".avx2"):  # of a clone's symbol, where there are several
        assert suffix not in library.read_bytes()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = run(
        *(sys.executable, "-c", "import gdfq._C; print(gdfq._C.__file__)"),
        cwd=tmp_path,
        env=environment,
    )
    assert found.strip() == str(library)
    run(
        *(sys.executable, "-m", "pytest", "tests/ops", "--every", "23"),
        cwd=tmp_path,
        env=environment,
    )
