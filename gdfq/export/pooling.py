"""Decompositions of pooling into ONNX operators that runtimes compute as PyTorch does.

Plain pooling needs none. These cases do: ``ceil_mode``, where OpenVINO counts and places the last
window differently; ``divisor_override``, which ``torch.onnx`` drops; and adaptive output sizes that
do not divide the input's, which ``torch.onnx`` rejects or writes as gathers with another shape in
OpenVINO.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gdfq.errors import InputError
from gdfq.export.emit import OPSET

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Windows:
    """Windows of a pooling along one dimension of ``size``, placed as in PyTorch."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    ceil_mode: bool

    @property
    def extent(self) -> int:
        """Length of a window, dilation included."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def count(self) -> int:
        """Number of windows; with ``ceil_mode`` the last may extend beyond the padding."""
        room = self.size + 2 * self.padding - self.extent
        if not self.ceil_mode:
            return room // self.stride + 1
        count = -(-room // self.stride) + 1
        return count - ((count - 1) * self.stride >= self.size + self.padding)

    @property
    def behind(self) -> int:
        """Padding after the values that ``count`` windows need."""
        end = (self.count - 1) * self.stride + self.extent
        return max(0, end - self.size - self.padding)

    @property
    def reaches_over(self) -> bool:
        return self.behind > self.padding


def _windows(
    x: Tensor,
    dims: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[_Windows] | None:
    """Return the windows of each pooled dimension; None if a size is dynamic."""
    sizes = x.shape[-dims:]
    if not all(isinstance(size, int) for size in sizes):
        return None
    columns = (_each(values, dims) for values in (kernel, stride or kernel, padding, dilation))
    return [
        _Windows(size, length, step, pad, apart, ceil_mode)
        for size, length, step, pad, apart in zip(sizes, *columns, strict=True)
    ]


def _each(values: Sequence[int], dims: int) -> list[int]:
    return list(values) * dims if len(values) == 1 else list(values)


def constant(values: list[float] | list[int]) -> Tensor:
    """Emit ``values`` as an ONNX Constant."""
    kind, dtype = ("ints", torch.int64) if isinstance(values[0], int) else ("floats", torch.float32)
    return torch.onnx.ops.symbolic(
        "Constant", [], {f"value_{kind}": values}, dtype=dtype, shape=[len(values)], version=OPSET
    )


def weighted_sums(x: Tensor, dim: int, weights: list[list[float]]) -> Tensor:
    """Multiply ``x`` along ``dim`` (negative) by the matrix ``weights``, one row per output."""
    columns = constant([weight for row in weights for weight in row]).view(len(weights), -1).T
    return torch.matmul(x.transpose(dim, -1), columns).transpose(dim, -1)


def _pool(
    operation: str,
    x: Tensor,
    windows: list[_Windows],
    attributes: dict[str, Any],
    indices: bool = False,
) -> list[Tensor]:
    """Emit the pooling ``operation`` with explicit padding; optionally also its indices."""
    shape = (*x.shape[: -len(windows)], *(w.count for w in windows))
    outputs = 1 + indices
    return list(
        torch.onnx.ops.symbolic_multi_out(
            operation,
            [x],
            attrs={
                **attributes,
                "kernel_shape": [w.kernel for w in windows],
                "strides": [w.stride for w in windows],
                "pads": [*(w.padding for w in windows), *(w.behind for w in windows)],
            },
            dtypes=[x.dtype, torch.int64][:outputs],
            shapes=[shape] * outputs,
            version=OPSET,
        )
    )


def _avg(dims: int) -> Callable[..., Any]:
    def formula(
        x: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:
        windows = _windows(x, dims, kernel_size, stride, padding, (1,), ceil_mode)
        if windows is None or not (ceil_mode or divisor_override):
            return NotImplemented
        # ONNX has no pooling without a batch dimension.
        batched = x if x.dim() == dims + 2 else x.unsqueeze(0)
        whole = bool(count_include_pad or divisor_override)
        if count_include_pad and not divisor_override and any(w.reaches_over for w in windows):
            # PyTorch counts the padding, but not positions beyond it in the last windows.
            pads = [(w.padding, min(w.padding, w.behind)) for w in windows]
            batched = F.pad(batched, [n for pad in reversed(pads) for n in pad])
            windows = [
                replace(w, size=w.size + sum(pad), padding=0)
                for w, pad in zip(windows, pads, strict=True)
            ]
            whole = False
        (y,) = _pool("AveragePool", batched, windows, {"count_include_pad": int(whole)})
        y = y if x.dim() == dims + 2 else y.squeeze(0)
        size = math.prod(w.kernel for w in windows)
        return y * (size / divisor_override) if divisor_override else y

    return formula


def _max(dims: int, indices: bool) -> Callable[..., Any]:
    def formula(
        x: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> Any:
        windows = _windows(x, dims, kernel_size, stride, padding, dilation, ceil_mode)
        if windows is None or not ceil_mode:
            return NotImplemented
        batched = x if x.dim() == dims + 2 else x.unsqueeze(0)
        dilations = {"dilations": [w.dilation for w in windows]}
        found = _pool("MaxPool", batched, windows, dilations, indices)
        if indices:
            # ONNX's indices count through the whole tensor, PyTorch's through a channel.
            found[1] = found[1] % math.prod(w.size for w in windows)
        found = [y if x.dim() == dims + 2 else y.squeeze(0) for y in found]
        return tuple(found) if indices else found[0]

    return formula


def _adaptive(
    x: Tensor, output_size: Sequence[int], along: Callable[[Tensor, int, list[range]], Tensor]
) -> Tensor:
    dims = len(output_size)
    for dim, size, count in zip(range(-dims, 0), x.shape[-dims:], output_size, strict=True):
        if count != size:
            edges = ((i * size // count, -(-(i + 1) * size // count)) for i in range(count))
            x = along(x, dim, [range(*edge) for edge in edges])
    return x


def _kernel(x: Tensor, output_size: Sequence[int]) -> list[int] | None:
    """Return the kernel of an equivalent plain pooling, if any; None if sizes are dynamic."""
    sizes = x.shape[-len(output_size) :]
    if not all(isinstance(size, int) for size in sizes):
        return None
    if any(size % count for size, count in zip(sizes, output_size, strict=True)):
        return []
    return [size // count for size, count in zip(sizes, output_size, strict=True)]


def _adaptive_avg(dims: int) -> Callable[..., Any]:
    """Adaptive average pooling; a matrix product where sizes do not divide."""

    def along(x: Tensor, dim: int, windows: list[range]) -> Tensor:
        places = range(x.shape[dim])
        shares = [[(i in window) / len(window) for i in places] for window in windows]
        return weighted_sums(x, dim, shares)

    def formula(x: Tensor, output_size: Sequence[int]) -> Any:
        if all(size == 1 for size in output_size):
            # In channels_last, PyTorch's own decomposition becomes a Gather in ONNX.
            return x.mean(list(range(-dims, 0)), keepdim=True)
        kernel = _kernel(x, output_size)
        if kernel is None or (kernel and dims == 2):
            return NotImplemented
        return F.avg_pool3d(x, kernel) if kernel else _adaptive(x, output_size, along)

    return formula


def _adaptive_max(dims: int) -> Callable[..., Any]:
    """Adaptive max pooling; shorter windows are filled by repeating their last value."""

    def along(x: Tensor, dim: int, windows: list[range]) -> Tensor:
        longest = max(map(len, windows))
        index = [window[min(j, len(window) - 1)] for window in windows for j in range(longest)]
        picked = x.index_select(dim, constant(index))
        return picked.unflatten(dim, (len(windows), longest)).amax(dim)

    def formula(x: Tensor, output_size: Sequence[int]) -> Any:
        kernel = _kernel(x, output_size)
        if kernel is None:
            return NotImplemented
        if kernel:
            return getattr(_aten, f"max_pool{dims}d_with_indices")(x, kernel, kernel)
        y = _adaptive(x, output_size, along)
        return y, torch.onnx.ops.symbolic(
            f"gdfq::{_NO_INDICES}", [y], dtype=torch.int64, shape=y.shape, version=OPSET
        )

    return formula


_NO_INDICES = "NoIndices"  # placeholder operator, never in a file


def refuse_indices(program: torch.export.ExportedProgram) -> None:
    """Raise InputError if ``program`` uses the indices of an adaptive max pooling."""
    for node in program.graph.nodes:
        if _NO_INDICES in (*node.args, *node.kwargs.values()):
            raise InputError(
                "student: it reads the indices of an adaptive max pooling whose output size does "
                "not divide its input's; ONNX has none, the formats pt2 and safetensors do"
            )


def _as_2d(name: str) -> Callable[..., Any]:
    """Express a 1d pooling as a 2d one with a first dimension of size 1."""
    pool = getattr(_aten, name)
    neutral = [1] if name.startswith("adaptive") else [1, 1, 0, 1]  # kernel, stride, padding, ...

    def formula(x: Tensor, *arguments: Any, **options: Any) -> Any:
        values = [list(value) if isinstance(value, Sequence) else value for value in arguments]
        if not name.startswith("adaptive") and len(values) > 1 and not values[1]:
            values[1] = values[0]
        lists = [
            [neutral[i], *value] if isinstance(value, list) else value
            for i, value in enumerate(values)
        ]
        y = pool(x.unsqueeze(-2), *lists, **options)
        return tuple(v.squeeze(-2) for v in y) if isinstance(y, tuple) else y.squeeze(-2)

    return formula


POOLING: dict[Any, Any] = {
    **{
        getattr(_aten, f"{name}1d{rest}").default: _as_2d(f"{name}2d{rest}")
        for name, rest in (
            ("avg_pool", ""),
            ("max_pool", ""),
            ("max_pool", "_with_indices"),
            ("adaptive_avg_pool", ""),
            ("adaptive_max_pool", ""),
        )
    },
    **{getattr(_aten, f"avg_pool{n}d").default: _avg(n) for n in (2, 3)},
    **{getattr(_aten, f"max_pool{n}d").default: _max(n, False) for n in (2, 3)},
    **{getattr(_aten, f"max_pool{n}d_with_indices").default: _max(n, True) for n in (2, 3)},
    **{getattr(_aten, f"adaptive_avg_pool{n}d").default: _adaptive_avg(n) for n in (2, 3)},
    **{getattr(_aten, f"adaptive_max_pool{n}d").default: _adaptive_max(n) for n in (2, 3)},
}
