"""Several processes that train as one: what they tell each other, and how much of it.

A process that no launcher started is a world of its own: nothing here calls PyTorch's collectives
then. In a larger world every rank works on its share of one batch, and what depends on the whole
batch (batch-norm statistics, activation ranges, losses, gradients) is combined over the ranks.
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

# torchrun kills what has not ended 30 seconds after it was told to.
SECONDS_TO_LEAVE = 25.0


@dataclass
class Traffic:
    """What a process gave to collectives: how often, and bytes of tensors."""

    calls: int = 0
    bytes: int = 0


@dataclass
class World:
    """The processes of a run; on its own, one that is alone.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        store: where the launcher lets the processes leave notes for each other.

    Attributes:
        traffic: by purpose, what this process gave to collectives so far. A step that is replayed
            as a CUDA graph is counted once, when it is captured.
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
        """Whether this is the process that writes and prints for all."""
        return self.rank == 0

    def __deepcopy__(self, memo: dict[int, Any]) -> World:
        return self

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Within, batch norms of generator and teacher and activation ranges see all ranks' batch.

        All ranks must run the same layers in the same order there. Nothing changes if alone.
        """
        token = _joined.set(self if self.parallel else None)
        try:
            yield
        finally:
            _joined.reset(token)

    # ---- what is combined on the device ----

    def share(self, tensor: Tensor) -> Tensor:
        """This rank's slice of ``tensor``, whose first dimension is a multiple of ``size``."""
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
        """Replace ``tensor`` by its elements' maxima over the ranks; it holds no NaN."""
        self._reduce(tensor, dist.ReduceOp.MAX, purpose)

    def start_averaging(
        self, parameters: Iterable[Tensor], values: dict[str, Tensor], purpose: str
    ) -> Callable[[], dict[str, Tensor]]:
        """Begin to average gradients over the ranks, and ``values``, 0-d, along with them.

        One collective per dtype, on a copy of the gradients behind each other. Calling the result
        waits, puts the means into the gradients and returns those of ``values``. The same
        parameters must have gradients on all ranks.
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

    def copy_from_first(self, *sources: nn.Module | Tensor) -> None:
        """Give parameters and buffers, and tensors, the values that they have on rank 0."""
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

    # ---- what processes agree on, without the device ----

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank; the same answer on all."""
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

    def first_says(self, choice: int) -> int:
        """Rank 0's ``choice``."""
        chosen = torch.tensor([choice])
        self.copy_from_first(chosen)
        return int(chosen.item())

    def is_news(self, error: BaseException) -> bool:
        """Whether nobody has told of ``error``: no rank of this one or, if it is that another
        rank is gone, of any; True if unknown.
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
        """Let ranks that lose this one know that it has told why."""
        if self.store is not None:
            with suppress(RuntimeError):
                self.store.set("gdfq/failed", "")


def start() -> World:
    """Join the processes that torchrun started, or be alone where it did not.

    Tensors on the CPU go by gloo, those on GPUs by NCCL; ``LOCAL_RANK`` picks the GPU. A process
    that is told to leave by SIGTERM, but hangs because another is gone, is ended 25 seconds later.

    Raises:
        InputError: the environment is not that of torchrun, the processes do not find each other,
            or there are more of them on a machine than GPUs.
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
    _leave_when_told()
    return World(rank, size, store)


def _whole_number(name: str, least: int, most: int | None = None) -> int:
    """The environment's variable ``name``, as torchrun sets it.

    Raises:
        InputError: it is no whole number from ``least`` to ``most``.
    """
    value = os.environ[name]
    number = int(value) if value.isascii() and value.isdecimal() else -1
    if number < least or (most is not None and number > most):
        allowed = f"a whole number >= {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"environment: {name} must be {allowed}, got {value!r}; use torchrun")
    return number


def stop(world: World) -> None:
    """Leave the other processes; all of them must be done."""
    if world.parallel:
        dist.destroy_process_group()


def joined_world() -> World | None:
    """The world whose ranks' batches are one now, see :meth:`World.joined`; None if alone."""
    return _joined.get()


def global_moments(
    world: World, means: Sequence[Tensor], variances: Sequence[Tensor], purpose: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Means and biased variances over all ranks from those of each, in one collective.

    Args:
        world: whose ranks took them of equally many elements each.
        means, variances: pairs of one shape, e.g. ``(C,)`` for every layer.
        purpose: under which it is counted.

    Returns:
        ``mean = avg(mean_r)`` and ``var = avg(var_r + mean_r**2) - mean**2``, averages over the
        ranks r, computed and sent in float64: with float32 statistics, nothing is lost by the
        difference while a mean is below 1e4 standard deviations.

        Differentiable, under the condition that every rank computes the same from the result: the
        gradient is then the same on every rank, and nothing has to be sent for it.
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
    """Within, a failure means that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(
            "lost contact to the other processes: one of them has ended; the launcher's report "
            "names it"
        ) from error


def _leave_when_told() -> None:
    """End this process some time after a SIGTERM, even where a collective never returns.

    Python's handlers run between instructions of the main thread, and there is none while it
    waits for a process that is gone. The byte that C's handler writes wakes another thread.
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
