"""The ``interleave`` fixture: ours and its rivals timed in turns, so that noise hits all alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import pytest
import torch

from benchmarks import sizes

Candidate = Callable[[], object]
DEVICE = os.environ.get("GDFQ_TEST_DEVICE", "cpu")


@pytest.fixture(autouse=True)
def device():
    """Tensors that a benchmark makes are on the device that GDFQ_TEST_DEVICE names."""
    with torch.device(DEVICE) as chosen:
        yield chosen


def timed(candidate: Candidate) -> Candidate:
    """``candidate`` as one timing calls it: on a GPU, 20 launches, and one wait for them all."""
    if DEVICE == "cpu":
        return candidate

    def launches() -> None:
        for _ in range(20):
            candidate()
        torch.cuda.synchronize()

    return launches


@pytest.fixture
def interleave(benchmark):
    """Time ``ours`` with pytest-benchmark and, before each of its rounds, every rival once.

    The medians' ratios to ours, and ours' share of a copy's speed, go into ``extra_info``.
    """

    def run(ours: Candidate, rivals: dict[str, Candidate], rounds: int = 25) -> None:
        ours = timed(ours)
        rivals = {name: timed(rival) for name, rival in rivals.items()}
        times: dict[str, list[float]] = {name: [] for name in rivals}
        for candidate in (ours, *rivals.values()):
            for _ in range(3):
                candidate()

        def time_rivals() -> None:
            for name, rival in rivals.items():
                start = time.perf_counter()
                rival()
                times[name].append(time.perf_counter() - start)

        benchmark.pedantic(ours, setup=time_rivals, rounds=rounds, warmup_rounds=1)
        # The warm-up round's times do not count.
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}
        own = benchmark.stats.stats.median
        benchmark.extra_info["ratios"] = {name: t / own for name, t in medians.items()}
        benchmark.extra_info["threads"] = torch.get_num_threads()

    return run


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``shape``: the activations, or ``weight``: the weights, of the networks measured."""
    for argument, cases in (("shape", sizes.ACTIVATIONS), ("weight", sizes.WEIGHTS)):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, cases.values(), ids=cases.keys())
