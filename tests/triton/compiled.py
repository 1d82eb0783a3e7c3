"""The kernels that operators launch, compiled for a GPU that need not be there."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True)
class Launch:
    """One launch, as Triton's just-in-time compiler specializes it."""

    kernel: JITFunction
    signature: tuple[tuple[str, str | tuple[str, ...]], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[tuple[int, ...], ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return (
            f"{self.kernel.fn.__module__.rpartition('.')[2]}.{self.kernel.fn.__name__.lstrip('_')}"
        )


def _launch_of(kernel: JITFunction, arguments: tuple[Any, ...], named: dict[str, Any]) -> Launch:
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | named
    signature, constants, divisible = [], [], []
    for index, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        is_constant = value is None or (type(value) is int and value == 1)
        if parameter.is_constexpr or is_constant:
            kind = "constexpr"
            constants.append((parameter.name, value))
        elif isinstance(value, Tensor):
            kind = TYPES[value.dtype]
            if value.data_ptr() % 16 == 0:
                divisible.append((index,))
        elif isinstance(value, tuple):
            kind = tuple(TYPES[t.dtype] for t in value)
            divisible += [(index, i) for i, t in enumerate(value) if t.data_ptr() % 16 == 0]
        elif isinstance(value, int):
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                divisible.append((index,))
        else:
            kind = "fp32"
        signature.append((parameter.name, kind))
    options = tuple((name, named[name]) for name in OPTIONS if name in named)
    return Launch(kernel, tuple(signature), tuple(constants), tuple(divisible), options)


def launches(call: Callable[[], Any]) -> list[Launch]:
    """What ``call`` launches; nothing is computed."""
    recorded: list[Launch] = []

    def run(kernel: JITFunction, *arguments: Any, **named: Any) -> None:
        recorded.append(_launch_of(kernel, arguments, named))

    with mock.patch.object(JITFunction, "run", run):
        call()
    return recorded


@dataclass(frozen=True)
class Binary:
    """A compiled kernel's PTX and disassembly."""

    ptx: str
    sass: str

    def count(self, pattern: str) -> int:
        """Instructions of the PTX that match ``pattern``."""
        return len(re.findall(rf"^\s*(?:@!?%\w+ )?{pattern}", self.ptx, re.MULTILINE))


@functools.cache
def compile_for(launch: Launch, capability: int) -> Binary:
    """Compile ``launch`` ahead of time for compute capability ``capability``."""
    source = ASTSource(
        launch.kernel,
        dict(launch.signature),
        dict(launch.constants),
        {path: [["tt.divisibility", 16]] for path in launch.divisible},
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=dict(launch.options))
    return Binary(compiled.asm["ptx"], compiled.asm["sass"])
