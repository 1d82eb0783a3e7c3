"""The algorithm: generator and student alternately (Xu et al., ECCV 2020, algorithm 1)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, get_args

import torch
from pydantic import Field
from torch import Tensor, fx, nn

from gdfq.convert import QuantizedModel, require_same
from gdfq.convert.fusion import FusedModel
from gdfq.convert.fusion import fuse as fuse_modules
from gdfq.distributed import World
from gdfq.errors import InputError
from gdfq.nn import StatisticsTeacher
from gdfq.nn.given import plain_network
from gdfq.nn.global_batch_norm import globalize_batch_norms
from gdfq.ops._checks import check_choice
from gdfq.settings import checked, with_fields
from gdfq.training import checks
from gdfq.training.calibration import observe_ranges
from gdfq.training.callback import TrainerCallback
from gdfq.training.capture import WARM_UP_STEPS, CapturedStep
from gdfq.training.description import describe
from gdfq.training.generated import GeneratedImages
from gdfq.training.last_good import LastGood, require_finite_teacher
from gdfq.training.memory_format import (
    TORCH_FORMATS,
    MemoryFormat,
    fastest_memory_format,
    require_channels_last,
)
from gdfq.training.parts import Parts, check_parts, learns_ranges, make_parts
from gdfq.training.parts.part import Loop
from gdfq.training.precision import autocast, multiplications
from gdfq.training.settings import Classes, Training
from gdfq.training.start import NO_START, Start, sequence
from gdfq.training.start.images import Images
from gdfq.training.state import check_state, load_optimizer_state, optimizer_state
from gdfq.training.step import Step
from gdfq.training.update import generator_update, student_update

NO_PARTS = Parts()


class GDFQTrainer:
    """Fine-tunes a quantized student on images that a generator learns from the teacher.

    Args:
        teacher: the trained float network; it is copied, never modified.
        student: its quantized copy, from :func:`gdfq.quantize_model`; trained in place.
        generator: anything like :class:`gdfq.models.Generator`: ``generator(z, labels)`` returns
            images, ``generator.latent_dim`` is the length of ``z``. Trained in place.
        num_classes: of the teacher's logits.
        batch_size: images per step, >= 2, over all ranks of ``world``, whose number divides it.
        parts: additions to the paper's loop; none by default.
        start: what is done to the student when its ranges are calibrated, beyond that.
        world: of :func:`gdfq.distributed.start`, to train on many processes as on one: every
            rank makes a trainer, and all take what rank 0 was given. ``nn.BatchNorm2d`` layers of
            the generator take their statistics over all ranks then. None is this process alone.
        fuse: run the student through :func:`gdfq.convert.fusion.fuse`; the same training with
            fewer passes over memory.
        cuda_graph: on a GPU, capture a whole step in one CUDA graph and replay it.
        training: the fields of :class:`gdfq.training.Training`, by name:
            ``epochs=400``, ``student_lr=1e-4``, ``schedule="cosine"``, ``seed=0``, ...

    Attributes:
        student: the student as it is trained; ``outcome`` is what to measure and to save.
        steps_done: steps so far.
        memory_format: what the step runs in; ``memory_format_seconds`` is what was measured.
        fused: the fused student, which lists what was fused; None without.

    Raises:
        InputError: an argument is out of range, the teacher has no batch norm or has parameters
            that are not finite, teacher, student and ``num_classes`` do not fit, the student
            without its quantizers is not the teacher, one of them cannot be used in
            ``"channels_last"`` where that is given, or the generator has a kind of batch norm that
            one process alone can train.
        ProcessLostError: of any method, where another rank is gone.

    Source: Xu et al., ECCV 2020, algorithm 1. The defaults are the paper's for CIFAR-10. The
    ranges are calibrated just before fine-tuning, on what the generator makes by then.
    """

    @torch.inference_mode(False)
    @torch.enable_grad()
    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        generator: nn.Module,
        num_classes: int,
        batch_size: int,
        *,
        parts: Parts = NO_PARTS,
        start: Start = NO_START,
        world: World | None = None,
        fuse: bool = True,
        cuda_graph: bool = True,
        **training: Any,
    ) -> None:
        self.training = Training(batch_size=batch_size, **training)
        teacher = plain_network(teacher, "teacher")
        networks = {"student": student, "generator": generator}
        for name, network in networks.items():
            if plain_network(network, name) is not network:
                raise InputError(
                    f"{name}: is trained in place; give the network in the {type(network).__name__}"
                )
        checks.check_networks(teacher=teacher, **networks)
        self.device = next(teacher.parameters()).device
        if not isinstance(world, World | None):
            raise InputError(f"world: must be of gdfq.distributed.start, got {world!r}")
        self.world = world or World()
        num_classes = checked("num_classes", num_classes, Classes)
        checks.check_settings(self.training, self.device, self.world.size)
        check_choice("fuse", fuse, (True, False))
        check_choice("cuda_graph", cuda_graph, (True, False))
        checks.check_type("parts", parts, Parts)
        checks.check_type("start", start, Start)
        learned = learns_ranges(student)
        check_parts(parts, self.training, learned)
        sequence.check(start, student)

        self.teacher = StatisticsTeacher(teacher)
        self.student = student.eval()
        self.generator = generator.train()
        self.part_settings = parts
        self.start = start
        self.cuda_graph = cuda_graph and self.device.type == "cuda"
        self.steps_done = 0
        self.calibrated = False

        self.rng = torch.Generator(self.device).manual_seed(self.training.seed)
        images = checks.check_shapes(self.teacher, self.student, self.generator, num_classes)
        sequence.try_correction(start, self.student, self.teacher.model, images)
        loop = Loop(
            self.teacher, student, generator, images, self.training, num_classes, self.rng,
            self.world,
        )  # fmt: skip
        self.parts = make_parts(parts, learned)
        for part in self.parts:
            part.check(loop)
        if isinstance(student, QuantizedModel):
            require_same(teacher, student, images)
        memory_format = self.training.memory_format
        if memory_format == "channels_last":
            require_channels_last(
                self.teacher.model, student, generator, images, *checks.example_batch(generator, 2)
            )
        if self.world.parallel:
            globalize_batch_norms(self.generator, "generator")
            state = self.rng.get_state()
            self.world.copy_from_rank0(self.teacher, self.student, self.generator, state)
            self.rng.set_state(state)
        sequence.prepare(start, self.student)
        self.fused: FusedModel | None = None
        if fuse and isinstance(student, fx.GraphModule):
            self.fused = fuse_modules(student, images)
        self.memory_format_seconds: dict[str, float] = {}
        if memory_format == "auto":
            memory_format = self._choose_memory_format(
                teacher, num_classes=num_classes, parts=parts, fuse=fuse, cuda_graph=cuda_graph
            )
        self.memory_format = memory_format
        for module in (self.teacher, self.student, self.generator):
            module.to(memory_format=TORCH_FORMATS[memory_format])
        for part in self.parts:
            part.setup(loop)

        self.generator_update = generator_update(generator, self.training, self.world)
        self.student_update = student_update(student, self.training, self.world, self.parts)
        self.images = GeneratedImages(
            generator, num_classes, self.training.batch_size, self.rng, self.parts, self.world
        )
        self.algorithm = Step(
            self.teacher, self.fused or student, self.images, self.generator_update,
            self.student_update, self.parts, self.training,
        )  # fmt: skip
        self.last_good = LastGood(student, self.parts)
        self._totals = {
            name: torch.zeros((), device=self.device, dtype=torch.float32)
            for name in ("generator", "generator_ce", "bns", "student")
        }
        self._final: nn.Module | None = None  # the student when training has ended
        self._captured: dict[str, CapturedStep] = {}

    # ---- the schedule ----

    @torch.inference_mode(False)
    @torch.enable_grad()
    def train(self, callback: TrainerCallback | None = None) -> nn.Module:
        """Run the whole schedule from where it stands and return its ``outcome``.

        Raises:
            NonFiniteLossError: a loss or a weight of the student became NaN or infinite; it is put
                back to what it was at the end of the last good epoch.
        """
        callback = callback or TrainerCallback()
        training, last_good = self.training, self.last_good
        if not last_good.state:
            last_good.snapshot()
        while self.steps_done < training.steps:
            if self.steps_done == training.warmup_steps:
                self._start_tuning(callback)
            losses = self.step()
            if self.steps_done == 1:
                require_finite_teacher(losses)
            callback.on_step(self, losses)
            if self.steps_done % training.steps_per_epoch == 0:
                means = self._epoch_means()
                last_good.require_finite(means, self.steps_done)
                last_good.snapshot()
                callback.on_epoch(self, means)
            callback.between_steps(self, losses)
            if self.world.any(callback.should_stop()):
                values = {name: float(loss) for name, loss in losses.items()}
                last_good.require_finite(values, self.steps_done)
                return self.outcome
        if self.steps_done == training.warmup_steps:
            self._start_tuning(callback)
        return self.outcome

    def _start_tuning(self, callback: TrainerCallback) -> None:
        if not self.calibrated:
            self.calibrate(self.training.calibration_batches)
        self.last_good.snapshot()
        callback.on_calibrated(self)

    @property
    def outcome(self) -> nn.Module:
        """The student to measure and to save.

        A copy where its parameters are averaged or, at the end, its batch norms corrected.
        """
        self._set_modes()
        if self._final is not None:
            return self._final
        student = self.student
        for part in self.parts:
            student = part.final_student(student)
        if self.calibrated and self.steps_done >= self.training.steps:
            with self._computing():
                student = sequence.end(self.start, student, self.teacher.model, self._new_images)
            self._final = student
        return student

    @torch.inference_mode(False)
    @torch.enable_grad()
    def step(self) -> dict[str, Tensor]:
        """Do one iteration: the generator learns, then, after the warm-up, the student.

        Returns:
            The step's losses, 0-d tensors: ``generator`` with its parts ``generator_ce`` and
            ``bns``, and ``student`` once fine-tuning. On a GPU the next step overwrites them.
        """
        training = self.training
        tuning = self.steps_done >= training.warmup_steps
        if tuning and not self.calibrated:
            self.calibrate(training.calibration_batches)
        if self.steps_done % training.steps_per_epoch == 0:
            for total in self._totals.values():
                total.zero_()
        self._set_modes()
        with multiplications(training.precision, self.device), self.world.joined():
            losses = self._compiled(self._tuning_step if tuning else self._warm_up_step)()
        self.steps_done += 1
        self._final = None
        return losses

    def _warm_up_step(self) -> dict[str, Tensor]:
        return self._record(self.algorithm.warm_up())

    def _tuning_step(self) -> dict[str, Tensor]:
        return self._record(self.algorithm.fine_tune())

    def _set_modes(self) -> None:
        """Freeze the statistics of teacher and student, whatever a callback has set."""
        self.teacher.eval()
        self.student.eval()
        self.generator.train()

    def _record(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses, added to the epoch's totals."""
        losses = {name: loss.detach() for name, loss in losses.items()}
        for name, loss in losses.items():
            self._totals[name].add_(loss)
        return losses

    def _epoch_means(self) -> dict[str, float]:
        """Return the mean losses of the epoch that has just ended."""
        tuning = self.steps_done > self.training.warmup_steps
        return {
            name: float(total) / self.training.steps_per_epoch
            for name, total in self._totals.items()
            if tuning or name != "student"
        }

    # ---- calibration ----

    def calibrate(self, batches: int) -> None:
        """Make the student ready to be fine-tuned, from ``batches`` batches of generated images.

        Sets its activation ranges, and does what ``start`` says.

        Raises:
            InputError: ``batches`` is no int >= 1.
        """
        batches = checked("batches", batches, Annotated[int, Field(ge=1)])
        self._set_modes()
        with self._computing():
            images = self.images.batches(batches)
            observe = partial(observe_ranges, self.student, self.fused)
            sequence.begin(self.start, self.student, self.teacher.model, images, observe)
        self.calibrated = True

    def _new_images(self) -> Images:
        """Return new images as for a calibration; random state and generator stay as they are."""
        state = self.rng.get_state()
        images = self.images.batches(
            self.training.calibration_batches, copy.deepcopy(self.generator)
        )
        self.rng.set_state(state)
        return images

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Have networks compute as in a step, without gradients."""
        precision = self.training.precision
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            multiplications(precision, self.device),
            autocast(precision, self.device),
            self.world.joined(),
        ):
            yield

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """Return what a trainer made with the same arguments needs to resume bit for bit.

        Tensors, numbers, a string, and dictionaries of such, whose keys are strings:
        ``student`` and ``generator`` (parameters, statistics, ranges), ``student_optimizer`` and
        ``generator_optimizer``, ``schedules``, ``random``, ``totals`` (the epoch's losses so
        far), ``sound`` (the student that :meth:`train` puts back after a loss that is not
        finite), ``parts`` (what each part keeps), ``steps_done``, ``calibrated`` and ``device``.
        The teacher is not in it. Tensors are the trainer's own, which later steps change, as in
        ``nn.Module.state_dict``.
        """
        return {
            "student": self.student.state_dict(),
            "generator": self.generator.state_dict(),
            "student_optimizer": optimizer_state(self.student_update.optimizer),
            "generator_optimizer": optimizer_state(self.generator_update.optimizer),
            "schedules": {
                "student": self.student_update.rate.steps,
                "generator": self.generator_update.rate.steps,
            },
            "random": self.rng.get_state(),
            "totals": dict(self._totals),
            "sound": dict(self.last_good.state),
            "parts": {part.name: state for part in self.parts if (state := part.state_dict())},
            "steps_done": self.steps_done,
            "calibrated": self.calibrated,
            "device": self.device.type,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state``, of :meth:`state_dict`.

        Tensors are copied into the trainer's own, in place. Training resumes bit for bit on the
        same machine if the trainer was made with the same arguments; a ``memory_format`` of
        ``"auto"`` must be given as what was chosen, because rounding depends on it.

        Raises:
            InputError: ``state`` was saved with other networks, or on another kind of device, whose
                random numbers differ; nothing has been changed.
        """
        networks = {"student": self.student, "generator": self.generator}
        updates = {"student": self.student_update, "generator": self.generator_update}
        parts = {part.name: part for part in self.parts if part.state_dict()}
        check_state(state, self.state_dict(), networks, updates, parts)
        self.student.load_state_dict(state["student"])
        self.generator.load_state_dict(state["generator"])
        for name, update in updates.items():
            load_optimizer_state(update.optimizer, state[f"{name}_optimizer"])
            update.rate.go_to(state["schedules"][name])
        self.rng.set_state(state["random"].cpu())
        for name, total in self._totals.items():
            total.copy_(state["totals"][name])
        self.last_good.load(state["sound"], self.device)
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        self.steps_done = state["steps_done"]
        self._final = None
        self.calibrated = state["calibrated"]
        self._captured.clear()  # a graph may read optimizer state that has just gone

    # ---- execution ----

    @property
    def execution(self) -> str:
        """How steps are run, and why not by a CUDA graph where they are not."""
        if self.device.type != "cuda":
            return f"eager, on {self.device.type}"
        if not self.cuda_graph:
            return "eager, cuda_graph=False"
        failures = [step.failure for step in self._captured.values() if step.failure]
        if failures:
            return f"eager, capturing a CUDA graph failed: {failures[0]}"
        return "one CUDA graph a step"

    def describe(self) -> str:
        """Return how steps are run: memory format, execution, and what is fused."""
        return describe(self)

    def _compiled(self, step: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
        """Return ``step``, or the CUDA graph of it."""
        if not self.cuda_graph:
            return step
        key = step.__name__
        if key not in self._captured:
            self._captured.clear()  # a graph keeps its step's memory
            self._captured[key] = CapturedStep(step, self.rng)
        return self._captured[key]

    def _choose_memory_format(self, teacher: nn.Module, **options: Any) -> MemoryFormat:
        """Return the faster one, by steps of trainers of copies."""
        options |= {**dict(self.training), "warmup_epochs": 0, "calibration_batches": 1}

        def make_step(name: MemoryFormat) -> Callable[[], dict[str, Tensor]]:
            student, generator = copy.deepcopy((self.student, self.generator))
            return GDFQTrainer(
                teacher, student, generator, world=self.world, **{**options, "memory_format": name}
            ).step

        uncounted = WARM_UP_STEPS + 1 if self.cuda_graph else 1  # what is timed is the graph
        chosen, self.memory_format_seconds = fastest_memory_format(make_step, uncounted)
        names = get_args(MemoryFormat)
        return names[self.world.broadcast_from_rank0(names.index(chosen))]


GDFQTrainer.__signature__ = with_fields(GDFQTrainer, Training)  # type: ignore[attr-defined]
