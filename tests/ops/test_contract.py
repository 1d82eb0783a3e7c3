"""What every operator promises, whatever it computes."""

import itertools
import math
import os

import numpy as np
import pytest
import torch

import gdfq
from gdfq.ops import _backend
from tests.ops.cases import LAYOUTS, every_dtype, same_bits
from tests.ops.examples import EXAMPLES, SMALL, flat, mapped, results

# Enough for several threads, which the interpreter has not.
THREADED = SMALL if os.environ.get("TRITON_INTERPRET") else (8, 20, 41, 47)
# More pieces than a block has threads, and neither they nor what is in them divides evenly.
MANY_PIECES = SMALL if os.environ.get("TRITON_INTERPRET") else (16, 24, 67, 67)
every_example = pytest.mark.parametrize("name", EXAMPLES)
every_differentiable_example = pytest.mark.parametrize(
    "name", [name for name, example in EXAMPLES.items() if example.grads]
)


def arguments(name, shape=SMALL, dtype=torch.float32):
    torch.manual_seed(0)
    return EXAMPLES[name].make(shape, dtype)


def all_the_same(actual, expected):
    return all(same_bits(a, b) for a, b in zip(actual, expected, strict=True))


def test_every_operator_has_an_example():
    forward = {name for name in _backend.operators() if not name.endswith("_backward")}
    assert {name.split(":")[0] for name in EXAMPLES} == forward | {"upsample_conv2d"}


def test_bits_are_python_s_and_numpy_s_ints():
    w, lo, hi = torch.randn(2, 3, 4, 4).unbind()[0], torch.tensor(-1.0), torch.tensor(1.0)
    fake_quantize, minmax = gdfq.functional.fake_quantize, gdfq.functional.fake_quantize_minmax
    for bits in (np.int64(3), np.array(3)):
        assert torch.equal(fake_quantize(w, lo, hi, bits), fake_quantize(w, lo, hi, 3))
        assert torch.equal(minmax(w, bits), minmax(w, 3))
    listed = gdfq.functional.fake_quantize_minmax_list([w, w], np.int64(3))
    for bits in (np.array([3, 3]), [np.int64(3), 3]):
        again = gdfq.functional.fake_quantize_minmax_list([w, w], bits)
        assert all(map(torch.equal, again, listed))
    for bits in (True, np.True_, 4.0, np.float32(4), np.int64(9), torch.tensor(4)):
        with pytest.raises(gdfq.InputError, match=r"^bits: must be an int from 2 to 8, got "):
            fake_quantize(w, lo, hi, bits)


def turned(x):
    """In memory of the opposite order of dimensions."""
    return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))


@every_example
@every_dtype
@pytest.mark.parametrize("layout", ["offset", "sliced", "turned"])
def test_alignment_and_strides_of_no_argument_matter(name, dtype, layout):
    given = arguments(name, dtype=dtype)
    place = turned if layout == "turned" else LAYOUTS[layout]
    moved = mapped(given, lambda t: place(t) if t.dim() else LAYOUTS["offset"](t))
    actual, expected = (results(EXAMPLES[name], a) for a in (moved, given))
    tolerance = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@every_differentiable_example
@every_dtype
def test_expanded_gradients(name, dtype):
    given = arguments(name, dtype=dtype)
    actual = results(EXAMPLES[name], given, lambda y: y.new_full((), 0.5).expand(y.shape))
    expected = results(EXAMPLES[name], given, lambda y: torch.full_like(y, 0.5))
    assert all_the_same(actual, expected)


@every_example
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_two_runs_with_any_number_of_threads_agree_bit_for_bit(name, layout):
    given = mapped(arguments(name, THREADED), lambda t: LAYOUTS[layout](t) if t.dim() == 4 else t)
    threads, runs = torch.get_num_threads(), []
    # More threads than cores, several times: what they must not share is then seen to be changed.
    for number in (1, 3, 3) if name == "upsample_conv2d" else (1, 3, 3, 8, 8, 8, 8):
        torch.set_num_threads(number)
        runs.append(results(EXAMPLES[name], given))
    torch.set_num_threads(threads)
    # PyTorch's convolutions split their sums by threads.
    first, *others = runs[1:] if name == "upsample_conv2d" else runs
    assert all(all_the_same(first, other) for other in others)


