"""The student's batch norms and biases, corrected by what quantization did to generated images.

Let ``m`` and ``v`` be the mean and variance per channel, over the images, of the input of the
teacher's batch norm, the student's ``m'`` and ``v'``. The student's running statistics become those
with which it computes what the teacher's batch norm makes of ``(x - m') * sqrt(v / v') + m``
(re-estimation), or of ``x - m' + m`` (bias correction)::

    var'  = (var + eps) * (v' + eps) / (v + eps) - eps
    mean' = m' - (m - mean) * sqrt((v' + eps) / (v + eps))

So what differs between the generated images and real ones, which teacher and student have in
common, stays out of the statistics. The bias of a layer without a batch norm behind is moved by
``m - m'`` of its output. Each layer sees what the corrected ones before it make: a pass corrects
batch by batch, and what is stored is over all batches.

Sources: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, section 4.2; Sun et al., "Hybrid 8-bit Floating Point (HFP8) Training and Inference",
NeurIPS 2019, section 3.4 (re-estimated statistics).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gdfq.errors import InputError
from gdfq.nn.statistics import BatchNormCalls, Compute
from gdfq.nn.weight import QuantizedWeight
from gdfq.ops.batch_norm_stats import batch_norm_stats
from gdfq.training.start.images import Images

LARGEST = 4.0  # factor by which a standard deviation is corrected
# Functions that are watched, and the dimension of their channels.
DIMS: dict[Any, int] = {F.batch_norm: 1, F.conv2d: -3, F.linear: -1}


class Moments:
    """Mean and mean of squares per channel, over batches of equal size."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.batches = 0

    def add(self, batch: Tensor) -> None:
        """Add a batch's ``(2, channels)``."""
        self.sums = batch.clone() if self.sums is None else self.sums + batch
        self.batches += 1

    def pair(self) -> Tensor:
        """Return mean and mean of squares over all batches, ``(2, channels)``."""
        assert self.sums is not None
        return self.sums / self.batches


def _moments(x: Tensor, dim: int) -> Tensor:
    """Return mean and mean of squares of each channel along ``dim``, ``(2, channels)``."""
    wide = x.detach().double().movedim(dim, 0).flatten(1)
    return torch.stack([wide.mean(1), wide.square().mean(1)])


def _mean_and_var(pair: Tensor) -> tuple[Tensor, Tensor]:
    mean, square = pair.unbind()
    return mean, (square - mean.square()).clamp(min=0)


@dataclass
class _Call:
    """A call of a batch norm, or of a layer with a bias, as the teacher made it.

    Attributes:
        function: ``F.batch_norm``, ``F.conv2d`` or ``F.linear``.
        channels: of what is corrected: a batch norm's input, a layer's output.
        pair: the moments of that, of this process's images; None where nobody asked for them.
        stored: a batch norm's running mean and variance.
    """

    function: Any
    channels: int
    pair: Tensor | None
    stored: tuple[Tensor, Tensor] | None = None


class _Layer:
    """Tensors that are corrected, and the moments over all calls: the teacher's and the student's.

    Args:
        name: of the student's module.
        tensors: a batch norm's running mean and variance, or a layer's bias.
        eps: of a batch norm.
    """

    def __init__(self, name: str, tensors: tuple[Tensor, ...], eps: float = 0.0) -> None:
        self.name, self.tensors, self.eps = name, tensors, eps
        self.wanted, self.found = Moments(), Moments()

    @property
    def is_norm(self) -> bool:
        return len(self.tensors) == 2


