"""The ``interleave`` fixture: times ours and its rivals interleaved, so that noise affects all."""

from __future__ import annotations

import collections
import os
import statistics
import time
from collections.abc import Callable

import pytest
import torch

from benchmarks import sizes
from gdfq.memory import keep_freed_memory

Candidate = Callable[[], object]
DEVICE = os.environ.get("GDFQ_TEST_DEVICE", "cpu")
# Rounds of a benchmark: as many as fit into SECONDS, within these bounds.
FEWEST, MOST = 5, 25
SECONDS = 2.0
# Seconds after which no benchmark starts.
LIMIT = float(os.environ.get("GDFQ_BENCH_SECONDS", "inf"))
STARTED = time.monotonic()
keep_freed_memory()  # so that all candidates write to memory that has been used before


@pytest.fixture(autouse=True)
def device():
    """Create a benchmark's tensors on the device that GDFQ_TEST_DEVICE names."""
    with torch.device(DEVICE) as chosen:
        yield chosen


@pytest.fixture(autouse=True)
def compiler():
    """Compile anew for each benchmark, and fail if a rival falls back to eager."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


def timed(candidate: Candidate) -> Candidate:
    """Return the timed function: ``candidate``, or on a GPU 20 launches and one synchronization."""
    if DEVICE == "cpu":
        return candidate

    def launches() -> None:
        for _ in range(20):
            candidate()
        torch.cuda.synchronize()

    return launches


def copy_of(traffic: int) -> Candidate:
    """Return a copy into existing memory that reads and writes ``traffic`` bytes in total."""
    source = torch.ones(max(1, traffic // 8), dtype=torch.float32)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


@pytest.fixture
def interleave(benchmark):
    """Time ``ours`` with pytest-benchmark and, before each of its rounds, every rival once.

    ``traffic`` is the minimum of bytes that the operation must move; the rival "copy" moves
    as many. The medians' ratios to ours go into ``extra_info``.
    """

    def run(ours: Candidate, rivals: dict[str, Candidate], traffic: int | None = None) -> None:
        if traffic is not None:
            rivals = {**rivals, "copy": copy_of(traffic)}
        ours = timed(ours)
        rivals = {name: timed(rival) for name, rival in rivals.items()}
        times: dict[str, list[float]] = {name: [] for name in rivals}
        for _ in range(3):
            start = time.perf_counter()
            for candidate in (ours, *rivals.values()):
                candidate()
            once = time.perf_counter() - start

        def time_rivals() -> None:
            for name, rival in rivals.items():
                start = time.perf_counter()
                rival()
                times[name].append(time.perf_counter() - start)

        rounds = min(MOST, max(FEWEST, round(SECONDS / once)))
        benchmark.pedantic(ours, setup=time_rivals, rounds=rounds, warmup_rounds=1)
        # The warm-up round's times do not count.
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}
        own = benchmark.stats.stats.median
        benchmark.extra_info["ratios"] = {name: t / own for name, t in medians.items()}
        benchmark.extra_info["traffic"] = traffic

    return run


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize ``shape`` over the networks' activations, ``weight`` over their weights."""
    for argument, cases in (("shape", sizes.ACTIVATIONS), ("weight", sizes.WEIGHTS)):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, cases.values(), ids=cases.keys())


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Run every operator's first size, then the second: a time limit cuts off sizes only."""
    seen: collections.Counter = collections.Counter()
    turn = {}
    for item in items:
        turn[item] = seen[item.function]
        seen[item.function] += 1
    items.sort(key=turn.__getitem__)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start no benchmark after GDFQ_BENCH_SECONDS."""
    if time.monotonic() - STARTED > LIMIT:
        pytest.skip("no time left")
