"""Every tensor between guards of NaN: it is written whole, and nothing beside it is touched."""

import os
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tests.ops.cases import DTYPES, LAYOUTS, same_bits
from tests.ops.examples import EXAMPLES, mapped, results

pytestmark = pytest.mark.skipif(
    os.environ.get("GDFQ_TEST_DEVICE", "cpu") != "cpu" or "TRITON_INTERPRET" in os.environ,
    reason="the guards are around memory of the CPU that kernels write to",
)

# Bytes before and behind each tensor, and what they and what is not yet written hold: NaN, or -1.
GUARD, UNWRITTEN = 256, 0xFF

# Ends of rows, of vectors and of threads' shares at every place.
SHAPES = [(2, 3, 5, 7), (3, 130, 1, 2), (5, 19, 67, 13)]


class Guards:
    """Memory that ``torch.empty`` and its kin took, in Python or in a kernel."""

    def __init__(self):
        self.rooms = []
        dtypes = (*DTYPES, torch.float64, torch.bool, torch.int8, torch.uint8, torch.int64)
        self.nothing = {dtype: torch.empty(0, dtype=dtype) for dtype in dtypes}

    def take(self, numel, dtype):
        if numel == 0:  # PyTorch's operators resize these, and may
            return self.nothing[dtype].detach().set_(torch.UntypedStorage(0))
        count = numel * dtype.itemsize
        room = torch.from_numpy(np.full(count + 2 * GUARD, UNWRITTEN, np.uint8))
        self.rooms.append((room, count))
        return room[GUARD : GUARD + count].view(dtype)

    def empty(self, size, *, dtype=None, memory_format=None, **_):
        dtype = dtype or torch.get_default_dtype()
        format = memory_format or torch.contiguous_format
        strides = torch.empty(size, device="meta", memory_format=format).stride()
        return self.take(torch.Size(size).numel(), dtype).as_strided(size, strides)

    def empty_strided(self, size, stride, *, dtype=None, **_):
        dtype = dtype or torch.get_default_dtype()
        like = torch.empty_strided(size, stride, dtype=torch.uint8, device="meta")
        return self.take(like.untyped_storage().nbytes(), dtype).as_strided(size, stride)

    def check(self):
        assert self.rooms
        for room, count in self.rooms:
            assert (room[:GUARD] == UNWRITTEN).all(), "written in front of a result"
            assert (room[GUARD + count :] == UNWRITTEN).all(), "written behind a result"


@contextmanager
def guarded():
    guards, library = Guards(), torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of taking PyTorch's place
        library.impl("empty.memory_format", guards.empty, "CPU", allow_override=True)
        library.impl("empty_strided", guards.empty_strided, "CPU", allow_override=True)
    try:
        yield guards
    finally:
        library._destroy()


def test_a_byte_beside_a_result_is_noticed():
    for place in (GUARD - 1, -GUARD):
        with guarded() as guards:
            torch.empty(3)
        guards.rooms[0][0][place] = 0
        with pytest.raises(AssertionError, match="written"):
            guards.check()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "upsample_conv2d"])
def test_results_are_written_whole_and_nothing_beside_a_tensor_is_touched(
    name, dtype, layout, shape
):
    torch.manual_seed(0)
    given = EXAMPLES[name].make(shape, dtype)
    given = mapped(given, lambda t: LAYOUTS[layout](t) if t.dim() == 4 else t)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        expected = results(EXAMPLES[name], given)
        with guarded() as guards:
            actual = results(EXAMPLES[name], mapped(given, torch.clone))
    finally:
        torch.set_num_threads(threads)
    guards.check()
    assert all(same_bits(a, b) for a, b in zip(actual, expected, strict=True))
