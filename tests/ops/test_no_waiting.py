"""No operator waits for the device: what a CUDA graph needs, and a training step profits from."""

import os

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from gdfq.ops import _backend
from tests.ops.cases import every_dtype, same_bits
from tests.ops.examples import EXAMPLES, SMALL, flat, mapped, results

every_example = pytest.mark.parametrize("name", EXAMPLES)
on_gpu = os.environ.get("GDFQ_TEST_DEVICE", "cpu") != "cpu"
needs_gpu = pytest.mark.skipif(not on_gpu, reason="needs GDFQ_TEST_DEVICE=cuda")

# Each of these makes the host wait for the device: a value is read, or a size depends on values.
WAITING = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero",
           "aten::equal", "aten::masked_select", "aten::_unique2", "cudaStreamSynchronize",
           "cudaDeviceSynchronize")  # fmt: skip


def arguments(name, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return EXAMPLES[name].make(SMALL, dtype)


class Calls(TorchDispatchMode):
    """The calls of gdfq's operators, backward ones included."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "gdfq":
            self.calls.append((func._schema.name.removeprefix("gdfq::"), args))
        return func(*args, **(kwargs or {}))


def without_values(t):
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")


@pytest.mark.skipif(torch.version.cuda is None, reason="a build of torch without CUDA")
@every_example
@every_dtype
def test_references_and_gradients_never_look_at_values(name, dtype):
    """On CUDA tensors without values, where reading one raises, as does one of another device."""
    with Calls() as recorded:
        results(EXAMPLES[name], arguments(name, dtype))
    assert recorded.calls or name == "upsample_conv2d"
    for operator, args in recorded.calls:
        with FakeTensorMode():
            fake = tree_map_only(Tensor, without_values, tuple(args))
            for tensor in flat(_backend._references[operator](*fake)):
                assert tensor.device.type == "cuda"


@every_example
def test_kernels_and_what_surrounds_them_never_wait(name, request):
    """No operator inside an operator, whatever language called it, reads a value."""
    if not on_gpu and not request.config.pluginmanager.hasplugin("tests.standin.operators"):
        if os.environ.get("GDFQ_BACKEND") != "triton":
            pytest.skip("the CPU's kernels may read values")
        if name in ("pack_codes", "kd_ce_loss"):
            pytest.skip("values of CPU tensors are checked, in the interpreter too")
    given = arguments(name)
    results(EXAMPLES[name], given)  # compiles
    assert not waits(lambda: results(EXAMPLES[name], given))


def waits(call):
    """Those of WAITING that the call ran."""
    with torch.profiler.profile() as profile:
        call()
    return {event.key for event in profile.key_averages()} & set(WAITING)


@pytest.mark.parametrize("look", [torch.Tensor.item, bool, torch.Tensor.nonzero, torch.unique])
def test_waiting_is_noticed(look):
    assert waits(lambda: look(torch.ones(1)))


@needs_gpu
@every_example
def test_cuda_finds_no_synchronization(name):
    given = arguments(name)
    results(EXAMPLES[name], given)  # compiles, and makes the allocator's first blocks
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(EXAMPLES[name], given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@every_example
@every_dtype
def test_a_captured_call_replays_on_new_values(name, dtype):
    example = EXAMPLES[name]
    static, fresh = arguments(name, dtype), arguments(name, dtype, seed=1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            results(example, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(example, static)
    for one, other in zip(tensors(static), tensors(fresh), strict=True):
        one.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    expected = results(example, fresh)
    for got, wanted in zip(captured, expected, strict=True):
        if name == "upsample_conv2d":  # cuDNN may choose another algorithm
            torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2)
        else:
            assert same_bits(got, wanted)


def tensors(given):
    found = []
    mapped(given, lambda t: found.append(t) or t)
    return found
