"""The C allocator's settings, in processes of their own: they hold for a whole process."""

import subprocess
import sys
from contextlib import nullcontext

import pytest

from gdfq import memory

glibc = pytest.mark.skipif(memory._mallopt() is None, reason="needs glibc's mallopt")

# Page faults of taking, touching and freeing 64 MB over and over, after a first time.
FAULTS = """
import resource, sys
import torch
from gdfq import memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
torch.ones(16_000_000)
for line in sys.argv[1:]:
    exec(line)
    faults()
    print(faults())
"""


def faults_after(*lines):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, *lines], capture_output=True, text=True, check=True
    )
    return [int(line) for line in done.stdout.split()]


@glibc
def test_kept_memory_costs_no_new_pages():
    """64 MB are 15625 pages of 4 KB, or 31 of 2 MB where the system has those."""
    untouched, kept, returned = faults_after(
        "pass", "assert memory.keep_freed_memory()", "assert memory.return_freed_memory()"
    )
    assert kept < 10
    assert untouched > 100
    assert returned > 100


@glibc
def test_importing_changes_nothing():
    plain, imported = faults_after("pass", "import gdfq, gdfq.cli, gdfq.bench.measure")
    assert plain > 100
    assert imported > 100


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_what_was_before_is_put_back(monkeypatch, kept, fails):
    calls = []
    monkeypatch.setattr(memory, "_set", calls.append)
    monkeypatch.setattr(memory, "_keeping", False)
    set_before = memory.keep_freed_memory if kept else memory.return_freed_memory
    set_inside = memory.return_freed_memory if kept else memory.keep_freed_memory

    def inside():
        with memory.allocator_put_back():
            set_inside()
            if fails:
                raise ZeroDivisionError

    set_before()
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        inside()
    before, changed, after = calls
    assert before == after != changed


@pytest.mark.parametrize("missing", ["platform", "mallopt"])
def test_elsewhere_nothing_is_done(monkeypatch, missing):
    if missing == "platform":
        monkeypatch.setattr("gdfq.memory.sys.platform", "darwin")
    else:
        monkeypatch.setattr("gdfq.memory.ctypes.CDLL", lambda name: object())
    monkeypatch.setattr(memory, "_keeping", False)
    assert not memory.keep_freed_memory()
    assert not memory.return_freed_memory()
