"""Functions that kernels share: arithmetic as in csrc, rounding stores, walks over memory.

Every multiplication, subtraction and division rounds once, to nearest even, in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gdfq.ops.triton import _launch

INTERPRETED = tl.constexpr(_launch.INTERPRETED)

# Before 3.8, Triton's ptxas ignores its options on Blackwell and contracts packed float32
# arithmetic.
ROUND_BY_ASM = tl.constexpr(
    not _launch.INTERPRETED and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)
)


# ---- arithmetic ----


@triton.jit
def multiply(a, b):
    """Return ``a * b``, never contracted with an addition."""
    if ROUND_BY_ASM:
        return tl.inline_asm_elementwise(
            "mul.rn.f32 $0, $1, $2;", "=f,f,f", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )
    return a * b


@triton.jit
def multiply_subtract(a, b, c):
    """Return ``a * b - c`` with two roundings."""
    return multiply(a, b) - c


@triton.jit
def multiply_add(a, b, c):
    """Return ``a * b + c`` with two roundings."""
    return multiply(a, b) + c


@triton.jit
def round_half_even(v):
    """Round half to even for any float32; above 2^23 all are integers."""
    magic = tl.where(v < 0, -8388608.0, 8388608.0)
    return tl.where(tl.abs(v) < 8388608.0, (v + magic) - magic, v)


@triton.jit
def half_of(BITS):
    """Return half the number of codes, as float32; ``BITS``: a constant or a scalar."""
    return tl.cast(1 << (BITS - 1), tl.float32)


@triton.jit
def contain_zero(lo, hi):
    """Return the ranges' bounds, moved so that 0 is between them; NaN stays."""
    return tl.where(lo > 0.0, 0.0, lo), tl.where(hi < 0.0, 0.0, hi)


@triton.jit
def make_grid(lo, hi, BITS):
    """Return inverse scale and zero point of the ranges from ``lo`` to ``hi``."""
    width = hi - lo
    width = tl.where(width < 1e-8, 1e-8, width)  # keeps NaN
    half = half_of(BITS)
    inv_scale = tl.div_rn(tl.full(width.shape, 1.0, tl.float32), width) * (half + half - 1.0)
    zero = round_half_even(multiply(inv_scale, lo)) + half
    return inv_scale, zero


@triton.jit
def position(x, inv_scale, zero):
    """Return the code before rounding and clamping."""
    return multiply_subtract(inv_scale, x, zero)


@triton.jit
def round_and_clamp(v, BITS):
    """Return the code of a position. The bounds are integers, so it may clamp, then round."""
    code_lo = -half_of(BITS)
    code_hi = half_of(BITS) - 1.0
    # Comparisons rather than tl.clamp: NaN compares false and stays.
    v = tl.where(v < code_lo, code_lo, v)
    v = tl.where(v > code_hi, code_hi, v)
    return (v + 12582912.0) - 12582912.0  # half to even for |v| < 2^22


@triton.jit
def quantize_value(x, inv_scale, zero, BITS):
    """Return the values of ``x`` on the grid."""
    code = round_and_clamp(position(x, inv_scale, zero), BITS)
    return tl.div_rn(code + zero, tl.broadcast_to(inv_scale, code.shape))


@triton.jit
def code_of(x, inv_scale, zero, BITS):
    """Return the codes of ``x`` as float32. NaN has none and gets the lower bound."""
    v = position(x, inv_scale, zero)
    return round_and_clamp(tl.where(v == v, v, -half_of(BITS)), BITS)


@triton.jit
def clip_gradient(grad, x, inv_scale, zero, BITS):
    """Return ``grad`` where the rounded code needs no clamp, else 0.

    Half to even at the bounds: the lower is even, so half below it rounds inside; the upper is
    odd, so half above it rounds outside.
    """
    v = position(x, inv_scale, zero)
    return tl.where((v >= -half_of(BITS) - 0.5) & (v < half_of(BITS) - 0.5), grad, 0.0)


