"""Batch norm with statistics over all ranks in training mode, on any backend of PyTorch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from gdfq.distributed import World, global_moments, joined_world
from gdfq.errors import InputError

PURPOSE = "generator's batch norms"


def global_bn_leaky_relu(
    norm: _BatchNorm,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    world: World,
    negative_slope: float = 1.0,
) -> Tensor:
    """Apply :func:`gdfq.functional.bn_leaky_relu` with statistics over all ranks.

    Forward and backward pass use one collective of 2 * C float64 each. Gradients averaged over the
    ranks equal those that one process would compute.

    Args:
        norm: whose running statistics, if any, are updated.
        x: ``(N, C, ...)`` float, this rank's shard; equal shapes on all ranks.
        weight, bias: ``(C,)``, or ``(N, C)`` for a scale and shift per sample; None is 1 and 0.
        world: the ranks.
        negative_slope: of the leaky ReLU, in [0, 1]; 1 omits it.

    Returns:
        A tensor of ``x``'s shape and dtype.
    """
    y, mean, var = _GlobalBatchNorm.apply(x, weight, bias, norm.eps, negative_slope, world)
    if norm.track_running_stats:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            momentum: Any = norm.momentum
            if momentum is None:  # cumulative average
                momentum = 1 / norm.num_batches_tracked.to(norm.running_mean.dtype)
            count = world.size * x.numel() // x.shape[1]
            unbiased = var * (count / (count - 1))
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
    return y


class _GlobalBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        negative_slope: float,
        world: World,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = _wide(x)
        var, mean = torch.var_mean(wide, _reduced(x), correction=0)
        (mean,), (var,) = global_moments(world, [mean], [var], PURPOSE)
        y = F.batch_norm(wide, mean, var, eps=eps)
        if weight is not None:
            y = y * _shaped(weight, y)
        if bias is not None:
            y = y + _shaped(bias, y)
        y = F.leaky_relu(y, negative_slope).to(x.dtype)
        ctx.eps, ctx.negative_slope, ctx.world, ctx.has_bias = (
            eps, negative_slope, world, bias is not None,
        )  # fmt: skip
        ctx.bias_per_sample = bias is not None and bias.dim() == 2
        ctx.save_for_backward(x, y, mean, var, weight)
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, y, mean, var, weight = ctx.saved_tensors
        wide, g = _wide(x), _wide(grad)
        g = torch.where(y > 0, g, g * ctx.negative_slope)
        normalized = F.batch_norm(wide, mean, var, eps=ctx.eps)
        moved = g * normalized
        grad_weight = None if weight is None else _like(weight, moved)
        grad_bias = None
        if ctx.has_bias:
            grad_bias = g.sum([d for d in _reduced(x) if d or not ctx.bias_per_sample])
        scaled, scaled_moved = g, moved
        if weight is not None:
            scaled, scaled_moved = g * _shaped(weight, g), moved * _shaped(weight, g)
        sums = torch.cat([t.sum(_reduced(x)).double() for t in (scaled, scaled_moved)])
        sums /= x.numel() // x.shape[1]
        ctx.world.mean(sums, PURPOSE)
        shift, slope = (_shaped(part.to(g.dtype), g) for part in sums.chunk(2))
        inv_std = _shaped(torch.rsqrt(var + ctx.eps), g)
        grad_x = (scaled - shift - normalized * slope) * inv_std
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None, None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _reduced(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


def _shaped(parameter: Tensor, x: Tensor) -> Tensor:
    samples = parameter.shape[0] if parameter.dim() == 2 else 1
    return parameter.view([samples, -1] + [1] * (x.dim() - 2))


def _like(parameter: Tensor, products: Tensor) -> Tensor:
    """Sum elementwise gradients to the shape of a scale ``(C,)`` or ``(N, C)``."""
    return products.sum([d for d in _reduced(products) if d or parameter.dim() == 1])


class _Global:
    """Mixin for batch norms: statistics over all ranks within ``World.joined``."""

    def forward(self: Any, input: Tensor) -> Tensor:
        world = joined_world()
        # As in PyTorch, evaluation without running statistics uses the batch's.
        if world is None or not (self.training or self.running_mean is None):
            return super().forward(input)  # type: ignore[misc]
        return global_bn_leaky_relu(self, input, self.weight, self.bias, world)


class GlobalBatchNorm1d(_Global, nn.BatchNorm1d):
    """See :func:`globalize_batch_norms`."""


class GlobalBatchNorm2d(_Global, nn.BatchNorm2d):
    """See :func:`globalize_batch_norms`."""


class GlobalBatchNorm3d(_Global, nn.BatchNorm3d):
    """See :func:`globalize_batch_norms`."""


_CLASSES: dict[type, type] = {
    nn.BatchNorm1d: GlobalBatchNorm1d,
    nn.BatchNorm2d: GlobalBatchNorm2d,
    nn.BatchNorm3d: GlobalBatchNorm3d,
}


def globalize_batch_norms(network: nn.Module, name: str) -> None:
    """Make batch norms of ``network`` use statistics over all ranks in training mode.

    Changes the modules' class to a subclass; parameters, names and hooks stay. No effect outside
    :meth:`gdfq.distributed.World.joined`.

    Args:
        network: with batch norms of class ``nn.BatchNorm1d``, ``2d`` or ``3d``, or of a class that
            supports this itself and sets ``takes_global_batch = True``.
        name: of the network in messages.

    Raises:
        InputError: it has a batch norm of another class.
    """
    for path, module in network.named_modules():
        if type(module) in _CLASSES:
            module.__class__ = _CLASSES[type(module)]
        elif (
            isinstance(module, _BatchNorm)
            and not isinstance(module, _Global)
            and not getattr(module, "takes_global_batch", False)
        ):
            raise InputError(
                f"{name}: {path!r} is a {type(module).__name__}, which cannot take its statistics "
                "over several processes; use nn.BatchNorm2d, or run one process"
            )