class _Calls(BatchNormCalls):
    """Mode in which batch norms, and outputs of layers with a bias, are replaced.

    Args:
        normalize: replaces a batch norm, see :class:`BatchNormCalls`.
        replace: returns what replaces a function's output, given the function, that and the bias.
    """

    def __init__(
        self, normalize: Compute, replace: Callable[[Any, Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__(normalize)
        self.replace = replace

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = super().__torch_function__(func, types, args, kwargs)
        if func in (F.conv2d, F.linear):
            bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
            if bias is not None:
                return self.replace(func, output, bias)
        return output


class _TeachersCalls(_Calls):
    """Mode in which ``calls`` are recorded, without moments where not among ``needed``."""

    def __init__(self) -> None:
        super().__init__(self.normalize, self.layer)
        self.calls: list[_Call] = []
        self.needed: set[int] | None = None  # all

    def note(
        self, function: Any, x: Tensor, channels: int, stored: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Append a call."""
        needed = self.needed is None or len(self.calls) in self.needed
        pair = _moments(x, DIMS[function]) if needed else None
        self.calls.append(_Call(function, channels, pair, stored))

    def normalize(self, x, running_mean, running_var, weight, bias, eps):  # type: ignore[no-untyped-def]
        self.note(F.batch_norm, x, x.shape[1], (running_mean, running_var))
        return batch_norm_stats(x, running_mean, running_var, weight, bias, eps)[0]

    def layer(self, function: Any, output: Tensor, bias: Tensor) -> Tensor:
        self.note(function, output, len(bias))
        return output


class _StudentsCalls(_Calls):
    """Mode in which the student's values get the moments of the teacher's same call.

    Args:
        student: whose batch norms and layers they are.
        teacher: whose calls the student repeats.
        images: the calibration's.
        spread: correct standard deviations too.
    """

    def __init__(
        self, student: nn.Module, teacher: _TeachersCalls, images: Images, spread: bool
    ) -> None:
        super().__init__(self.normalize, self.layer)
        self.teacher = teacher
        self.images = images
        self.spread = spread
        self.position = 0
        self.needed: set[int] = set()
        self.found: dict[int, _Layer] = {}
        self.names = {
            id(tensor): name.rpartition(".")[0]
            for name, tensor in [*student.named_buffers(), *student.named_parameters()]
        }
        behind = _with_norm_behind(student)
        self.biases = {
            id(module.bias)
            for module in student.modules()
            if isinstance(module, QuantizedWeight) and module not in behind
        }

    def next(self, function: Any, channels: int) -> _Call:
        """Return the teacher's call that this one repeats."""
        calls = self.teacher.calls
        call = calls[self.position] if self.position < len(calls) else None
        if call is None or (call.function, call.channels) != (function, channels):
            raise differing()
        self.position += 1
        return call

    def mended(self, x: Tensor, call: _Call, layer: _Layer) -> Tensor:
        """Return ``x`` with the moments that the teacher's has."""
        self.needed.add(self.position - 1)
        assert call.pair is not None
        dim = DIMS[call.function]
        pair = _moments(x, dim)
        # A batch is corrected by its own moments: those of all ranks' shares of it.
        for each in (call.pair, pair):
            self.images.world.mean(each, "batch-norm statistics")
        layer.wanted.add(call.pair)
        layer.found.add(pair)
        mean, var = _mean_and_var(pair)
        aim, aimed_var = _mean_and_var(call.pair)
        factor = torch.ones_like(mean)
        if self.spread and layer.is_norm:
            factor = 1 / _ratio(var, aimed_var, layer.eps)
        shape = [1] * x.dim()
        shape[dim] = -1
        mended = (x.double() - mean.view(shape)) * factor.view(shape) + aim.view(shape)
        return mended.to(x.dtype)

    def normalize(self, x, running_mean, running_var, weight, bias, eps):  # type: ignore[no-untyped-def]
        call = self.next(F.batch_norm, x.shape[1])
        assert call.stored is not None
        layer = self.found.get(id(running_mean))
        if layer is None:
            layer = _Layer(self.names.get(id(running_mean), ""), (running_mean, running_var), eps)
            self.found[id(running_mean)] = layer
            for own, theirs in zip(layer.tensors, call.stored, strict=True):
                own.copy_(theirs)  # so that a second correction starts where the first did
        x = self.mended(x, call, layer)
        return F.batch_norm(x, running_mean, running_var, weight, bias, eps=eps)

    def layer(self, function: Any, output: Tensor, bias: Tensor) -> Tensor:
        call = self.next(function, len(bias))
        if id(bias) not in self.biases:
            return output
        layer = self.found.setdefault(id(bias), _Layer(self.names[id(bias)], (bias,)))
        return self.mended(output, call, layer)


def differing() -> InputError:
    """Return the error that teacher and student are not the same network."""
    return InputError(
        "student: batch norms and layers are not called in the teacher's order, so that its "
        "statistics cannot be corrected by the teacher's; make it with quantize_model(teacher), or "
        "train with bn_reestimate=False, bn_reestimate_end=False and bias_correction=False"
    )


@torch.no_grad()
def correct(student: nn.Module, teacher: nn.Module, images: Images, spread: bool) -> list[str]:
    """Correct ``student``'s batch norms and biases towards ``teacher``'s on ``images``.

    A call of the student's is compared with the teacher's at the same place in the order of
    execution, whatever the modules are called and however often each is. What is called several
    times is corrected by its moments over all calls.

    Args:
        student: in evaluation mode, its ranges set.
        teacher: the float network it was made of.
        images: the calibration's.
        spread: correct standard deviations too, not only means.

    Returns:
        The names of the student's modules that were corrected: batch norms, then layers.

    Raises:
        InputError: teacher and student do not call the same batch norms and layers.
    """
    theirs = _TeachersCalls()
    own = _StudentsCalls(student, theirs, images, spread)
    for batch in images:
        theirs.calls, own.position = [], 0
        with theirs:
            teacher(batch.clone())  # which may be changed in place
        with own:
            student(batch)
        if own.position != len(theirs.calls):
            raise differing()
        theirs.needed = own.needed
    for layer in own.found.values():
        mean, var = _mean_and_var(layer.found.pair())
        aim, aimed_var = _mean_and_var(layer.wanted.pair())
        if not layer.is_norm:
            (bias,) = layer.tensors
            bias.add_((aim - mean).to(bias.dtype))
            continue
        factor = _ratio(var, aimed_var, layer.eps) if spread else torch.ones_like(mean)
        running_mean, running_var = layer.tensors
        old_mean, old_var = running_mean.double(), running_var.double()
        new_var = ((old_var + layer.eps) * factor.square() - layer.eps).clamp(min=0)
        running_mean.copy_(mean - (aim - old_mean) * factor)
        running_var.copy_(new_var)
    corrected = sorted(own.found.values(), key=lambda layer: not layer.is_norm)
    return [layer.name for layer in corrected]


def _ratio(var: Tensor, aimed_var: Tensor, eps: float) -> Tensor:
    """Return the student's standard deviation over the teacher's."""
    return ((var + eps) / (aimed_var + eps)).sqrt().clamp(1 / LARGEST, LARGEST)


def _with_norm_behind(student: nn.Module) -> set[nn.Module]:
    """Return the layers whose output a batch norm reads."""
    if not isinstance(student, fx.GraphModule):
        return set()
    modules = dict(student.named_modules(remove_duplicate=False))

    def normalizes(node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(modules[str(node.target)], _BatchNorm)
        return node.target is F.batch_norm

    return {
        modules[str(node.target)]
        for node in student.graph.nodes
        if node.op == "call_module" and any(map(normalizes, node.users))
    }
