"""Each planted bug is caught by the build named for it; its correct twin passes all three."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.standin import library

pytestmark = pytest.mark.skipif("GDFQ_STANDIN" in os.environ, reason="starts the builds itself")

# Bug, build, what it prints. The race checker names both lines.
BUGS = [
    ("missing_barrier", "shuffled", "wrong answer"),
    ("missing_barrier", "races", r"race: a (load|store) at planted.cu:\d+ .* planted.cu:\d+"),
    ("missing_warp_barrier", "races", r"race: a (load|store) at planted.cu:\d+ .* planted.cu:\d+"),
    ("missing_fence", "races", r"race: a load at planted.cu:\d+ .* a store at planted.cu:\d+"),
    ("divergent_barrier", "shuffled", r"divergent barrier: .* planted.cu:\d+.* has returned"),
    ("half_warp_shuffle", "shuffled", r"(the mask at|warp operation without all lanes)"),
    ("misaligned_vector", "asan", "misaligned address"),
    ("overrun_tail", "asan", "heap-buffer-overflow"),
    ("overrun_shared", "asan", "heap-buffer-overflow"),
    ("spin_wait", "shuffled", "exceeded its time limit"),
    ("uninitialised_shared", "shuffled", "wrong answer"),
]


def run(build, name, twin):
    return subprocess.run(
        [sys.executable, str(library.HERE / "run_planted.py"), name, twin],
        env=library.environment(build),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(("name", "build", "message"), BUGS, ids=lambda v: str(v).split(":")[0])
def test_bug_is_caught(standin, name, build, message):
    done = run(build, name, "wrong")
    assert done.returncode != 0
    assert re.search(message, done.stdout + done.stderr), done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted({name for name, _, _ in BUGS}))
@pytest.mark.parametrize("build", library.BUILDS)
def test_correct_twin_passes(standin, name, build):
    done = run(build, name, "correct")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_planted_bug_is_in_the_table(standin):
    source = (Path(library.HERE) / "planted.cu").read_text()
    planted = set(re.findall(r"__global__ void (\w+)\(", source))
    assert planted == {name for name, _, _ in BUGS}
