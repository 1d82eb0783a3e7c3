"""Settings of glibc's allocator, which decide how often large tensors cause page faults."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_keeping = False  # glibc has no call to query it


def keep_freed_memory() -> bool:
    """Have the C allocator keep large freed blocks instead of returning them to the system.

    A training step frees and reallocates the same large tensors; faulting in new pages costs more
    than the arithmetic on them. Meant for processes that mostly train: the ``gdfq`` command calls
    it, importing gdfq does not.

    Returns:
        Whether it took effect (Linux with glibc).
    """
    global _keeping
    _keeping = True
    return _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 2**28})


def return_freed_memory() -> bool:
    """Undo :func:`keep_freed_memory`.

    Sets the values that glibc's dynamic thresholds reach in a process that has used large blocks;
    larger blocks are returned to the system at once. Returns whether it took effect.
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
    """Restore the allocator's settings on exit.

    If neither function above had been called, those of :func:`return_freed_memory` are set.
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
