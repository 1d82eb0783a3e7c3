import math
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

import gdfq
from gdfq.functional import count_changed_codes, quantize_codes
from gdfq.ops.count_changed_codes import count_changed_codes_reference
from tests.ops import draws
from tests.ops.cases import LAYOUTS, every_dtype, every_layout

SHAPES = ((16, 3, 3, 3), (8, 16, 3, 3), (5, 1, 3, 3), (1, 1, 1, 1), (10, 64, 1, 1), (3, 700, 5, 3))
OTHERS = ((10, 33), (7,), (0, 4), (4, 0))


def arguments(dtype=torch.float32, layout="contiguous", bits=4):
    torch.manual_seed(0)
    ws, updates = (
        [LAYOUTS[layout](torch.randn(shape).to(dtype)) for shape in SHAPES]
        + [torch.randn(shape).to(dtype) for shape in OTHERS]
        for _ in range(2)
    )
    los, his = zip(
        *((-torch.rand(len(w)) - 0.5, torch.rand(len(w)) + 0.5) for w in ws), strict=True
    )
    factors = torch.rand(len(ws)) * 0.3
    return ws, updates, factors, list(los), list(his), [bits] * len(ws)


@every_dtype
@every_layout
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_equals_the_reference(dtype, layout, bits):
    given = arguments(dtype, layout, bits)
    counts = count_changed_codes(*given)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, count_changed_codes_reference(*given))
    assert counts.sum() > 100
    assert not counts[-2:].any()


def test_counts_what_quantize_codes_says():
    ws, updates, factors, los, his, _ = arguments()
    for w, update, factor, lo, hi, count in zip(
        ws, updates, factors, los, his, count_changed_codes(*arguments()), strict=True
    ):
        before, after = (quantize_codes(x, lo, hi, 4, 0)[0] for x in (w, w - factor * update))
        assert count == (before != after).sum()


def test_no_count_is_lost_between_threads(pytestconfig):
    """Threads that add to one count as fast as they can: every element is a row, every code moves.

    Without atomic additions nearly every run of this loses some, where there is a second core.
    """
    standin = pytestconfig.pluginmanager.hasplugin("tests.standin.operators")
    if standin or os.environ.get("TRITON_INTERPRET"):
        pytest.skip("has no threads, and takes long; the stand-in's race checker looks for such")
    rows = 2**18
    w, update = torch.zeros(rows, 1), torch.full((rows, 1), -1.0)
    bounds = [torch.full((rows,), -1.0)], [torch.full((rows,), 1.0)]
    threads = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        counts = [
            int(count_changed_codes([w], [update], torch.ones(1), *bounds, [4])) for _ in range(3)
        ]
    finally:
        torch.set_num_threads(threads)
    assert counts == [rows] * 3


def test_no_factor_and_no_update_change_nothing():
    ws, updates, factors, *ranges = arguments()
    assert not count_changed_codes(ws, updates, 0 * factors, *ranges).any()
    zeros = [torch.zeros_like(u) for u in updates]
    assert not count_changed_codes(ws, zeros, factors, *ranges).any()


def test_a_code_at_the_end_that_moves_outwards_stays():
    w = torch.tensor([[1.0, 1.0, -1.0, 0.0]])
    bounds = [torch.tensor([-1.0])], [torch.tensor([1.0])]
    one = torch.ones(1)
    for sign, changed in ((-1.0, 2), (1.0, 3)):
        update = torch.full_like(w, 0.5 * sign)
        assert count_changed_codes([w], [update], one, *bounds, 4) == changed


def test_nan_has_the_lowest_code():
    w = torch.tensor([[math.nan, -1.0, 1.0, math.inf]])
    bounds = [torch.tensor([-1.0])], [torch.tensor([1.0])]
    nan = torch.full_like(w, math.nan)
    one = torch.ones(1)
    assert count_changed_codes([w], [nan], one, *bounds, 4) == 2
    infinite = torch.full((1,), math.inf)
    zeros = torch.zeros(1, 37)
    # inf * 0 is no number, in every lane that has an element and in no other.
    assert count_changed_codes([zeros], [zeros], infinite, *bounds, 4) == 37


def test_more_tensors_than_a_launch_describes():
    torch.manual_seed(0)
    ws, updates = ([torch.randn(1 + i % 5, 7 + i) for i in range(120)] for _ in range(2))
    his = [torch.rand(len(w)) + 0.5 for w in ws]
    given = ws, updates, torch.rand(120), [-hi for hi in his], his, [2 + i % 7 for i in range(120)]
    assert torch.equal(count_changed_codes(*given), count_changed_codes_reference(*given))


def test_update_and_range_of_other_dtypes():
    ws, updates, factors, los, his, bits = arguments(torch.float16)
    wide = [u.double() for u in updates], factors.double(), [lo.double() for lo in los]
    expected = count_changed_codes(ws, updates, factors, los, his, bits)
    assert torch.equal(count_changed_codes(ws, *wide, his, bits), expected)
    double = [w.double() for w in ws], [u.double() for u in updates]
    given = *double, factors, los, his, bits
    assert torch.equal(count_changed_codes(*given), count_changed_codes_reference(*given))


def test_none():
    counts = count_changed_codes([], [], torch.ones(0), [], [], 4)
    assert counts.shape == (0,)
    assert counts.dtype == torch.int64


def test_opcheck():
    ws, updates, factors, los, his, bits = arguments()
    opcheck(torch.ops.gdfq.count_changed_codes.default, (ws, updates, factors, los, his, bits))


ONE = torch.ones(2, 2)
END = torch.ones(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 1}, "bits: .* got 1"),
        ({"bits": [4, 4]}, "bits: must have 1 entries, as ws, got 2"),
        ({"updates": []}, "updates: must have 1 entries, as ws, got 0"),
        ({"factors": torch.ones(2)}, r"factors: shape must be \(1,\), got \(2,\)"),
        ({"ws": [ONE.long()]}, r"ws\[0\]: dtype"),
        ({"ws": [torch.ones(())]}, r"ws\[0\]: must have at least one dimension"),
        ({"updates": [END]}, r"updates\[0\]: shape must be \(2, 2\) as ws\[0\]'s, got \(2,\)"),
        ({"updates": [ONE.to("meta")]}, r"updates\[0\]: must be on cpu"),
        ({"los": [ONE]}, r"los\[0\]: shape must be \(2,\)"),
    ],
)
def test_bad_arguments(change, message):
    given = {"ws": [ONE], "updates": [ONE], "factors": torch.ones(1), "los": [-END], "his": [END],
             "bits": 4}  # fmt: skip
    with pytest.raises(gdfq.InputError, match=message):
        count_changed_codes(**{**given, **change})


@given(st.data())
def test_equals_the_reference_on_drawn_tensors(data):
    shapes = data.draw(st.lists(draws.shapes(1, 4), min_size=1, max_size=3))
    ws, updates = ([data.draw(draws.tensors(s, finite=False)) for s in shapes] for _ in range(2))
    bounds = [[data.draw(draws.tensors(s[:1], torch.float32)) for s in shapes] for _ in range(2)]
    bits = [data.draw(draws.every_number_of_bits) for _ in ws]
    factors = data.draw(draws.tensors((len(ws),), torch.float32, finite=False))
    given = ws, updates, factors, *bounds, bits
    assert torch.equal(count_changed_codes(*given), count_changed_codes_reference(*given))
