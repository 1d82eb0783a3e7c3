"""The C allocator's settings, which decide how often large tensors cost page faults."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4


def keep_freed_memory() -> bool:
    """Have the C allocator keep large blocks instead of returning them to the system.

    A training step frees and takes the same large tensors again; new pages cost more than the
    arithmetic on them. For a process that trains and does little else: the ``gdfq`` command
    calls it for its own, importing gdfq does not. Returns whether glibc was there to be told.
    """
    return _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 2**28})


def return_freed_memory() -> bool:
    """Have the C allocator behave as a process that has used large blocks finds it.

    glibc raises its own thresholds up to these as blocks are freed; larger ones go back to the
    system at once.
    """
    return _set(
        {
            _M_MMAP_MAX: 65536,
            _M_MMAP_THRESHOLD: 2**25,
            _M_TRIM_THRESHOLD: 2**26,
            _M_TOP_PAD: 2**17,
        }
    )


def _set(settings: dict[int, int]) -> bool:
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    for key, value in settings.items():
        mallopt(key, value)
    return True
