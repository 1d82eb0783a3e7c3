"""The student's batch norms and biases, corrected by what quantization did to generated images.

Of a batch norm's input, per channel, let the teacher's mean and variance over the images be ``m``
and ``v``, the student's ``m'`` and ``v'``. The student's running statistics become those with which
it computes what the teacher's batch norm makes of ``(x - m') * sqrt(v / v') + m`` (re-estimation),
or of ``x - m' + m`` (bias correction)::

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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gdfq.nn.weight import QuantizedWeight
from gdfq.training.start.images import Images

LARGEST = 4.0  # factor by which a standard deviation is corrected


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
        """Mean and mean of squares over all batches, ``(2, channels)``."""
        assert self.sums is not None
        return self.sums / self.batches


def _moments(x: Tensor) -> Tensor:
    wide = x.detach().double().transpose(0, 1).flatten(1)
    return torch.stack([wide.mean(1), wide.square().mean(1)])


def _mean_and_var(pair: Tensor) -> tuple[Tensor, Tensor]:
    mean, square = pair.unbind()
    return mean, (square - mean.square()).clamp(min=0)


@torch.no_grad()
def correct(student: nn.Module, teacher: nn.Module, images: Images, spread: bool) -> list[str]:
    """Correct ``student``'s batch norms and biases towards ``teacher``'s on ``images``.

    Args:
        student: in evaluation mode, its ranges set.
        teacher: the float network it was made of, its modules by the same names.
        images: the calibration's.
        spread: correct standard deviations too, not only means.

    Returns:
        The names of the modules that were corrected.
    """
    own = dict(student.named_modules())
    theirs = dict(teacher.named_modules())
    behind = _with_norm_behind(student)
    norms = {n: m for n, m in own.items() if _is_norm(m) and _is_norm(theirs.get(n))}
    layers: dict[str, Any] = {
        n: m
        for n, m in own.items()
        if isinstance(m, QuantizedWeight) and m.bias is not None and n in theirs and n not in behind
    }
    for name, norm in norms.items():  # so that a second correction starts where the first did
        norm.running_mean.copy_(theirs[name].running_mean)
        norm.running_var.copy_(theirs[name].running_var)
    wanted = {name: Moments() for name in (*norms, *layers)}
    found = {name: Moments() for name in wanted}
    now: dict[str, Tensor] = {}

    def batch_moments(x: Tensor) -> Tensor:
        pair = _moments(x)
        # A batch is corrected by its own moments: those of all ranks' shares of it.
        images.world.mean(pair, "batch-norm statistics")
        return pair

    def note(name: str, x: Tensor) -> None:
        now[name] = batch_moments(x)
        wanted[name].add(now[name])

    def mend(name: str, x: Tensor) -> Tensor | None:
        if name not in now:
            return None
        pair = batch_moments(x)
        found[name].add(pair)
        mean, var = _mean_and_var(pair)
        aim, aimed_var = _mean_and_var(now[name])
        factor = torch.ones_like(mean)
        if spread and name in norms:
            factor = 1 / _ratio(var, aimed_var, norms[name].eps)
        each = (1, -1, *[1] * (x.dim() - 2))
        mended = (x.double() - mean.view(each)) * factor.view(each) + aim.view(each)
        return mended.to(x.dtype)

    with (
        _watched({n: theirs[n] for n in norms}, {n: theirs[n] for n in layers}, note),
        _watched(norms, layers, mend),
    ):
        for batch in images:
            now.clear()
            teacher(batch.clone())  # whose activations may be in place
            student(batch)
    done = [name for name in wanted if found[name].batches]
    for name in done:
        mean, var = _mean_and_var(found[name].pair())
        aim, aimed_var = _mean_and_var(wanted[name].pair())
        if name in layers:
            bias = layers[name].bias
            assert bias is not None
            bias.add_((aim - mean).to(bias.dtype))
            continue
        norm = norms[name]
        factor = _ratio(var, aimed_var, norm.eps) if spread else torch.ones_like(mean)
        old_mean, old_var = norm.running_mean.double(), norm.running_var.double()
        new_var = ((old_var + norm.eps) * factor.square() - norm.eps).clamp(min=0)
        norm.running_mean.copy_(mean - (aim - old_mean) * factor)
        norm.running_var.copy_(new_var)
    return done


def _ratio(var: Tensor, aimed_var: Tensor, eps: float) -> Tensor:
    """The student's standard deviation over the teacher's."""
    return ((var + eps) / (aimed_var + eps)).sqrt().clamp(1 / LARGEST, LARGEST)


def _is_norm(module: Any) -> bool:
    """Whether ``module`` is a batch norm, or the teacher's that records its input."""
    running = getattr(module, "running_mean", None)
    return running is not None and (isinstance(module, _BatchNorm) or hasattr(module, "record"))


def _with_norm_behind(student: nn.Module) -> set[str]:
    """Names of the layers whose output a batch norm reads."""
    if not isinstance(student, fx.GraphModule):
        return set()
    modules = dict(student.named_modules(remove_duplicate=False))
    return {
        str(node.target)
        for node in student.graph.nodes
        if node.op == "call_module"
        and any(
            user.op == "call_module" and isinstance(modules[str(user.target)], _BatchNorm)
            for user in node.users
        )
    }


@contextmanager
def _watched(
    inputs: Mapping[str, nn.Module],
    outputs: Mapping[str, nn.Module],
    look: Callable[[str, Tensor], Tensor | None],
) -> Iterator[None]:
    """Within, ``look`` sees what goes into and comes out of modules, and may put another there."""

    def before(name: str) -> Callable[..., Any]:
        return lambda module, args: look(name, args[0])

    def behind(name: str) -> Callable[..., Any]:
        return lambda module, args, output: look(name, output)

    handles: Sequence[Any] = [
        *(m.register_forward_pre_hook(before(n)) for n, m in inputs.items()),
        *(m.register_forward_hook(behind(n)) for n, m in outputs.items()),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
