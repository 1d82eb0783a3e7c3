"""The memory format in which a step is faster, by trial, and checks that networks support it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from gdfq.convert.comparison import disable_quantizers
from gdfq.errors import InputError
from gdfq.nn.copying import copied
from gdfq.nn.given import one_line
from gdfq.training.precision import multiplications

MemoryFormat = Literal["channels_last", "contiguous"]
TORCH_FORMATS = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}
# Formats round differently; without a margin, timing noise could flip the choice between runs.
MARGIN = 1.1
# The kernels of the two formats round differently; a forward that depends on the format is far off.
TOLERANCE = 0.01


class MemoryFormatError(InputError):
    """A network cannot be run in a memory format, or computes something else in it."""


@torch.no_grad()
def require_channels_last(
    teacher: nn.Module, student: nn.Module, generator: nn.Module, images: Tensor, *noise: Tensor
) -> None:
    """Raise a MemoryFormatError unless the networks can be trained in channels-last format.

    Teacher and student must compute the same as in contiguous format, quantizers left out, which
    would make a rounding error a whole step.

    Args:
        teacher, student, generator: they are copied, never modified.
        images: ``(N, C, H, W)``; their values are not read.
        noise: what the generator is called with.
    """
    device = images.device
    values = torch.randn(
        images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32
    )
    given = (values.to(images),)
    networks = {"generator": generator, "teacher": teacher, "student": student}
    for name, network in networks.items():
        trial = copied(network, name=name)
        disable_quantizers(trial)
        problem = None
        try:
            with multiplications("fp32", device):
                if network is generator:
                    _logits(trial, noise, "channels_last")
                elif not _close(*(_logits(trial, given, key) for key in TORCH_FORMATS)):
                    problem = "what it computes there is something else"
        except Exception as error:
            problem = one_line(error)
        if problem is not None:
            raise MemoryFormatError(
                f"memory_format: the {name} cannot be used in 'channels_last': {problem}; give "
                "'contiguous' or 'auto'"
            )


def _logits(network: nn.Module, args: tuple[Tensor, ...], name: str) -> Any:
    memory_format = TORCH_FORMATS[name]
    network.to(memory_format=memory_format)
    return network(*(x.clone(memory_format=memory_format) if x.dim() == 4 else x for x in args))


def _close(found: Tensor, expected: Tensor) -> bool:
    """Whether no sample differs by more than ``TOLERANCE`` times its largest absolute value."""
    rows, others = (x.float().nan_to_num().flatten(1) for x in (expected, found))
    return bool(((others - rows).abs() <= TOLERANCE * rows.abs().amax(1, keepdim=True)).all())


def fastest_memory_format(
    make_step: Callable[[MemoryFormat], Callable[[], dict[str, Tensor]]], uncounted: int = 1
) -> tuple[MemoryFormat, dict[str, float]]:
    """Time a step in one format, then in the other; what the first took is free by then.

    A format for which ``make_step`` raises a MemoryFormatError is not chosen.

    Args:
        make_step: a step to try in a format, on copies of everything it changes.
        uncounted: first steps of each that are not counted.

    Returns:
        ``"channels_last"``, unless ``"contiguous"`` is faster by a tenth, and the seconds of a
        step in each, the shortest of three.
    """
    seconds = {}
    for name in get_args(MemoryFormat):
        try:
            step = make_step(name)
        except MemoryFormatError:
            return "contiguous", {}
        seconds[name] = _seconds(step, uncounted)
        del step
        gc.collect()  # a trainer is full of cycles
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    faster = seconds["contiguous"] * MARGIN < seconds["channels_last"]
    return ("contiguous" if faster else "channels_last"), seconds


def _seconds(step: Callable[[], dict[str, Tensor]], uncounted: int) -> float:
    runs = []
    for _ in range(uncounted + 3):
        start = time.perf_counter()
        float(step()["student"])  # waits for the device
        runs.append(time.perf_counter() - start)
    return min(runs[uncounted:])
