"""Where the operators' tests run, and how many of them."""

import collections
import os
import time

import pytest
import torch

# Seconds after which no further test is begun.
LIMIT = float(os.environ.get("GDFQ_TEST_SECONDS", "inf"))
STARTED = time.monotonic()


@pytest.fixture(autouse=True)
def device():
    """Tensors that a test makes are on GDFQ_TEST_DEVICE: "cpu", the default, or "cuda"."""
    with torch.device(os.environ.get("GDFQ_TEST_DEVICE", "cpu")) as chosen:
        yield chosen


def pytest_addoption(parser):
    parser.addoption(
        "--every", type=int, default=1, help="run one in this many of each test's parameters"
    )
    parser.addoption(
        "--large", action="store_true", help="run the tests of more than 2^31 elements"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "large: more than 2^31 elements, run where --large is given")
    config.addinivalue_line(
        "markers", "values_checked: errors that need a look at values, which a GPU doesn't take"
    )
    config.addinivalue_line("markers", "values_unchecked: what a GPU makes of such values")


def pytest_runtest_setup(item):
    if time.monotonic() - STARTED > LIMIT:
        pytest.skip("no time left")
    on_gpu = os.environ.get("GDFQ_TEST_DEVICE", "cpu") != "cpu"
    unchecked = on_gpu or item.config.pluginmanager.hasplugin("tests.standin.operators")
    if unchecked and item.get_closest_marker("values_checked"):
        pytest.skip("the CUDA kernels don't check values: that would wait for the device")
    if not unchecked and item.get_closest_marker("values_unchecked"):
        pytest.skip("the CPU's kernels check values")


def pytest_collection_modifyitems(config, items):
    """Thin out each test's parameters: an interpreter is too slow for all of them every time."""
    every = config.getoption("--every", 1)
    seen = collections.Counter()
    kept, left = [], []
    for item in items:
        function = (item.fspath, getattr(item, "originalname", item.name))
        (left if seen[function] % every else kept).append(item)
        seen[function] += 1
    items[:] = kept
    config.hook.pytest_deselected(items=left)
