"""Measurement of step time by phase, share of convolutions, and peak memory."""

from __future__ import annotations

import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gdfq.bench.formulations import RIVALS, Rival, Settings, make
from gdfq.bench.networks import Workload
from gdfq.distributed import Traffic, World
from gdfq.memory import allocator_put_back, keep_freed_memory, return_freed_memory
from gdfq.training import GDFQTrainer
from gdfq.training.capture import WARM_UP_STEPS

PHASES = ("generator", "teacher", "student", "optimizers")
# bmm: the generator's last convolution, see gdfq/nn/narrow_conv.py.
CONVOLUTIONS = re.compile(r"^aten::(.*conv.*|bmm|im2col|col2im)$")


@dataclass
class Measurement:
    """Measured step of one implementation.

    Attributes:
        name: in tables.
        seconds: of each step.
        images_per_second: at the median step time.
        phases: median seconds by phase; only for our trainer in one process on the CPU.
        convolutions: their fraction of the step time; only where ``phases`` is measured.
        peak_bytes: peak memory; None if it was not measured.
        traffic: collective traffic of each process in a step, by purpose.
        calibration_traffic: the same for a calibration batch.
    """

    name: str
    seconds: list[float]
    images_per_second: float
    phases: dict[str, float] = field(default_factory=dict)
    convolutions: float | None = None
    peak_bytes: int | None = None
    traffic: dict[str, Traffic] = field(default_factory=dict)
    calibration_traffic: dict[str, Traffic] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds)


def measure(
    workload: Workload,
    settings: Settings,
    rivals: list[Rival],
    memory: bool = True,
    world: World | None = None,
) -> tuple[list[Measurement], GDFQTrainer]:
    """Time ``settings.steps`` steps of our trainer and of each rival, interleaved.

    Our trainer runs with freed memory kept, as in ``gdfq quantize``; rivals use the C allocator's
    defaults unless ``pages_kept``. Peak memory is measured in separate processes. With several
    processes, all must call it, without rivals and memory.

    Returns:
        Measurements of our trainer and of the rivals in order; and our trainer.
    """
    with allocator_put_back():
        return _measure(workload, settings, rivals, memory, world or World())