@triton.jit
def minimum(x, axis: tl.constexpr):
    """Return the minimum along ``axis``, NaN if there is one; ``tl.min`` drops it."""
    any_nan = tl.max((x != x).to(tl.int32), axis) > 0
    return tl.where(any_nan, float("nan"), tl.min(x, axis))


@triton.jit
def maximum(x, axis: tl.constexpr):
    """Return the maximum along ``axis``, NaN if there is one; ``tl.max`` drops it."""
    return -minimum(-x, axis)


@triton.jit
def extend(lo, hi, v, mask):
    """Return the minimum of ``lo`` and ``v`` and the maximum of ``hi`` and ``v``; NaN stays."""
    lo = tl.where(mask & ((v < lo) | (v != v)), v, lo)
    hi = tl.where(mask & ((v > hi) | (v != v)), v, hi)
    return lo, hi


@triton.jit
def factor_of(weight, var, eps):
    """Return weight / sqrt(var + eps), each step rounded once."""
    return tl.div_rn(weight, tl.broadcast_to(tl.sqrt_rn(var + eps), weight.shape))


# ---- loads and stores ----


@triton.jit
def load(pointers, mask, other=0.0):
    """Load values of any floating-point dtype as float32."""
    return tl.load(pointers, mask=mask, other=other).to(tl.float32)


@triton.jit
def load_vector(pointer, index):
    """Load entries that all exist, of any floating-point dtype, as float32."""
    return tl.load(pointer + index).to(tl.float32)


@triton.jit
def store(pointers, values, mask):
    """Store float32 values rounded to the memory's dtype, to nearest even."""
    if INTERPRETED and pointers.dtype.element_ty == tl.bfloat16:
        # The interpreter's conversion truncates.
        bits = values.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        bits = tl.where(values == values, bits, 0x7FC0)
        tl.store(pointers, bits.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=mask)
    else:
        tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def load_grid(lo_ptr, hi_ptr, channel, BITS):
    """Return inverse scale and zero point of each channel."""
    return make_grid(load_vector(lo_ptr, channel), load_vector(hi_ptr, channel), BITS)


@triton.jit
def load_factor(running_var_ptr, weight_ptr, channel, eps):
    """Return weight / sqrt(running_var + eps) of each channel; weight is 1 for None."""
    var = load_vector(running_var_ptr, channel)
    if weight_ptr is None:
        weight = tl.full(var.shape, 1.0, tl.float32)
    else:
        weight = load_vector(weight_ptr, channel)
    return factor_of(weight, var, eps)


@triton.jit
def load_norm(running_mean_ptr, running_var_ptr, weight_ptr, bias_ptr, channel, eps):
    """Return mean, factor and bias of each channel; bias is 0 for None."""
    mean = load_vector(running_mean_ptr, channel)
    if bias_ptr is None:
        bias = tl.zeros(mean.shape, tl.float32)
    else:
        bias = load_vector(bias_ptr, channel)
    return mean, load_factor(running_var_ptr, weight_ptr, channel, eps), bias


@triton.jit
def activate(v, ACT: tl.constexpr):
    """Apply the activation."""
    # Comparisons rather than tl.maximum: NaN compares false and stays.
    if ACT != "none":
        v = tl.where(v < 0.0, 0.0, v)
    if ACT == "relu6":
        v = tl.where(v > 6.0, 6.0, v)
    return v


# ---- several tensors in one launch ----


@triton.jit
def pointer_of(pointers, FIRST: tl.constexpr, program):
    """Select the pointer of the tensor that ``program`` works on."""
    pointer = pointers[0]
    for i in tl.static_range(1, len(FIRST)):
        pointer = tl.where(program >= FIRST[i], pointers[i], pointer)
    return pointer


@triton.jit
def number_of(NUMBERS: tl.constexpr, FIRST: tl.constexpr, program):
    """Select the constant of the tensor that ``program`` works on."""
    number = tl.full((), NUMBERS[0], tl.int32)
    for i in tl.static_range(1, len(FIRST)):
        number = tl.where(program >= FIRST[i], NUMBERS[i], number)
    return number


