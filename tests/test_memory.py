"""The C allocator's settings, in processes of their own: they hold for a whole process."""

import subprocess
import sys
from contextlib import nullcontext

import pytest

from gdfq import memory

glibc = pytest.mark.skipif(memory._mallopt() is None, reason="needs glibc's mallopt")

# Page faults of taking, touching and freeing 64 MB over and over, after a first time.
FAULTS = """
import ctypes, importlib.util, resource, sys

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        block = libc.malloc(64_000_000)
        ctypes.memset(block, 1, 64_000_000)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
exec(sys.argv[1])
faults()
print(faults())
"""
MEMORY = f"""
spec = importlib.util.spec_from_file_location("memory", {memory.__file__!r})
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)
"""


def faults_after(lines):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, lines], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@glibc
def test_kept_memory_costs_no_new_pages():
    """64 MB are 15625 pages of 4 KB, or 31 of 2 MB where the system has those."""
    assert faults_after("") > 100
    assert faults_after(MEMORY + "assert memory.keep_freed_memory()") < 10
    assert faults_after(MEMORY + "assert memory.return_freed_memory()") > 100


@glibc
def test_importing_changes_nothing():
    assert faults_after("import gdfq, gdfq.cli, gdfq.bench.measure") > 100


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
