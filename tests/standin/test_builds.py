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
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(library.HERE)],
        env=library.environment(build),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert " passed" in done.stdout
