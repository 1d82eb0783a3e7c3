"""pack_codes and unpack_codes: 1 + bits / 8 bytes of traffic a code, each."""

import pytest
import torch

from benchmarks.sizes import WEIGHTS
from gdfq.functional import pack_codes, unpack_codes
from gdfq.ops.pack_codes import pack_codes_reference, unpack_codes_reference

CASES = [
    *(("resnet18-512x512x3x3", bits) for bits in (3, 2, 4)),
    ("resnet20-64x64x3x3", 3),
    ("mobilenetv2-1280x320x1x1", 4),
]
every_case = pytest.mark.parametrize(("size", "bits"), CASES)
compiled_pack = torch.compile(pack_codes_reference, dynamic=False)
compiled_unpack = torch.compile(unpack_codes_reference, dynamic=False)


def random_codes(size, bits):
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), WEIGHTS[size], dtype=torch.int8)


@every_case
def test_pack_codes(interleave, size, bits):
    codes = random_codes(size, bits)
    interleave(
        lambda: pack_codes(codes, bits),
        {
            "eager": lambda: pack_codes_reference(codes, bits),
            "torch.compile": lambda: compiled_pack(codes, bits),
        },
        traffic=codes.numel() * (8 + bits) // 8,
    )


@every_case
def test_unpack_codes(interleave, size, bits):
    codes = random_codes(size, bits)
    packed, shape = pack_codes(codes, bits), codes.shape
    interleave(
        lambda: unpack_codes(packed, bits, shape),
        {
            "eager": lambda: unpack_codes_reference(packed, bits, shape),
            "torch.compile": lambda: compiled_unpack(packed, bits, shape),
        },
        traffic=codes.numel() * (8 + bits) // 8,
    )