# ---- walks over memory ----


@triton.jit
def tile(
    rows,  # runs of one channel, or pixels
    cols,  # elements of a run, or channels
    channels,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Return this program's tile: offsets, mask, and the channel of each row or column."""
    pid = tl.program_id(0)
    across = tl.cdiv(cols, COLS)
    row = (pid // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = (pid % across).to(tl.int64) * COLS + tl.arange(0, COLS)[None, :]
    if CHANNEL_IS_COLUMN:
        channel = tl.where(col < cols, col, 0)
    else:
        channel = row % channels
    return row * cols + col, (row < rows) & (col < cols), channel


@triton.jit
def tile_row(rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return the rows of :func:`tile`'s tile; past the end, the last row."""
    row = (tl.program_id(0) // tl.cdiv(cols, COLS)).to(tl.int64) * ROWS
    row += tl.arange(0, ROWS)[:, None]
    return tl.minimum(row, rows - 1)


@triton.jit
def band_of(
    outer,
    channels,
    inner,
    per_split,  # tiles of a program
    splits,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Return this program's band and split, its first tile and the one after its last."""
    pid = tl.program_id(0)
    down = tl.cdiv(outer, ROWS)
    tiles = down if CHANNEL_IS_COLUMN else down * tl.cdiv(inner, COLS)
    split = pid % splits
    begin = split * per_split
    return pid // splits, split, begin, tl.minimum(begin + per_split, tiles)


@triton.jit
def band_tile(
    index,  # of the tile in the band
    band,
    outer,
    channels,
    inner,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNEL_IS_COLUMN: tl.constexpr,
):
    """Return offsets and mask of a tile of a band."""
    wide = tl.full((1, 1), 1, tl.int64)
    if CHANNEL_IS_COLUMN:
        row = wide * index * ROWS + tl.arange(0, ROWS)[:, None]
        col = band * COLS + tl.arange(0, COLS)[None, :]
        return row * channels + col, (row < outer) & (col < channels)
    across = tl.cdiv(inner, COLS)
    row = wide * (index // across) * ROWS + tl.arange(0, ROWS)[:, None]
    col = (index % across) * COLS + tl.arange(0, COLS)[None, :]
    return (row * channels + band) * inner + col, (row < outer) & (col < inner)


@triton.jit
def band_channel(band, channels, COLS: tl.constexpr, CHANNEL_IS_COLUMN: tl.constexpr):
    """Return the band's channels as a row ``[1, COLS]`` or ``[1, 1]``, and which exist."""
    if CHANNEL_IS_COLUMN:
        channel = band * COLS + tl.arange(0, COLS)[None, :]
    else:
        channel = band + tl.arange(0, 1)[None, :]
    return channel, channel < channels


@triton.jit
def sum_rows(values, CHANNEL_IS_COLUMN: tl.constexpr):
    """Sum a tile over the elements of each channel, as ``[1, COLS]`` or ``[1, 1]``."""
    total = tl.sum(values, 0)[None, :]
    if not CHANNEL_IS_COLUMN:
        total = tl.sum(total, 1)[:, None]
    return total


@triton.jit
def merge_statistics(count, mean, squares, x, mask, CHANNEL_IS_COLUMN: tl.constexpr):
    """Merge a tile into count, mean and sum of squares about the mean, by Chan's formula.

    The tile's squares are taken about its own mean, so a large mean costs no accuracy.
    """
    tile_count = sum_rows(mask.to(tl.float32), CHANNEL_IS_COLUMN)
    tile_mean = tl.div_rn(sum_rows(x, CHANNEL_IS_COLUMN), tl.maximum(tile_count, 1.0))
    centered = tl.where(mask, x - tile_mean, 0.0)
    tile_squares = sum_rows(centered * centered, CHANNEL_IS_COLUMN)
    total = tl.maximum(count + tile_count, 1.0)
    delta = tile_mean - mean
    share = tl.div_rn(tile_count, total)
    squares += tile_squares + delta * delta * count * share
    return count + tile_count, mean + delta * share, squares
