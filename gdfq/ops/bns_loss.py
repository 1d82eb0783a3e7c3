"""Mismatch between batch statistics and those stored in batch-norm layers, for all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gdfq.errors import InputError
from gdfq.ops._backend import register_reference
from gdfq.ops._checks import check_float
from gdfq.ops._outputs import reduced_dtype

_op = torch.ops.gdfq.bns_loss


def bns_loss(
    means: Sequence[Tensor],
    vars: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
) -> Tensor:
    """Compute the mismatch between batch statistics and those stored in batch-norm layers.

    Args:
        means, vars: per layer ``(C_l,)``, the batch's mean and biased variance of the layer's
            input; see :func:`gdfq.functional.batch_norm_stats`.
        running_means, running_vars: per layer ``(C_l,)``, the stored statistics, constants; no
            gradient flows to them.

    Returns:
        A 0-d float32 tensor (float64 for float64 statistics)::

            mean over layers of [MSE(mean, running_mean) + MSE(var, running_var)]

        each MSE averaged over the layer's channels. With L layers the gradients are
        ``2 / (L * C_l) * (mean - running_mean)``, and the same for ``var``.

    Raises:
        InputError: no layer, the four sequences differ in length, shapes or devices, or a dtype
            is not floating point.

    Source: Xu et al., ECCV 2020, equation 3.
    """
    sequences = [list(s) for s in (means, vars, running_means, running_vars)]
    lengths = [len(s) for s in sequences]
    if not lengths[0] or len(set(lengths)) != 1:
        raise InputError(
            "means, vars, running_means, running_vars: need one entry per layer each, and at "
            f"least one layer; got {', '.join(map(str, lengths))}"
        )
    for index, layer in enumerate(zip(*sequences, strict=True)):
        name = f"layer {index}"
        for tensor in layer:
            check_float(tensor, name)
        mean, var, running_mean, running_var = layer
        # Written out: there are hundreds of tensors, and the operator takes microseconds.
        shape, device = mean.shape, sequences[0][0].device
        if not (var.shape == shape == running_mean.shape == running_var.shape and shape.numel()):
            shapes = ", ".join(str(tuple(t.shape)) for t in layer)
            raise InputError(
                f"{name}: statistics must have one shape and not be empty, got {shapes}"
            )
        if not device == mean.device == var.device == running_mean.device == running_var.device:
            devices = ", ".join(str(t.device) for t in layer)
            raise InputError(
                f"{name}: statistics must be on one device, that of layer 0, got {devices}"
            )
    return _op(*sequences)


@torch.library.register_fake("gdfq::bns_loss")
def _fake(
    means: list[Tensor], vars: list[Tensor], running_means: list[Tensor], running_vars: list[Tensor]
) -> Tensor:
    return means[0].new_empty((), dtype=reduced_dtype(means[0]))


@torch.library.register_fake("gdfq::bns_loss_backward")
def _fake_backward(
    grad: Tensor,
    means: list[Tensor],
    vars: list[Tensor],
    running_means: list[Tensor],
    running_vars: list[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    return [m.new_empty(m.shape) for m in means], [v.new_empty(v.shape) for v in vars]


# ---- reference ----


def bns_loss_reference(
    means: list[Tensor], vars: list[Tensor], running_means: list[Tensor], running_vars: list[Tensor]
) -> Tensor:
    """Compute :func:`bns_loss` in plain PyTorch."""
    dtype = reduced_dtype(means[0])
    mismatches = [
        torch.mean((mean.to(dtype) - running_mean.to(mean.dtype).to(dtype)) ** 2)
        + torch.mean((var.to(dtype) - running_var.to(var.dtype).to(dtype)) ** 2)
        for mean, var, running_mean, running_var in zip(
            means, vars, running_means, running_vars, strict=True
        )
    ]
    return torch.stack(mismatches).mean()


def bns_loss_backward_reference(
    grad: Tensor,
    means: list[Tensor],
    vars: list[Tensor],
    running_means: list[Tensor],
    running_vars: list[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute the gradients of :func:`bns_loss` to ``means`` and ``vars`` in plain PyTorch."""

    def gradient(statistic: Tensor, stored: Tensor) -> Tensor:
        dtype = reduced_dtype(statistic)
        difference = statistic.to(dtype) - stored.to(statistic.dtype).to(dtype)
        factor = 2 / (len(means) * statistic.numel())
        return (grad.to(dtype) * factor * difference).to(statistic.dtype)

    return (
        [gradient(*pair) for pair in zip(means, running_means, strict=True)],
        [gradient(*pair) for pair in zip(vars, running_vars, strict=True)],
    )


register_reference("bns_loss", bns_loss_reference)
register_reference("bns_loss_backward", bns_loss_backward_reference)
