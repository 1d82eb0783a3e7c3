import pytest
import torch

from gdfq.ops.pack_codes import pack_codes_reference
from tests.standin.library import SCHEDULES


@pytest.mark.parametrize("bits", range(2, 8))
@pytest.mark.parametrize("offset", [0, 1])
def test_of_codes_out_of_range_the_lowest_bits_are_packed(standin, bits, offset):
    codes = torch.arange(-128, 128, dtype=torch.int8)[offset:]
    packed = torch.full(((len(codes) * bits + 7) // 8,), 77, dtype=torch.uint8)
    standin.launch("pack_codes", codes, packed, bits, len(codes), schedule=SCHEDULES[1])
    half = 2 ** (bits - 1)
    lowest = ((codes.int() + half) % 2**bits - half).to(torch.int8)
    assert torch.equal(packed, pack_codes_reference(lowest, bits))
