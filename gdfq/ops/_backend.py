"""The choice of kernels: by ``GDFQ_BACKEND`` or, inside a ``with`` block, by :func:`backend`.

A choice overrides the built kernels in PyTorch's dispatcher. So it reaches every operator, its
gradient and graphs that are already compiled. "auto" overrides nothing and costs nothing.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gdfq.errors import InputError
from gdfq.ops import _native, triton
from gdfq.ops._checks import check_choice

VARIABLE = "GDFQ_BACKEND"
BACKENDS = ("auto", "triton", "cuda", "cpu", "reference")
DEVICES = ("CPU", "CUDA")

Kernel = Callable[..., Any]

_references: dict[str, Kernel] = {}
_modules: dict[str, str] = {}  # each operator's file in gdfq/ops, and in gdfq/ops/triton
_automatic = torch.library.Library("gdfq", "IMPL")
_chosen = "auto"
_overlay: torch.library.Library | None = None
_native_kernels: frozenset[tuple[str, str]] = frozenset()


def register_reference(operator: str, function: Kernel) -> None:
    """Let ``function`` compute ``operator`` where no kernel was built, and on request."""
    _references[operator] = function
    _modules[operator] = function.__module__.rpartition(".")[2]
    torch.library.impl(f"gdfq::{operator}", "default", function)


def operators() -> list[str]:
    """Return the names of all operators, backwards included."""
    return sorted(_references)


@functools.cache
def triton_modules() -> dict[str, str]:
    """Return the operators with a Triton kernel and the names of their files."""
    folder = Path(triton.__file__).parent
    return {o: _modules[o] for o in operators() if (folder / f"{_modules[o]}.py").exists()}


def chosen() -> str:
    """Return the name of the backend in force.

    Raises:
        InputError: the environment names a backend that does not exist or cannot be used.
    """
    _check(_chosen, VARIABLE)
    return _chosen


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every operator on one backend inside a ``with`` block, in all threads.

    Args:
        name: ``"reference"`` (plain PyTorch), ``"cpu"`` and ``"cuda"`` (the native kernels, for
            tensors on that device alone), ``"triton"`` (on CUDA tensors; on CPU tensors where
            ``TRITON_INTERPRET=1`` was set before the start), or ``"auto"``: on a CPU tensor the
            native kernel; on a CUDA tensor the native kernel if it was built, else Triton's
            if it imports; else the reference.

    Raises:
        InputError: ``name`` is not one of these, or cannot be used in this process. An operator
            refuses a tensor on a device that the backend does not serve when it is called.
    """
    _check(name, "backend")
    previous = _chosen
    _install(name)
    try:
        yield
    finally:
        _install(previous)


def uses(operator: str, device: str) -> str:
    """Return the backend that computes ``operator`` on tensors of ``device``, "CPU" or "CUDA".

    Raises:
        InputError: as :func:`chosen`; or the chosen backend refuses the device.
    """
    choice = chosen()
    if choice == "auto":
        if (operator, device) in _native_kernels:
            return device.lower()
        automatic = device == "CUDA" and torch.version.cuda is not None
        return "triton" if automatic and _triton_kernel(operator) else "reference"
    if choice == "reference":
        return "reference"
    if choice == "triton":
        if device == "CPU" and not _interpreted():
            raise InputError(
                "backend: 'triton' runs on CUDA tensors, and on CPU tensors only where "
                "TRITON_INTERPRET=1 was set before the start; got a CPU tensor"
            )
        return "triton" if _triton_kernel(operator) else "reference"
    if choice != device.lower():
        raise InputError(f"backend: {choice!r} was chosen, got a {device} tensor")
    return choice if (operator, device) in _native_kernels else "reference"


def describe(device: str) -> str:
    """Describe the backend for tensors of ``device``, with the operators it leaves to another."""
    try:
        groups: dict[str, list[str]] = {}
        for operator in operators():
            groups.setdefault(uses(operator, device), []).append(operator)
    except InputError as error:
        return f"refused ({error})"
    main = max(groups, key=lambda name: len(groups[name]))
    rest = [f"{name}: {', '.join(groups[name])}" for name in groups if name != main]
    name = "triton, interpreted" if main == "triton" and _interpreted() else main
    return f"{name} ({'; '.join(rest)})" if rest else name


def triton_version() -> str | None:
    """Return the version of Triton, or None if it does not import."""
    try:
        return importlib.import_module("triton").__version__
    except ImportError:
        return None


# ---- available kernels ----


def _interpreted() -> bool:
    return importlib.import_module("gdfq.ops.triton._launch").INTERPRETED


@functools.cache
def _triton_kernel(operator: str) -> Kernel | None:
    """Return the launcher of Triton's kernel, imported on first use because that is slow.

    Float64 and empty tensors run the reference.
    """
    if operator not in triton_modules():
        return None
    try:
        module = importlib.import_module(f"gdfq.ops.triton.{triton_modules()[operator]}")
    except ImportError as error:
        if (error.name or "").startswith("gdfq"):
            raise
        return None
    launcher, reference = getattr(module, operator), _references[operator]

    def kernel(*args: Any, **kwargs: Any) -> Any:
        plain = any(t.dtype == torch.float64 or not t.numel() for t in _tensors(args))
        return (reference if plain else launcher)(*args, **kwargs)

    return kernel


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among ``arguments`` and in their lists."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _tensors(argument)


def _check(name: str, source: str) -> None:
    check_choice(source, name, BACKENDS)
    if name == "triton" and triton_version() is None:
        raise InputError(f"{source}: 'triton' cannot be used: it is not installed")
    if name == "cuda" and _native.cuda_version is None:
        raise InputError(f"{source}: 'cuda' cannot be used: gdfq was built without it")


# ---- overriding the dispatcher's kernels ----


def _install(name: str) -> None:
    global _chosen, _overlay
    if name == _chosen:
        return
    if _overlay is not None:
        _overlay._destroy()
        _overlay = None
    _chosen = name
    if name == "auto":
        return
    _overlay = torch.library.Library("gdfq", "IMPL")
    for operator in operators():
        for device in DEVICES:
            kernel = _chosen_kernel(operator, device)
            if kernel is not None:
                _overlay.impl(operator, kernel, device, allow_override=True)


def _chosen_kernel(operator: str, device: str) -> Kernel | None:
    """Return the kernel that overrides the built one; None keeps the built one."""
    try:
        name = uses(operator, device)
    except InputError as error:
        return _refusal(str(error))
    if name == "reference":
        return _references[operator]
    return _triton_kernel(operator) if name == "triton" else None


def _refusal(message: str) -> Kernel:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise InputError(message)

    return refuse


def _automatic_kernel(operator: str) -> Kernel:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        return (_triton_kernel(operator) or _references[operator])(*args, **kwargs)

    return kernel


def start() -> None:
    """Register Triton's kernels where no native one was built, and apply ``GDFQ_BACKEND``.

    A wrong value of the variable raises when an operator is first called: importing the package
    never fails because of it.
    """
    global _native_kernels
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    _native_kernels = frozenset(
        (operator, device)
        for operator in operators()
        for device in DEVICES
        if has_kernel(f"gdfq::{operator}", device)
    )
    if torch.version.cuda is not None and importlib.util.find_spec("triton") is not None:
        for operator in triton_modules():
            if (operator, "CUDA") not in _native_kernels:
                _automatic.impl(operator, _automatic_kernel(operator), "CUDA")
    _install(os.environ.get(VARIABLE) or "auto")