def _measure(
    workload: Workload, settings: Settings, rivals: list[Rival], memory: bool, world: World
) -> tuple[list[Measurement], GDFQTrainer]:
    keep_freed_memory()  # our trainer times memory formats when it is created
    names: list[Any] = ["ours", *rivals]
    trainers = {name: make(name, workload, settings, world) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    clock = PhaseClock(trainers["ours"])
    # Skip steps in which libraries select algorithms and, on a GPU, the step is captured.
    uncounted = 2 if settings.device == "cpu" else WARM_UP_STEPS + 2
    traffic = []
    for turn in range(settings.steps + uncounted):
        world.traffic.clear()
        for name, trainer in trainers.items():
            _allocator(name, settings)
            elapsed = clock.step() if name == "ours" else timed(trainer.step)
            if turn >= uncounted:
                seconds[name].append(elapsed)
            elif name == "ours":
                clock.forget()
        traffic.append(dict(world.traffic))
    keep_freed_memory()
    results = []
    for name in names:
        label = "gdfq" if name == "ours" else RIVALS[name][0]
        captured = getattr(trainers[name], "captured", None)
        if captured is not None and captured.failure:
            label += f" (not captured: {captured.failure})"
        rate = workload.batch_size / statistics.median(seconds[name])
        results.append(Measurement(label, seconds[name], rate))
    ours = results[0]
    ours.phases = clock.medians()
    ours.traffic = traffic[1]  # the second step is never a graph replay, which is not counted
    ours.calibration_traffic = _difference(traffic[0], traffic[1])
    if settings.device == "cpu" and not world.parallel:
        ours.convolutions = convolution_share(trainers["ours"].step)
    clock.remove()
    if memory:
        # Use the format chosen above, since trying both takes memory.
        chosen = {**settings.trainer, "memory_format": trainers["ours"].memory_format}
        for name, result in zip(names, results, strict=True):
            result.peak_bytes = peak_memory(name, workload, replace(settings, trainer=chosen))
    return results, trainers["ours"]


def _difference(first: dict[str, Traffic], second: dict[str, Traffic]) -> dict[str, Traffic]:
    """Return the traffic of ``first``, a step with calibration, beyond that of ``second``."""
    nothing = Traffic()
    pairs = {name: (more, second.get(name, nothing)) for name, more in first.items()}
    differences = {
        name: Traffic(more.calls - less.calls, more.bytes - less.bytes)
        for name, (more, less) in pairs.items()
    }
    return {name: traffic for name, traffic in differences.items() if traffic.calls}


def _allocator(name: str, settings: Settings) -> None:
    if name == "ours" or settings.pages_kept:
        keep_freed_memory()
    else:
        return_freed_memory()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(step: Any) -> float:
    """Return the seconds that ``step`` takes, the device's work included."""
    _wait()
    start = time.perf_counter()
    step()
    _wait()
    return time.perf_counter() - start


class PhaseClock:
    """Splits the time of our step into phases, by hooks on networks and optimizers.

    The teacher's phase is its forward and backward pass with losses, the generator's its own
    passes, the student's everything between both updates. On a GPU, where a step is one graph, and
    with several processes, only the total is measured.
    """

    def __init__(self, trainer: GDFQTrainer) -> None:
        self.trainer = trainer
        self.totals: dict[str, list[float]] = {name: [] for name in PHASES}
        self.current = dict.fromkeys(PHASES, 0.0)
        self.last = 0.0
        # With several processes, the generator's update ends inside the student's phase.
        self.split = trainer.device.type == "cpu" and not trainer.world.parallel
        self.hooks: list[Any] = []
        if not self.split:
            return
        self.hooks = [
            trainer.generator.register_forward_hook(self._images),
            *(
                optimizer.register_step_pre_hook(self._ends(phase))
                for optimizer, phase in (
                    (trainer.generator_update.optimizer, "generator"),
                    (trainer.student_update.optimizer, "student"),
                )
            ),
            *(
                optimizer.register_step_post_hook(self._ends("optimizers"))
                for optimizer in (
                    trainer.generator_update.optimizer,
                    trainer.student_update.optimizer,
                )
            ),
        ]

    def step(self) -> float:
        """Run one step and return its seconds."""
        self.current = dict.fromkeys(PHASES, 0.0)
        self.last = time.perf_counter()
        elapsed = timed(self.trainer.step)
        for name, value in self.current.items():
            self.totals[name].append(value)
        return elapsed

    def forget(self) -> None:
        """Discard the measurements so far."""
        for values in self.totals.values():
            values.clear()

    def medians(self) -> dict[str, float]:
        """Return median seconds by phase; empty if only the total is measured."""
        if not self.split:
            return {}
        return {name: statistics.median(values) for name, values in self.totals.items()}

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self.hooks:
            hook.remove()

    def _mark(self, phase: str) -> None:
        now = time.perf_counter()
        self.current[phase] += now - self.last
        self.last = now

    def _images(self, module: Any, inputs: Any, images: Tensor) -> None:
        self._mark("generator")
        if images.requires_grad:
            images.register_hook(lambda grad: self._mark("teacher"))

    def _ends(self, phase: str) -> Any:
        return lambda *_: self._mark(phase)


def convolution_share(step: Any) -> float:
    """Return the fraction of a step's CPU time in convolutions, by PyTorch's profiler.

    Includes reordering of memory inside convolutions.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet(), torch.profiler.profile(activities=activities) as profile:
        elapsed = timed(step)
    inside = 0.0
    for event in profile.key_averages():
        if CONVOLUTIONS.match(event.key):
            inside += event.self_cpu_time_total
    return inside / 1e6 / elapsed


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress messages that the profiler's C++ code writes to standard error."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def peak_memory(name: str, workload: Workload, settings: Settings) -> int | None:
    """Measure peak bytes of networks, optimizer state and two steps, in a new process.

    On the CPU this is the growth of the resident set, None if the system does not report it; on a
    GPU it is the peak of PyTorch's allocator.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_peak_memory, name, workload, settings).result()


def _peak_memory(name: str, workload: Workload, settings: Settings) -> int | None:
    if settings.device != "cpu":
        trainer = make(name, workload, settings)
        for _ in range(WARM_UP_STEPS):  # exclude the memory of compilation
            trainer.step()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):  # the first one is captured
            trainer.step()
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    _allocator(name, settings)
    before = _kilobytes(status, "VmRSS")
    trainer = make(name, workload, settings)
    for _ in range(2):
        trainer.step()
    return 1024 * (_kilobytes(status, "VmHWM") - before)


def _kilobytes(status: Path, key: str) -> int:
    for line in status.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise KeyError(key)
