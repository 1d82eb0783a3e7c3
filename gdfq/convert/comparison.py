"""Check that a student without its quantizers computes the same as its network."""

from __future__ import annotations

import copy
import warnings
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.overrides import TorchFunctionMode

from gdfq.convert.copying import float_copy
from gdfq.convert.model import QuantizedModel
from gdfq.convert.tables import ACTIVATION_MODULES, LAYERS
from gdfq.errors import InputError
from gdfq.nn import QAct, QConv2d, QLinear
from gdfq.nn.copying import copied
from gdfq.nn.given import one_line
from gdfq.nn.qact import activate
from gdfq.nn.weight import QuantizedWeight, WeightQuantizer

Calls = dict[str, list[Tensor]]  # by path, summaries of a module's output in each call


@torch.no_grad()
def require_same(model: nn.Module, student: QuantizedModel, images: Tensor) -> None:
    """Check that ``student`` with its quantizers disabled computes the same as ``model``.

    Both run on noise with the weights of ``model``, in the shape of ``images`` and, if ``model``
    accepts them, with another batch size and larger images. Their outputs, and those of each
    layer, batch norm and activation, may differ by the square root of the dtype's machine epsilon
    times the sample's largest absolute value.

    Args:
        model: the float network; not modified.
        student: from :func:`gdfq.quantize_model` of ``model``; possibly trained since. If it lacks
            a parameter of ``model``, this warns and compares nothing.
        images: ``(N, C, H, W)``; only shape, dtype and device matter.

    Raises:
        InputError: they differ, or ``model`` returns something else in a second call.
    """
    plain = float_copy(model)
    twin = copy.deepcopy(student, {id(p): p for p in student.parameters()})
    own = _tensors(twin)
    for name, parameter in plain.named_parameters(remove_duplicate=False):
        if name not in own or own[name].shape != parameter.shape:
            warnings.warn(
                f"gdfq: student: has no parameter {name} of shape {tuple(parameter.shape)}, as the "
                "teacher has: it was made of another network, and is not compared with the teacher",
                stacklevel=3,
            )
            return
    network = copied(model, share=True).eval()
    for name, value in _tensors(plain).items():
        path, _, last = name.rpartition(".")
        if name in own:
            setattr(twin.get_submodule(path), last, value)
    disable_quantizers(network)
    disable_quantizers(twin)
    count, channels, height, width = images.shape
    other = count - 1 or 2
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        x = _noise(images.shape, images)
        answer = _compare(network, twin, x)
        if _differs(answer, network(x.clone())):
            raise InputError(
                "model: returns something else when it is called again with the same images, in "
                "evaluation mode: its forward draws random numbers or changes what it computes with"
            )
        for size in ((height * 3 // 2, width * 3 // 2), (height, width)):
            try:
                _compare(network, twin, _noise((other, channels, *size), images))
            except _NotTakenError:
                continue
            break


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, regardless of state-dict hooks."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


class _NotTakenError(InputError):
    """The network does not take images of a size."""


def _noise(shape: Any, like: Tensor) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    noise[1:2] *= 10  # large values, where activation functions differ
    return noise.to(like)


def disable_quantizers(network: nn.Module) -> None:
    """Make ``network`` compute with float weights and activations."""
    for module in network.modules():
        _disable_quantizer(module)


def _disable_quantizer(module: Any) -> None:
    if isinstance(module, QAct):
        module.__dict__["forward"] = partial(activate, act=module.act)
    elif isinstance(module, QuantizedWeight):
        module.__dict__["_quantized_weight"] = lambda: module.weight
    elif isinstance(module, WeightQuantizer):
        module.__dict__["forward"] = lambda weight: weight


def _compare(network: nn.Module, twin: nn.Module, images: Tensor) -> Any:
    """Return the output of ``network``; raise InputError if ``twin`` differs."""
    try:
        expected, expected_calls = _run(network, images, _watched(network, twin))
    except Exception as error:
        raise _NotTakenError(
            f"model: does not take images of shape {tuple(images.shape)}: {one_line(error)}"
        ) from error
    try:
        found, calls = _run(twin, images, [*expected_calls])
    except Exception as error:
        raise InputError(
            f"model: takes images of shape {tuple(images.shape)}, and its student does not: "
            f"{one_line(error)}"
        ) from error
    for path, outputs in expected_calls.items():
        if any(map(_differs, outputs, calls.get(path, []))):
            raise InputError(_explanation(network, images, f"at the output of {path!r} first"))
    if _differs(expected, found):
        raise InputError(_explanation(network, images, "at its output"))
    return expected


class _FindAutocast(TorchFunctionMode):
    """Mode that sets ``found`` if a function is called under autocast."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.found = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.found |= torch.is_autocast_enabled(self.device)
        return func(*args, **(kwargs or {}))


def _explanation(network: nn.Module, images: Tensor, where: str) -> str:
    with _FindAutocast(images.device.type) as autocast:
        network(images.clone())
    if autocast.found and not torch.is_autocast_enabled(images.device.type):
        return (
            f"model: its student, with the quantizers left out, differs from it {where}: its "
            "forward switches torch.autocast on, which its student does not; leave that out of "
            "the forward (precision='bf16' trains a student in bfloat16), or name the module in "
            "leaf_modules=[...] (on the command line --leaf-modules PATH) to leave it as it is"
        )
    return (
        f"model: its student, with the quantizers left out, differs from it {where}: torch.fx did "
        "not follow what its forward does there (a branch by the kind of its input, what it keeps "
        "from call to call); rewrite that, or name the module in leaf_modules=[...] (on the "
        "command line --leaf-modules PATH) to leave it as it is"
    )


def _watched(network: nn.Module, twin: nn.Module) -> list[str]:
    """Return the paths of modules whose outputs must be equal in both."""
    found = []
    modules = dict(twin.named_modules())
    for path, module in network.named_modules():
        kind, other = type(module), type(modules.get(path))
        layer = kind in LAYERS and other in (QConv2d, QLinear)
        act = kind in ACTIVATION_MODULES and other is QAct
        alike = kind is other and not module._modules and not isinstance(module, ScriptModule)
        # In the student, hooks and instances' forwards are part of the graph, not of the module.
        own = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
        if (layer or act or alike) and not own:
            found.append(path)
    return found


def _run(model: nn.Module, images: Tensor, paths: list[str]) -> tuple[Any, Calls]:
    calls: Calls = {}

    def keep(path: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
            calls.setdefault(path, []).append(_summarize(output))

    with ExitStack() as stack:
        for path in paths:
            handle = model.get_submodule(path).register_forward_hook(partial(keep, path))
            stack.callback(handle.remove)
        output = model(images.clone())
    return output, calls


def _summarize(output: Tensor) -> Tensor:
    """Return ``(N, 5)``: each sample's minimum, maximum, and means of all, a half and a third."""
    rows = output.detach().float().nan_to_num().reshape(len(output) if output.dim() else 1, -1)
    parts = (rows, rows[:, : -(-rows.shape[1] // 2)], rows[:, ::3])
    bounds = torch.aminmax(rows, dim=1)
    return torch.stack([*bounds, *(part.mean(1) for part in parts)], 1).to(output.dtype)


def _differs(expected: Any, found: Any) -> bool:
    """Whether two outputs, tensors or containers of them, differ by more than rounding."""
    if isinstance(expected, (list, tuple)):
        return len(expected) != len(found) or any(map(_differs, expected, found))
    if isinstance(expected, dict):
        return expected.keys() != found.keys() or _differs([*expected.values()], [*found.values()])
    if not isinstance(expected, Tensor):
        return False
    if not isinstance(found, Tensor) or expected.shape != found.shape:
        return True
    if not expected.is_floating_point() or not expected.numel():
        return not torch.equal(expected, found)
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    rows = [
        value.float().nan_to_num().reshape(len(value) if value.dim() else 1, -1)
        for value in (expected, found)
    ]
    largest = rows[0].abs().amax(1, keepdim=True)
    return bool(((rows[0] - rows[1]).abs() > tolerance * largest).any())
