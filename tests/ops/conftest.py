"""The operators' tests run on the device that GDFQ_TEST_DEVICE names: "cpu" (default) or "cuda"."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def device():
    """Tensors that a test makes are on the device."""
    with torch.device(os.environ.get("GDFQ_TEST_DEVICE", "cpu")) as chosen:
        yield chosen
