"""Nearest upsampling by 2 and a 3x3 convolution as one transposed convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gdfq.errors import InputError
from gdfq.ops._checks import check_float, check_vector
from gdfq.ops._outputs import in_format_of


def upsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Upsample ``x`` by 2 (nearest) and convolve it, without storing the large tensor.

    Args:
        x: ``(N, C, H, W)``; float32, float16, bfloat16 or float64.
        weight: ``(O, C, 3, 3)``, of ``x``'s dtype.
        bias: ``(O,)``, of ``x``'s dtype, or None.

    Returns:
        ``(N, O, 2H, 2W)``, up to rounding::

            conv2d(interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)

        as ``conv_transpose2d(x, kernel, bias, stride=2, padding=1)``. The kernel, 4x4, is each
        3x3 filter, turned by 180 degrees and fully convolved with a 2x2 of ones: 16 multiply-adds
        per position of ``x`` in place of 36. It is a linear map of ``weight``, so gradients reach
        the 3x3 weights exactly. Made of PyTorch's operators on every device.

    Raises:
        InputError: a shape, dtype or device is not one of the above.

    Source: Xu et al., ECCV 2020, section 3.2, whose generator upsamples this way; the identity
    is that of Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016.
    """
    check_float(x, "x")
    check_float(weight, "weight")
    if x.dim() != 4:
        raise InputError(f"x: must be (N, C, H, W), got shape {tuple(x.shape)}")
    if weight.dim() != 4 or tuple(weight.shape[1:]) != (x.shape[1], 3, 3):
        raise InputError(
            f"weight: shape must be (O, {x.shape[1]}, 3, 3) for x of shape {tuple(x.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    check_vector(bias, weight.shape[0], "bias", like=x)
    autocast = torch.is_autocast_enabled(x.device.type)  # it gives all of them one dtype
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype and not autocast:
            raise InputError(f"{name}: dtype must be {x.dtype} like x, got {tensor.dtype}")
        if tensor is not None and tensor.device != x.device:
            raise InputError(f"{name}: must be on {x.device} like x, got {tensor.device}")
    # In x's memory format, or forward and backward would each convert it.
    kernel = in_format_of(transposed_kernel(weight), x)
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


def transposed_kernel(weight: Tensor) -> Tensor:
    """Return the transposed convolution's ``(C, O, 4, 4)`` kernel from ``(O, C, 3, 3)`` weights."""
    # Along one axis, weights (a, b, c) become (c, b + c, a + b, a).
    for axis in (2, 3):
        a, b, c = weight.unbind(axis)
        weight = torch.stack((c, b + c, a + b, a), dim=axis)
    return weight.transpose(0, 1)


# ---- reference ----


def upsample_conv2d_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute :func:`upsample_conv2d` by its definition."""
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
