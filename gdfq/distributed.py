"""Data-parallel training: the collectives of a run, and a count of their traffic.

Without a launcher the world has one process and PyTorch's collectives are never called. In a
larger world each rank works on a shard of one batch; batch-norm statistics, activation ranges,
losses and gradients are combined over the ranks.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gdfq.errors import InputError, ProcessLostError

# torchrun sends SIGKILL 30 seconds after SIGTERM.
SECONDS_TO_LEAVE = 25.0


@dataclass
class Traffic:
    """Number of collective calls of a process, and bytes of its tensors in them."""

    calls: int = 0
    bytes: int = 0


@dataclass
class World:
    """The processes of a run; by default a single one.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        store: the launcher's key-value store.

    Attributes:
        traffic: this process's traffic so far, by purpose. A step replayed as a CUDA graph counts
            once, when it is captured.
    """

    rank: int = 0
    size: int = 1
    store: dist.Store | None = None
    traffic: dict[str, Traffic] = field(default_factory=dict)

    @property
    def parallel(self) -> bool:
        """Whether there are other processes."""
        return self.size > 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and prints for all."""
        return self.rank == 0

    def __deepcopy__(self, memo: dict[int, Any]) -> World:
        return self

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Compute batch-norm statistics and activation ranges over all ranks' batches within.

        All ranks must run the same layers in the same order. No effect with a single process.
        """
        token = _joined.set(self if self.parallel else None)
        try:
            yield
        finally:
            _joined.reset(token)

    # ---- collectives on the device ----

    def shard(self, tensor: Tensor) -> Tensor:
        """Return this rank's slice of ``tensor``; ``size`` divides its first dimension."""
        count = tensor.shape[0] // self.size
        return tensor[self.rank * count : (self.rank + 1) * count]

    def start_mean(self, tensor: Tensor, purpose: str) -> Callable[[], None]:
        """Begin to replace ``tensor`` by its mean over the ranks; call the result to finish."""
        if not self.parallel:
            return lambda: None
        self._count(purpose, tensor)
        with _others_needed():
            work = dist.all_reduce(tensor, async_op=True)
        assert work is not None

        def finish() -> None:
            with _others_needed():
                work.wait()
            tensor.div_(self.size)

        return finish

    def mean(self, tensor: Tensor, purpose: str) -> None:
        """Replace ``tensor`` by its mean over the ranks."""
        self.start_mean(tensor, purpose)()

    def sum(self, tensor: Tensor, purpose: str) -> None:
        """Replace ``tensor`` by its sum over the ranks."""
        self._reduce(tensor, dist.ReduceOp.SUM, purpose)

    def max(self, tensor: Tensor, purpose: str) -> None:
        """Replace ``tensor``, without NaN, by its elementwise maximum over the ranks."""
        self._reduce(tensor, dist.ReduceOp.MAX, purpose)

    def start_averaging(
        self, parameters: Iterable[Tensor], values: dict[str, Tensor], purpose: str
    ) -> Callable[[], dict[str, Tensor]]:
        """Begin to average the gradients of ``parameters`` and the 0-d ``values`` over the ranks.

        Uses one collective per dtype on a flat copy. Calling the result waits, writes the mean
        gradients back and returns the mean values. The same parameters must have gradients on all
        ranks.
        """
        if not self.parallel:
            return lambda: values
        groups: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                groups.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        means = {name: value.detach().clone() for name, value in values.items()}
        for value in means.values():
            groups.setdefault(value.dtype, []).append(value)
        flat = {dtype: _flatten(tensors) for dtype, tensors in groups.items()}
        waiting = [self.start_mean(buffer, purpose) for buffer in flat.values()]

        def finish() -> dict[str, Tensor]:
            for wait in waiting:
                wait()
            for dtype, tensors in groups.items():
                _unflatten(flat[dtype], tensors)
            return means

        return finish

    def copy_from_rank0(self, *sources: nn.Module | Tensor) -> None:
        """Overwrite tensors, and modules' parameters and buffers, with the values of rank 0."""
        if not self.parallel:
            return
        groups: dict[Any, list[Tensor]] = {}
        for source in sources:
            tensors = [source] if isinstance(source, Tensor) else source.state_dict().values()
            for tensor in tensors:
                groups.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
        for tensors in groups.values():
            buffer = _flatten(tensors)
            self._count("start", buffer)
            with _others_needed():
                dist.broadcast(buffer, 0)
            _unflatten(buffer, tensors)

    def _reduce(self, tensor: Tensor, operation: Any, purpose: str) -> None:
        if self.parallel:
            self._count(purpose, tensor)
            with _others_needed():
                dist.all_reduce(tensor, operation)

    def _count(self, purpose: str, tensor: Tensor) -> None:
        traffic = self.traffic.setdefault(purpose, Traffic())
        traffic.calls += 1
        traffic.bytes += tensor.numel() * tensor.element_size()

    # ---- agreement on the CPU ----

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank."""
        return bool(self.largest(int(flag)))

    def total(self, count: int) -> int:
        """The sum of ``count`` over the ranks."""
        total = torch.tensor([count])
        self.sum(total, "agreement")
        return int(total.item())

    def largest(self, number: int) -> int:
        """The largest ``number`` of any rank."""
        agreed = torch.tensor([number])
        self.max(agreed, "agreement")
        return int(agreed.item())

    def broadcast_from_rank0(self, choice: int) -> int:
        """Return ``choice`` of rank 0."""
        chosen = torch.tensor([choice])
        self.copy_from_rank0(chosen)
        return int(chosen.item())

    def should_report(self, error: BaseException) -> bool:
        """Whether this rank should print ``error``.

        False if another rank has printed the same error or, for a :class:`ProcessLostError`, any
        error. True where the store cannot be reached.
        """
        if self.store is None:
            return True
        lost = isinstance(error, ProcessLostError)
        said = hashlib.sha256(b"lost" if lost else repr(error).encode()).hexdigest()
        try:
            if lost and self.store.check(["gdfq/failed"]):
                return False
            if not lost:
                self.note_failure()
            return self.store.add(f"gdfq/said/{said}", 1) == 1
        except RuntimeError:
            return True

    def note_failure(self) -> None:
        """Record that this rank has printed an error, so that ranks which lose it stay silent."""
        if self.store is not None:
            with suppress(RuntimeError):
                self.store.set("gdfq/failed", "")


def start() -> World:
    """Join the processes that torchrun started; without torchrun, return a world of one.

    CPU tensors use gloo, CUDA tensors NCCL; ``LOCAL_RANK`` selects the GPU. A process that hangs
    in a collective after SIGTERM is ended 25 seconds later.

    Raises:
        InputError: torchrun's environment variables are incomplete, the processes cannot connect,
            or a machine has more processes than GPUs.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return World()
    size = _whole_number("WORLD_SIZE", 1)
    rank = _whole_number("RANK", 0, size - 1)
    if size == 1:
        return World()
    missing = [n for n in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(n)]
    if missing:
        raise InputError(f"environment: RANK is set, but {', '.join(missing)} is not; use torchrun")
    local = _whole_number("LOCAL_RANK", 0, size - 1)
    port = _whole_number("MASTER_PORT", 1, 65535)
    backend = "gloo"
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if local >= gpus:
            raise InputError(f"nproc-per-node: must be at most the {gpus} GPUs, got {local + 1}")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, _, _ = next(iter(dist.rendezvous("env://")))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"environment: rank {rank} of {size} cannot meet the others at "
            f"{os.environ['MASTER_ADDR']}:{port}, MASTER_ADDR and MASTER_PORT: {reason}"
        ) from error
    _exit_after_sigterm()
    return World(rank, size, store)


