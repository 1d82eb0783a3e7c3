"""Time fake_quantize, forward and backward, and the same arithmetic in plain PyTorch.

    python examples/microbenchmark.py --shape 64 64 56 56 --bits 4

Both run interleaved in one process, so that a slow phase of the machine affects both. Times are
medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import gdfq


def plain(x: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor, bits: int) -> torch.Tensor:
    """Quantize with separate operations, and pass the gradient by detach, as most code does."""
    half = 2 ** (bits - 1)
    scale = (2**bits - 1) * (1 / (hi - lo).clamp(min=1e-8))
    zero = torch.round(scale * lo) + half
    codes = torch.round(scale * x - zero).clamp(-half, half - 1)
    return x + ((codes + zero) / scale - x).detach()


def seconds(call: Callable[[], torch.Tensor], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs="+", default=[16, 64, 56, 56])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    gdfq.memory.keep_freed_memory()  # for both: fresh pages would dominate the times
    x = torch.randn(args.shape, device=args.device, requires_grad=True)
    lo, hi = x.detach().min(), x.detach().max()
    dy = torch.randn_like(x)
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "gdfq, forward": lambda: gdfq.functional.fake_quantize(x.detach(), lo, hi, args.bits),
        "plain, forward": lambda: plain(x.detach(), lo, hi, args.bits),
        "gdfq, with gradient": lambda: torch.autograd.grad(
            gdfq.functional.fake_quantize(x, lo, hi, args.bits), x, dy
        )[0],
        "plain, with gradient": lambda: torch.autograd.grad(plain(x, lo, hi, args.bits), x, dy)[0],
    }
    difference = (calls["gdfq, forward"]() - calls["plain, forward"]()).abs().max()
    print(f"{tuple(x.shape)} on {args.device}, largest difference {difference:.1g}")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.repeats + 3):
        for name, call in calls.items():
            times[name].append(seconds(call, args.device))
    for name, taken in times.items():
        median = statistics.median(taken[3:])
        print(f"{name:22} {1e3 * median:8.3f} ms  {x.numel() / median / 1e9:6.2f} G elements/s")


if __name__ == "__main__":
    main()