@every_example
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("last", [0.5, math.nan])
def test_tensors_of_many_pieces_agree_with_the_reference(name, layout, last):
    """Large enough to be cut among threads, or among a GPU's blocks, many times."""
    given = mapped(
        arguments(name, MANY_PIECES), lambda t: LAYOUTS[layout](t) if t.dim() == 4 else t
    )
    for argument in {"x", "w"} & set(given):
        given[argument][-1, -1, -1, -1] = last
    actual = results(EXAMPLES[name], given)
    with gdfq.backend("reference"):
        expected = results(EXAMPLES[name], given)
    for a, b in zip(actual, expected, strict=True):
        size = float(b.double().nan_to_num().abs().max())
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * size, equal_nan=True)


@pytest.mark.parametrize("name", [n for n, e in EXAMPLES.items() if e.takes_empty])
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)], ids=str)
def test_empty_tensors(name, shape):
    if name == "upsample_conv2d" and shape[0]:
        pytest.skip("PyTorch's convolutions need positions")
    given = arguments(name, shape)
    for tensor in results(EXAMPLES[name], given):
        assert tensor.isfinite().all()


def replaced(given, argument, change):
    """``given`` with the argument, or the last tensor of a list of them, changed."""
    value = given[argument]
    return {**given, argument: [*value[:-1], change(value[-1])] if isinstance(value, list)
            else change(value)}  # fmt: skip


def tensor_arguments(name):
    given = arguments(name)
    return [a for a, v in mapped(given, torch.clone).items() if v is not given[a]]


every_argument = pytest.mark.parametrize(
    ("name", "argument"), [(name, a) for name in EXAMPLES for a in tensor_arguments(name)]
)


def refused(name, argument, change, value):
    """A change of one argument is refused by an error that names argument and value."""
    example = EXAMPLES[name]
    with pytest.raises(gdfq.InputError) as error:
        example.function(**replaced(arguments(name), argument, change))
    assert example.called.get(argument, argument) in str(error.value)
    assert value in str(error.value)


@every_argument
def test_wrong_dtypes(name, argument):
    (dtype,) = {t.dtype for t in flat(arguments(name)[argument])}
    wrong = torch.int32 if dtype.is_floating_point else torch.int16
    refused(name, argument, lambda t: t.to(wrong), str(wrong))


@every_argument
def test_wrong_devices(name, argument):
    given = arguments(name)
    if sum(len(list(flat(given[a]))) for a in tensor_arguments(name)) == 1:
        pytest.skip("nothing to be on the device of")
    refused(name, argument, lambda t: t.to("meta"), "meta")


@every_argument
def test_wrong_shapes(name, argument):
    if argument in EXAMPLES[name].any_shape:
        pytest.skip("takes any shape")
    shape = (*list(flat(arguments(name)[argument]))[-1].shape, 2)
    refused(name, argument, lambda t: t.new_zeros(shape), str(shape))


@pytest.mark.parametrize(
    ("name", "pair"),
    [(n, p) for n, e in EXAMPLES.items() for p in itertools.combinations(e.written, 2)],
)
def test_memory_written_in_place_must_not_overlap(name, pair):
    given = arguments(name)
    one, other = (given[argument] for argument in pair)
    if one.dtype != other.dtype:
        room = torch.zeros(8, dtype=torch.uint8)
        given[pair[0]], given[pair[1]] = room[4:].view(one.dtype)[0], room.view(other.dtype)[0]
    else:
        room = torch.zeros(2 * one.numel())
        given[pair[0]], given[pair[1]] = (room[: one.numel()].view(one.shape) for _ in pair)
    with pytest.raises(gdfq.InputError, match=f"{pair[0]}, {pair[1]}: .* memory"):
        EXAMPLES[name].function(**given)


@pytest.mark.parametrize("name", ["bn_leaky_relu"])
@pytest.mark.parametrize("argument", ["running_mean", "running_var"])
def test_memory_written_in_place_must_not_be_expanded(name, argument):
    given = arguments(name)
    given[argument] = torch.ones(1).expand(given[argument].shape)
    with pytest.raises(gdfq.InputError, match=f"{argument}: .* memory"):
        EXAMPLES[name].function(**given)


@every_differentiable_example
def test_second_derivatives_are_refused(name):
    if name == "upsample_conv2d":
        pytest.skip("is made of PyTorch's operators, which have them")
    gradient = lambda y: torch.ones_like(y, requires_grad=True)  # noqa: E731
    found = results(EXAMPLES[name], arguments(name), gradient, create_graph=True)
    first = next(tensor for tensor in found if tensor.grad_fn is not None)
    with pytest.raises(RuntimeError, match=r"differentiable once|differentiate twice"):
        first.sum().backward()