def _whole_number(name: str, minimum: int, maximum: int | None = None) -> int:
    value = os.environ[name]
    number = int(value) if value.isascii() and value.isdecimal() else -1
    if number < minimum or (maximum is not None and number > maximum):
        at_least = f"a whole number >= {minimum}"
        allowed = at_least if maximum is None else f"from {minimum} to {maximum}"
        raise InputError(f"environment: {name} must be {allowed}, got {value!r}; use torchrun")
    return number


def stop(world: World) -> None:
    """Destroy the process group; all processes must have finished."""
    if world.parallel:
        dist.destroy_process_group()


def joined_world() -> World | None:
    """Return the world inside :meth:`World.joined`; None outside or with a single process."""
    return _joined.get()


def global_moments(
    world: World, means: Sequence[Tensor], variances: Sequence[Tensor], purpose: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Combine the ranks' means and biased variances into global ones, in one collective.

    ``mean = avg(mean_r)`` and ``var = avg(var_r + mean_r**2) - mean**2``, averaged over ranks r in
    float64. For float32 statistics the difference is exact enough while a mean is below 1e4
    standard deviations.

    Differentiable if every rank computes the same from the result: its gradient is then equal on
    all ranks, and the backward pass needs no collective.

    Args:
        world: ranks that each took statistics over equally many elements.
        means, variances: pairs of the same shape, e.g. ``(C,)`` for each layer.
        purpose: key of :attr:`World.traffic`.

    Returns:
        Global means and variances, shapes and dtypes as given.
    """
    mean = torch.cat([m.double().flatten() for m in means])
    var = torch.cat([v.double().flatten() for v in variances])
    mean, square = _Mean.apply(torch.cat([mean, var + mean**2]), world, purpose).chunk(2)
    sizes = [m.numel() for m in means]

    def like(flat: Tensor) -> list[Tensor]:
        parts = zip(flat.split(sizes), means, strict=True)
        return [part.view(m.shape).to(m.dtype) for part, m in parts]

    return like(mean), like(square - mean**2)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World, purpose: str) -> Tensor:
        mean = tensor.clone()
        world.mean(mean, purpose)
        return mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # The mean over the ranks of equal gradients.
        return grads[0], None, None


_joined: ContextVar[World | None] = ContextVar("joined", default=None)


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    parts = flat.split([t.numel() for t in tensors])
    torch._foreach_copy_(
        list(tensors), [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]
    )


@contextmanager
def _others_needed() -> Iterator[None]:
    """Turn a failed collective within into a ProcessLostError."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(
            "lost contact to the other processes: one of them has ended; the launcher's report "
            "names it"
        ) from error


def _exit_after_sigterm() -> None:
    """End this process ``SECONDS_TO_LEAVE`` after a SIGTERM, even while a collective hangs.

    Python runs signal handlers between bytecodes of the main thread, which never come while it
    waits in a collective. The wakeup descriptor, written by the C handler, wakes a second thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        with suppress(OSError):
            while os.read(reading, 1) != bytes([signal.SIGTERM]):
                pass
            time.sleep(SECONDS_TO_LEAVE)
            os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="gdfq-leave", daemon=True).start()
