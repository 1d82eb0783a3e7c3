import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import gdfq
from gdfq.functional import pack_codes, unpack_codes
from gdfq.ops.pack_codes import PACKED_BITS, pack_codes_reference, unpack_codes_reference
from tests.ops import draws
from tests.ops.cases import same_bits

every_bits = pytest.mark.parametrize("bits", PACKED_BITS)


def random_codes(shape, bits, seed=0):
    torch.manual_seed(seed)
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, dtype=torch.int8)


@every_bits
@pytest.mark.parametrize("numel", [*range(27), 1000, 100_003])
def test_unpacking_is_the_exact_inverse(bits, numel):
    codes = random_codes((numel,), bits)
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (math.ceil(numel * bits / 8),)
    assert same_bits(packed, pack_codes_reference(codes, bits))
    assert same_bits(unpack_codes(packed, bits, (numel,)), codes)
    assert same_bits(unpack_codes_reference(packed, bits, (numel,)), codes)


def test_the_stream_s_layout():
    assert pack_codes(torch.tensor([-2, -1, 0, 1], dtype=torch.int8), 2).tolist() == [0b11_10_01_00]
    assert pack_codes(torch.tensor([-8, 7, 1], dtype=torch.int8), 4).tolist() == [0xF0, 0x09]
    # Codes + 4 are 0 to 7, three bits each, lowest first.
    ramp = torch.arange(-4, 4, dtype=torch.int8)
    stream = sum(code << 3 * i for i, code in enumerate(range(8)))
    assert pack_codes(ramp, 3).tolist() == list(stream.to_bytes(3, "little"))
    seven = torch.tensor([-64, 63, -63], dtype=torch.int8)
    assert pack_codes(seven, 7).tolist() == [0b1_0000000, 0b01_111111, 0]


@every_bits
def test_shapes_and_layouts(bits):
    codes = random_codes((3, 5, 7, 2), bits)
    packed = pack_codes(codes, bits)
    assert same_bits(pack_codes(codes.contiguous(memory_format=torch.channels_last), bits), packed)
    assert same_bits(pack_codes(codes.transpose(0, 3).contiguous().transpose(0, 3), bits), packed)
    assert same_bits(unpack_codes(packed, bits, codes.shape), codes)


@every_bits
def test_opcheck(bits):
    codes = random_codes((3, 7), bits)
    opcheck(torch.ops.gdfq.pack_codes.default, (codes, bits))
    packed = pack_codes(codes, bits)
    opcheck(torch.ops.gdfq.unpack_codes.default, (packed, bits, [3, 7]))


@pytest.mark.values_checked
@every_bits
@pytest.mark.parametrize("position", [0, 7, 8, 18])
def test_code_out_of_range(bits, position):
    codes = random_codes((19,), bits)
    for bad in (-(2 ** (bits - 1)) - 1, 2 ** (bits - 1), -128, 127):
        codes[position] = bad
        with pytest.raises(ValueError, match=f"codes: must be from .* for {bits} bits"):
            pack_codes(codes, bits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_codes(torch.zeros(3), 4), "codes: must be a tensor of torch.int8, got"),
        (lambda: pack_codes(torch.zeros(3).char(), 8), "bits: must be an int from 2 to 7, got 8"),
        (
            lambda: unpack_codes(torch.zeros(3).char(), 4, (6,)),
            "packed: must be a tensor of torch.u",
        ),
        (lambda: unpack_codes(torch.zeros(3).byte(), 4, (7,)), r"packed: shape must be \(4,\)"),
        (lambda: unpack_codes(torch.zeros(3).byte(), 4, (-6,)), "shape: must be ints >= 0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(gdfq.InputError, match=message):
        call()


@given(st.data())
def test_unpacking_is_the_exact_inverse_on_drawn_codes(data):
    shape = data.draw(st.one_of(draws.shapes(0, 4), st.tuples(st.integers(0, 300))))
    bits = data.draw(st.sampled_from(PACKED_BITS))
    codes = data.draw(draws.strided(random_codes(shape, bits, data.draw(st.integers(0, 99)))))
    packed = pack_codes(codes, bits)
    assert same_bits(packed, pack_codes_reference(codes, bits))
    assert same_bits(unpack_codes(packed, bits, shape), codes)
    assert same_bits(unpack_codes_reference(packed, bits, shape), codes)
