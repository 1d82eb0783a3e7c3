"""Every kernel, compiled for GPUs that need not be there: what the interpreter hides."""

import re

import pytest
import torch

pytest.importorskip("triton")

from gdfq.ops import _backend
from gdfq.ops.triton import _launch
from tests.triton.compiled import compile_for, launches
from tests.triton.examples import EXAMPLES

pytestmark = pytest.mark.skipif(
    _launch.INTERPRETED, reason="a process with TRITON_INTERPRET=1 cannot compile"
)

CAPABILITIES = (80, 90, 100, 120)

# Kernels that need not move 16 bytes at once: those of partial results or one entry per channel, of
# rows of logits, layers' statistics, and bits.
NARROW = re.compile(
    r".*\.(\w*merge|totals|grids|move_range)|(bns_loss|kd_ce_loss|pack_codes)\..*",
)


def every_launch(operator, dtype):
    return {launch for call in EXAMPLES[operator](dtype) for launch in launches(call)}


def fused(binary):
    """Fused multiply-adds in the disassembly."""
    packed = len(re.findall(r"\bFFMA2\b", binary.sass))
    return len(re.findall(r"\bFFMA\b", binary.sass)) + 2 * packed


def test_every_operator_has_an_example():
    assert set(EXAMPLES) == set(_backend.triton_modules())


@pytest.mark.parametrize("operator", EXAMPLES)
@pytest.mark.parametrize(
    ("dtype", "capability"),
    [
        (torch.float32, 90),
        *(pytest.param(torch.float32, c, marks=pytest.mark.thorough) for c in (80, 100, 120)),
        pytest.param(torch.float16, 90, marks=pytest.mark.thorough),
        pytest.param(torch.bfloat16, 90, marks=pytest.mark.thorough),
    ],
    ids=lambda v: f"sm_{v}" if isinstance(v, int) else str(v).removeprefix("torch."),
)
def test_arithmetic_and_memory_accesses(operator, dtype, capability):
    for launch in every_launch(operator, dtype):
        binary = compile_for(launch, capability)
        where = f"{launch.name} for sm_{capability}"
        assert binary.count(r"st\.global"), f"{where}: stores nothing"
        assert not binary.count(r"fma\.\S*f32"), f"{where}: contracted"
        # libdevice's float64 exponential looks at half of a float64 as abs.ftz.f32.
        assert not binary.count(r"(?!abs\.)\w+\S*\.ftz\S*f32"), f"{where}: flushes denormals"
        approximate = binary.count(r"\w+\.(?:approx|full)\S*f32")
        assert not approximate, f"{where}: approximate arithmetic"
        spills = re.findall(r"\b(?:LDL|STL)\b", binary.sass)
        assert len(spills) <= 4, f"{where}: spills registers, {len(spills)} accesses"
        # ptxas may contract what the PTX keeps apart: there would be more fused multiply-adds
        # than divisions are made of, which the scalar code for sm_90 shows, or fewer products.
        if "quantize" in launch.name:
            scalar = compile_for(launch, 90)
            assert fused(binary) <= fused(scalar), f"{where}: contracted by ptxas"
            written = scalar.count(r"mul(?:\.rn)?\.f32 ")
            made = len(re.findall(r"\bFMUL\b", scalar.sass))
            assert made >= written, f"{where}: {written} multiplications became {made}"
        if not NARROW.fullmatch(launch.name):
            wide = r"\bLDG\S*\.128\b"
            assert re.search(wide, binary.sass), f"{where}: no 128-bit load"


@pytest.mark.parametrize(
    "operator",
    [
        *("bns_loss", "bns_loss_backward"),
        *("fake_quantize_minmax_list", "fake_quantize_minmax_list_backward"),
    ],
)
def test_lists_are_one_launch(operator):
    for call in EXAMPLES[operator](torch.float32):
        assert len(launches(call)) == 1


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_checks_see_a_contraction(capability):
    """The same kernel, compiled as Triton would by default, contracts."""
    (launch,) = launches(next(EXAMPLES["fake_quantize"](torch.float32)))
    options = {**dict(launch.options), "enable_fp_fusion": True}
    careless = compile_for(
        type(launch)(
            launch.kernel,
            launch.signature,
            launch.constants,
            launch.divisible,
            tuple(options.items()),
        ),
        capability,
    )
    assert careless.count(r"fma\.\S*f32")
