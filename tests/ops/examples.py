"""One call or more of every public operator, for the tests of what all of them promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gdfq import functional, losses

Shape = tuple[int, ...]
Arguments = dict[str, Any]

SMALL: Shape = (2, 3, 5, 7)


@dataclass(frozen=True)
class Example:
    """A call: ``make`` gives its arguments for ``x`` of a shape (N, C, H, W) and a dtype."""

    function: Callable[..., Any]
    make: Callable[[Shape, torch.dtype], Arguments]
    # Arguments that take gradients, and those that are written in place.
    grads: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    # Arguments of any shape, and what errors call an argument that they don't name.
    any_shape: tuple[str, ...] = ()
    called: dict[str, str] = field(default_factory=dict)
    # Whether an empty x is taken.
    takes_empty: bool = True


def _x(shape: Shape, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype)


def _vector(entries: int | Shape) -> Tensor:
    return torch.rand(entries) + 0.5


def _fake_quantize(**options: Any) -> Callable[[Shape, torch.dtype], Arguments]:
    def make(shape: Shape, dtype: torch.dtype) -> Arguments:
        entries = () if options.get("axis") is None else (shape[options["axis"]],)
        bounds = {"lo": -_vector(entries), "hi": _vector(entries)}
        return {"x": _x(shape, dtype), **bounds, "bits": 3, **options}

    return make


def _off_zero(make: Callable[[Shape, torch.dtype], Arguments], *names: str) -> Any:
    """``make`` with ``zero_in_range`` and the tensors ``names`` moved above 0."""

    def moved(shape: Shape, dtype: torch.dtype) -> Arguments:
        given = make(shape, dtype)
        above = mapped({name: given[name] for name in names}, lambda t: t + 6)
        return {**given, **above, "zero_in_range": True}

    return moved


def _minmax(shape: Shape, dtype: torch.dtype) -> Arguments:
    return {"w": _x(shape, dtype), "bits": 3, "ste": "clip"}


def _minmax_list(shape: Shape, dtype: torch.dtype) -> Arguments:
    return {"ws": [_x(shape, dtype), _x(shape[:2], dtype)], "bits": [3, 4], "ste": "clip"}


def _moving_range() -> Arguments:
    buffers = {name: torch.zeros(()) for name in ("average_lo", "average_hi", "lo", "hi")}
    return {**buffers, "num_batches_tracked": torch.zeros((), dtype=torch.int64)}


def _observe(shape: Shape, dtype: torch.dtype) -> Arguments:
    return {"x": _x(shape, dtype), **_moving_range(), "bits": 3, "ste": "clip"}


def _pack(shape: Shape, dtype: torch.dtype) -> Arguments:
    return {"codes": torch.randint(-4, 4, shape, dtype=torch.int8), "bits": 3}


def _unpack(shape: Shape, dtype: torch.dtype) -> Arguments:
    return {"packed": functional.pack_codes(**_pack(shape, dtype)), "bits": 3, "shape": shape}


def _batch_norm(shape: Shape) -> Arguments:
    names = ("running_mean", "running_var", "weight", "bias")
    return {**{name: _vector(shape[1]) for name in names}, "eps": 1e-5}


def _changed(shape: Shape, dtype: torch.dtype) -> Arguments:
    ws = _minmax_list(shape, dtype)["ws"]
    bounds = [torch.rand(len(w)) + 0.5 for w in ws]
    updates = [_x(tuple(w.shape), dtype) for w in ws]
    lists = {"ws": ws, "updates": updates, "los": [-bound for bound in bounds], "his": bounds}
    return {**lists, "factors": torch.rand(len(ws)), "bits": 3}


def _stats(shape: Shape, dtype: torch.dtype) -> Arguments:
    return {"x": _x(shape, dtype), **_batch_norm(shape)}


def _bn_act(shape: Shape, dtype: torch.dtype) -> Arguments:
    bounds = {"lo": torch.tensor(0.1), "hi": torch.tensor(1.5)}
    given = {"x": _x(shape, dtype), "residual": _x(shape, dtype)}
    return {**given, **_batch_norm(shape), **bounds, "bits": 3, "act": "relu6", "ste": "clip"}


def _observe_bn_act(shape: Shape, dtype: torch.dtype) -> Arguments:
    given = _bn_act(shape, dtype)
    return {name: value for name, value in given.items() if name not in ("lo", "hi")} | (
        _moving_range()
    )


def _bn_leaky(conditional: bool) -> Callable[[Shape, torch.dtype], Arguments]:
    def make(shape: Shape, dtype: torch.dtype) -> Arguments:
        entries = shape[:2] if conditional else shape[1:2]
        affine = {"weight": _vector(entries), "bias": _vector(entries)}
        return {"x": _x(shape, dtype), **_batch_norm(shape), **affine, "eps": 0.8}

    return make


def _bns_loss(shape: Shape, dtype: torch.dtype) -> Arguments:
    names = ("means", "vars", "running_means", "running_vars")
    return {name: [_vector(n).to(dtype) for n in shape[1:3]] for name in names}


def _kd_ce_loss(soft: bool) -> Callable[[Shape, torch.dtype], Arguments]:
    def make(shape: Shape, dtype: torch.dtype) -> Arguments:
        rows, classes = shape[0] * shape[1], shape[2] * shape[3]
        labels = torch.rand(rows, classes) if soft else torch.randint(classes, (rows,))
        student, teacher = _x((rows, classes), dtype), _x((rows, classes), dtype)
        return {"student_logits": student, "teacher_logits": teacher, "labels": labels}

    return make


def _upsample(shape: Shape, dtype: torch.dtype) -> Arguments:
    weight = _x((4, shape[1], 3, 3), dtype) / 3
    return {"x": _x(shape, dtype), "weight": weight, "bias": _x((4,), dtype)}


_AFFINE = ("x", "weight", "bias")
_MOVING = ("average_lo", "average_hi", "lo", "hi", "num_batches_tracked")
_LAYER = dict.fromkeys(("means", "vars", "running_means", "running_vars"), "layer 1")
_LOGITS = {"grads": ("student_logits",), "takes_empty": False}

# By operator, with what tells two examples of one apart behind a colon.
EXAMPLES: dict[str, Example] = {
    "fake_quantize": Example(
        functional.fake_quantize, _fake_quantize(ste="clip"), ("x",), any_shape=("x",)
    ),
    "fake_quantize:learned": Example(
        functional.fake_quantize, _fake_quantize(axis=1, ste="learned"), ("x", "lo", "hi"),
        any_shape=("x",),
    ),
    "fake_quantize:learned, zero_in_range": Example(
        functional.fake_quantize,
        _off_zero(_fake_quantize(axis=1, ste="learned"), "x", "lo", "hi"), ("x", "lo", "hi"),
        any_shape=("x",),
    ),
    "fake_quantize_minmax": Example(
        functional.fake_quantize_minmax, _minmax, ("w",), any_shape=("w",)
    ),
    "fake_quantize_minmax:zero_in_range": Example(
        functional.fake_quantize_minmax, _off_zero(_minmax, "w"), ("w",), any_shape=("w",)
    ),
    "fake_quantize_minmax_list": Example(
        functional.fake_quantize_minmax_list, _minmax_list, ("ws",), any_shape=("ws",)
    ),
    "fake_quantize_minmax_list:zero_in_range": Example(
        functional.fake_quantize_minmax_list, _off_zero(_minmax_list, "ws"), ("ws",),
        any_shape=("ws",),
    ),
    "count_changed_codes": Example(
        functional.count_changed_codes, _changed, any_shape=("ws",),
    ),
    "observe_fake_quantize": Example(
        functional.observe_fake_quantize, _observe, ("x",), any_shape=("x",),
        written=_MOVING,
    ),
    "observe_fake_quantize:zero_in_range": Example(
        functional.observe_fake_quantize, _off_zero(_observe, "x"), ("x",), any_shape=("x",),
        written=_MOVING,
    ),
    "quantize_codes": Example(
        functional.quantize_codes, _fake_quantize(axis=1), any_shape=("x",)
    ),
    "pack_codes": Example(functional.pack_codes, _pack, any_shape=("codes",)),
    "unpack_codes": Example(functional.unpack_codes, _unpack),
    "batch_norm_stats": Example(
        functional.batch_norm_stats, _stats, _AFFINE, any_shape=("x",), takes_empty=False
    ),
    "bns_loss": Example(
        losses.bns_loss, _bns_loss, ("means", "vars"), called=_LAYER, takes_empty=False
    ),
    "bn_act_fake_quantize": Example(
        functional.bn_act_fake_quantize, _bn_act, (*_AFFINE, "residual"), any_shape=("x",)
    ),
    "bn_act_fake_quantize:zero_in_range": Example(
        functional.bn_act_fake_quantize, _off_zero(_bn_act), (*_AFFINE, "residual"),
        any_shape=("x",),
    ),
    "observe_bn_act_fake_quantize": Example(
        functional.observe_bn_act_fake_quantize, _observe_bn_act, (*_AFFINE, "residual"),
        any_shape=("x",), written=_MOVING,
    ),
    "observe_bn_act_fake_quantize:zero_in_range": Example(
        functional.observe_bn_act_fake_quantize, _off_zero(_observe_bn_act, "bias"),
        (*_AFFINE, "residual"), any_shape=("x",), written=_MOVING,
    ),
    "kd_ce_loss": Example(losses.kd_ce_loss, _kd_ce_loss(soft=False), **_LOGITS),
    "kd_ce_loss:soft": Example(losses.kd_ce_loss, _kd_ce_loss(soft=True), **_LOGITS),
    "bn_leaky_relu": Example(
        functional.bn_leaky_relu, _bn_leaky(conditional=False), _AFFINE, any_shape=("x",),
        written=("running_mean", "running_var"), takes_empty=False,
    ),
    "bn_leaky_relu:conditional": Example(
        functional.bn_leaky_relu, _bn_leaky(conditional=True), _AFFINE, any_shape=("x",),
        written=("running_mean", "running_var"), takes_empty=False,
    ),
    "upsample_conv2d": Example(
        functional.upsample_conv2d, _upsample, _AFFINE, any_shape=("x",)
    ),
}  # fmt: skip


def mapped(arguments: Arguments, function: Callable[[Tensor], Tensor]) -> Arguments:
    """``arguments`` with ``function`` applied to every tensor."""
    return {
        name: function(value)
        if isinstance(value, Tensor)
        else [function(t) for t in value]
        if isinstance(value, list) and isinstance(value[0], Tensor)
        else value
        for name, value in arguments.items()
    }


def flat(value: Any) -> Iterator[Tensor]:
    """The tensors in a tensor, or in a list or tuple of them."""
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value:
            yield from flat(part)


def random_gradient(y: Tensor) -> Tensor:
    """The same for the same shape and dtype."""
    generator = torch.Generator(y.device).manual_seed(1)
    return torch.randn(y.shape, generator=generator, device=y.device).to(y.dtype)


def results(
    example: Example,
    arguments: Arguments,
    gradient: Callable[[Tensor], Tensor] = random_gradient,
    **options: Any,
) -> list[Tensor]:
    """What a call returns, the gradients of it, and what it wrote; the arguments stay as they are.

    ``options`` go to :func:`torch.autograd.grad`.
    """
    given = mapped(arguments, Tensor.detach)
    given |= {name: given[name].clone() for name in example.written}
    leaves = [t.requires_grad_() for name in example.grads for t in flat(given[name])]
    outputs = list(flat(example.function(**given)))
    ys = [y for y in outputs if y.requires_grad]
    gradients = (
        torch.autograd.grad(ys, leaves, [gradient(y) for y in ys], **options) if leaves else ()
    )
    return [*(y.detach() for y in outputs), *gradients, *(given[name] for name in example.written)]
