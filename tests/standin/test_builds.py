"""The stand-in's tests once more, in the sanitizers' and the race checker's builds."""

import os
import subprocess
import sys

import pytest

from tests.standin import library


@pytest.mark.skipif("GDFQ_STANDIN" in os.environ, reason="this is one of the other builds")
@pytest.mark.parametrize("build", ["asan", "races"])
def test_every_kernel_in_the_other_builds(standin, build):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            # A sanitizer writes its report to the descriptor as the process ends.
            *("--capture=sys", str(library.HERE)),
        ],
        cwd=library.HERE.parents[1],
        env=library.environment(build),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "100%" in done.stdout


@pytest.mark.skipif("GDFQ_STANDIN" in os.environ, reason="this is one of the other builds")
@pytest.mark.parametrize(("build", "every"), [("shuffled", 1), ("asan", 23), ("races", 41)])
def test_the_operators_suite_with_the_cuda_operators(standin, build, every):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *("-p", "tests.standin.operators", "tests/ops", "--every", str(every)),
            "--capture=sys",
        ],
        cwd=library.HERE.parents[1],
        env=library.environment(build),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "100%" in done.stdout
