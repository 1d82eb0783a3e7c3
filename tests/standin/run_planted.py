"""Runs one planted bug in this process: ``run_planted.py NAME correct|wrong``.

Exit status 0: every schedule gave the right answer; 3: a wrong answer; 4: the stand-in stopped the
launch, and says why. A sanitizer ends the process itself. Neither torch nor pytest is loaded.
"""

import ctypes
import os
import sys
from pathlib import Path

SCHEDULES = tuple((seed, poison) for seed in range(4) for poison in (0xFF, 0x5A))
THREADS = 128

# The number of elements, and the answer to x; a misaligned x where wanted.
CASES = {
    "missing_barrier": (THREADS, lambda x: x[::-1]),
    "missing_warp_barrier": (THREADS, lambda x: [x[i ^ 1] for i in range(THREADS)]),
    "missing_fence": (6 * THREADS, lambda x: [sum(x)]),
    "divergent_barrier": (100, lambda x: [2 * v for v in x]),
    "half_warp_shuffle": (THREADS, lambda x: [sum(x[:16])]),
    "misaligned_vector": (64, list),
    "overrun_tail": (101, list),
    "overrun_shared": (60, list),
    "spin_wait": (THREADS, list),
    "uninitialised_shared": (77, lambda x: [sum(x)]),
}


def main(name: str, twin: str) -> int:
    build = os.environ["GDFQ_STANDIN"]
    folder = Path(__file__).resolve().parents[2] / "build" / "standin"
    library = ctypes.CDLL(str(folder / f"libstandin_{build}.so"))
    library.standin_error.restype = ctypes.c_char_p
    numel, answer = CASES[name]
    values = [float(i % 50) for i in range(numel)]
    # malloc, so that AddressSanitizer knows where the memory ends; x ends one float off alignment.
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    skew = 1 if name == "misaligned_vector" else 0
    x = (ctypes.c_float * (numel + skew)).from_address(libc.malloc(4 * (numel + skew)))
    expected = list(answer(values))
    y = (ctypes.c_float * len(expected)).from_address(libc.malloc(4 * len(expected)))
    for i, value in enumerate(values):
        x[i + skew] = value
    library.standin_time_limit(ctypes.c_uint(3))
    for seed, poison in SCHEDULES:
        library.standin_schedule(ctypes.c_ulong(seed), ctypes.c_int(poison))
        for i in range(len(expected)):
            y[i] = -1.0
        arguments = (
            ctypes.c_int64(twin == "correct"),
            ctypes.c_void_p(ctypes.addressof(x) + 4 * skew),
            ctypes.c_void_p(ctypes.addressof(y)),
            ctypes.c_int64(numel),
        )
        if getattr(library, f"planted_{name}")(*arguments):
            print(library.standin_error().decode())
            return 4
        if list(y) != expected:
            print(f"wrong answer with schedule {seed} and poison {poison:#x}")
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
