"""The C allocator's settings, which decide how often large tensors cost page faults."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_keeping = False  # glibc doesn't tell


def keep_freed_memory() -> bool:
    """Have the C allocator keep large blocks instead of returning them to the system.

    A training step frees and takes the same large tensors again; new pages cost more than the
    arithmetic on them. For a process that trains and does little else: the ``gdfq`` command
    calls it for its own, importing gdfq does not. Returns whether glibc was there to be told.
    """
    global _keeping
    _keeping = True
    return _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 2**28})


def return_freed_memory() -> bool:
    """Have the C allocator behave as a process that has used large blocks finds it.

    glibc raises its own thresholds up to these as blocks are freed; larger ones go back to the
    system at once.
    """
    global _keeping
    _keeping = False
    return _set(
        {
            _M_MMAP_MAX: 65536,
            _M_MMAP_THRESHOLD: 2**25,
            _M_TRIM_THRESHOLD: 2**26,
            _M_TOP_PAD: 2**17,
        }
    )


@contextmanager
def allocator_put_back() -> Iterator[None]:
    """Within, call the two functions above; afterwards the allocator does what it did before.

    In a process that had called neither, that is what :func:`return_freed_memory` sets.
    """
    before = _keeping
    try:
        yield
    finally:
        keep_freed_memory() if before else return_freed_memory()


def _mallopt() -> Callable[[int, int], int] | None:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None)


def _set(settings: dict[int, int]) -> bool:
    mallopt = _mallopt()
    if mallopt is None:
        return False
    for key, value in settings.items():
        mallopt(key, value)
    return True
