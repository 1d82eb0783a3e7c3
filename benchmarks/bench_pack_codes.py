"""pack_codes and unpack_codes: 1 + bits / 8 bytes of traffic a code, each."""

import pytest
import torch

from gdfq.functional import pack_codes, unpack_codes
from gdfq.ops.pack_codes import pack_codes_reference, unpack_codes_reference

NUMEL = 512 * 512 * 9
compiled_pack = torch.compile(pack_codes_reference, dynamic=False)
compiled_unpack = torch.compile(unpack_codes_reference, dynamic=False)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_pack_codes(interleave, bits):
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (NUMEL,), dtype=torch.int8)
    out = torch.empty_like(codes)
    interleave(
        lambda: pack_codes(codes, bits),
        {
            "eager": lambda: pack_codes_reference(codes, bits),
            "torch.compile": lambda: compiled_pack(codes, bits),
            "copy": lambda: out.copy_(codes),
        },
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_unpack_codes(interleave, bits):
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (NUMEL,), dtype=torch.int8)
    packed, out = pack_codes(codes, bits), torch.empty_like(codes)
    interleave(
        lambda: unpack_codes(packed, bits, (NUMEL,)),
        {
            "eager": lambda: unpack_codes_reference(packed, bits, (NUMEL,)),
            "torch.compile": lambda: compiled_unpack(packed, bits, (NUMEL,)),
            "copy": lambda: out.copy_(codes),
        },
    )
