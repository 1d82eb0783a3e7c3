"""The algorithm: generator and student in turns (Xu et al., ECCV 2020, algorithm 1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor, fx, nn

from gdfq.convert import QuantizedModel, require_same
from gdfq.convert.fusion import FusedModel, fuse
from gdfq.distributed import World
from gdfq.errors import InputError, NonFiniteLossError
from gdfq.nn import QAct, StatisticsTeacher
from gdfq.nn.given import plain_network
from gdfq.nn.global_batch_norm import globalize_batch_norms
from gdfq.training import checks
from gdfq.training.capture import WARM_UP_STEPS, CapturedStep
from gdfq.training.learned_ranges import LearnedRanges
from gdfq.training.memory_format import (
    TORCH_FORMATS,
    MemoryFormat,
    fastest_memory_format,
    require_channels_last,
)
from gdfq.training.parts import Parts
from gdfq.training.parts.average import Average
from gdfq.training.parts.clipping import clip_gradients
from gdfq.training.parts.code_changes import CodeChanges
from gdfq.training.parts.hard_samples import harder_images, teacher_cross_entropy
from gdfq.training.parts.low_pass import LowPass, make_images
from gdfq.training.parts.mixed_labels import mixed_labels
from gdfq.training.parts.objective import student_loss
from gdfq.training.parts.replay import Replay
from gdfq.training.parts.statistics import StatisticsLoss
from gdfq.training.precision import Precision, autocast, multiplications
from gdfq.training.schedules import LearningRate, Schedule, learning_rate_factor
from gdfq.training.start import NO_START, Start, sequence
from gdfq.training.start.correction import correct
from gdfq.training.start.images import Images
from gdfq.training.state import (
    StatefulPart,
    check_module_state,
    check_optimizer_state,
    check_parts_state,
    load_optimizer_state,
    optimizer_parameters,
    optimizer_state,
)

NO_PARTS = Parts()

# Finishes a network's update and returns the losses it was for.
Finish = Callable[[], dict[str, Tensor]]


class TrainerCallback:
    """What :meth:`GDFQTrainer.train` calls while it runs; override what is needed."""

    def on_step(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """After every step, with that step's losses."""

    def on_calibrated(self, trainer: GDFQTrainer) -> None:
        """Once, when the ranges are set and fine-tuning is about to start."""

    def on_epoch(self, trainer: GDFQTrainer, losses: dict[str, float]) -> None:
        """After every epoch, with the epoch's mean losses."""

    def between_steps(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """After every step, when all else about it is done: the moment to save the state."""

    def should_stop(self) -> bool:
        """Asked last after every step; True, on any rank, ends the training there on all."""
        return False


class GDFQTrainer:
    """Fine-tunes a quantized student on images that a generator learns from the teacher.

    Args:
        teacher: the trained float network; it is copied, never modified.
        student: its quantized copy, from :func:`gdfq.quantize_model`; trained in place.
        generator: anything like :class:`gdfq.models.Generator`: ``generator(z, labels)`` returns
            images, ``generator.latent_dim`` is the length of ``z``. Trained in place.
        num_classes: of the teacher's logits.
        batch_size: images per step, >= 2, over all ranks of ``world``, whose number divides it.
        epochs: of the whole run, warm-up included.
        steps_per_epoch: steps in each.
        warmup_epochs: first epochs, in which only the generator learns.
        calibration_batches: batches that set the activation ranges before fine-tuning starts.
        student_lr, momentum, weight_decay: of the student's Nesterov SGD.
        generator_lr: of the generator's Adam, whose betas are (0.5, 0.999).
        bns_weight: of the batch-norm-statistics loss in the generator's.
        temperature, alpha: see :func:`gdfq.losses.kd_ce_loss`.
        parts: what is added to the paper's loop; nothing where not given.
        schedule: ``"step"``, ``"cosine"`` or ``"constant"``, for both learning rates; the
            student's cosine spans its fine-tuning.
        milestones: epochs at which ``"step"`` divides both learning rates by 10.
        precision: of convolutions and matrix products: ``"fp32"``, ``"tf32"`` (NVIDIA GPUs) or
            ``"bf16"``. Ranges, statistics and quantizers compute in float32 always.
        memory_format: ``"channels_last"``, ``"contiguous"``, or ``"auto"``: a few steps of each
            are timed on copies, once, here, one format after the other; on a GPU the captured
            step. It is ``"contiguous"`` for networks that compute something else or nothing in
            ``"channels_last"``. Student and generator are converted in place.
        fuse: run the student through :func:`gdfq.convert.fusion.fuse`; the same training with fewer
            passes over memory.
        cuda_graph: on a GPU, capture a whole step in one CUDA graph and replay it.
        start: what is done to the student when its ranges are calibrated, beyond that.
        seed: of the noise and the labels. The generator's first weights are the caller's: seed
            them with ``torch.manual_seed`` before making it.
        world: of :func:`gdfq.distributed.start`, to train on many processes as on one: every
            rank makes a trainer, and all take what rank 0 was given. ``nn.BatchNorm2d`` layers of
            the generator take their statistics over all ranks then. None is this process alone.

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
        epochs: int = 400,
        steps_per_epoch: int = 200,
        warmup_epochs: int = 4,
        calibration_batches: int = 16,
        student_lr: float = 1e-4,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        generator_lr: float = 1e-3,
        bns_weight: float = 0.1,
        temperature: float = 20.0,
        alpha: float = 1.0,
        schedule: Schedule = "step",
        milestones: Sequence[int] = (100, 200, 300),
        precision: Precision = "fp32",
        memory_format: MemoryFormat | Literal["auto"] = "auto",
        fuse: bool = True,
        cuda_graph: bool = True,
        start: Start = NO_START,
        seed: int = 0,
        parts: Parts = NO_PARTS,
        world: World | None = None,
    ) -> None:
        settings = {
            key: value
            for key, value in locals().items()
            if key not in ("self", "teacher", "student", "generator", "start", "world")
        }
        teacher = plain_network(teacher, "teacher")
        networks = {"student": student, "generator": generator}
        for name, network in networks.items():
            if plain_network(network, name) is not network:
                raise InputError(
                    f"{name}: is trained in place; give the network in the {type(network).__name__}"
                )
        checks.check_networks(teacher=teacher, **networks)
        self.device = next(teacher.parameters()).device
        self.world = world or World()
        checks.check_settings(self.device, self.world.size, **settings)
        checks.check_start(start, student)

        self.teacher = StatisticsTeacher(teacher)
        self.student = student.eval()
        self.generator = generator.train()
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.warmup_steps = warmup_epochs * steps_per_epoch
        self.calibration_batches = calibration_batches
        self.bns_weight = bns_weight
        self.temperature = temperature
        self.alpha = alpha
        self.parts = parts
        self.precision = precision
        self.cuda_graph = cuda_graph and self.device.type == "cuda"
        self.start = start
        self.steps_done = 0
        self.calibrated = False

        self.random = torch.Generator(self.device).manual_seed(seed)
        images = checks.check_shapes(
            self.teacher,
            self.student,
            self.generator,
            num_classes,
            start,
            parts.mix_probability > 0,
        )
        if isinstance(student, QuantizedModel):
            require_same(teacher, student, images)
        if memory_format == "channels_last":
            require_channels_last(
                self.teacher.model, student, generator, images, *checks.example_batch(generator, 2)
            )
        if self.world.parallel:
            globalize_batch_norms(self.generator, "generator")
            state = self.random.get_state()
            self.world.copy_from_rank0(self.teacher, self.student, self.generator, state)
            self.random.set_state(state)
        sequence.prepare(start, self.student)
        self.fused = _fuse(student, images) if fuse else None
        self.memory_format_seconds: dict[str, float] = {}
        if memory_format == "auto":
            memory_format = self._choose_memory_format(teacher, settings)
        self.memory_format = memory_format
        for module in (self.teacher, self.student, self.generator):
            module.to(memory_format=TORCH_FORMATS[memory_format])

        steps = epochs * steps_per_epoch
        tuned = steps - self.warmup_steps
        # The student's schedule is counted from its first step; milestones are the run's epochs.
        student_milestones = [epoch - warmup_epochs for epoch in milestones]
        self.generator_lr = LearningRate(
            generator_lr,
            learning_rate_factor(schedule, steps, steps_per_epoch, milestones),
            self.device,
        )
        self.student_lr = LearningRate(
            student_lr,
            learning_rate_factor(schedule, tuned, steps_per_epoch, student_milestones),
            self.device,
        )
        self.range_lr = LearningRate(parts.range_lr, self.student_lr.factor, self.device)
        self.ranges = LearnedRanges(student)
        self.generator_optimizer = torch.optim.Adam(
            generator.parameters(),
            lr=self.generator_lr.value,
            betas=(0.5, 0.999),
            fused=True,
            capturable=self.device.type == "cuda",
        )
        self.student_optimizer = torch.optim.SGD(
            self.ranges.groups(student, self.range_lr.value),
            lr=self.student_lr.value,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=momentum > 0,
            fused=True,
        )
        self.statistics_loss = StatisticsLoss(parts, self.teacher, student, images)
        size = (images.shape[-2], images.shape[-1])
        self.low_pass = (
            None if parts.low_pass is None else LowPass(size, parts.low_pass, self.device)
        )
        self.replay = (
            Replay(parts.replay_batches, parts.replay_share, batch_size, self.random, self.device)
            if parts.replay_batches
            else None
        )
        self._corrected: nn.Module | None = None
        self.code_changes = (
            None
            if parts.code_change_share is None
            else CodeChanges(student, parts.code_change_share)
        )
        self.average = Average(student, parts.ema_decay) if parts.ema_decay else None
        names = ("generator", "generator_ce", "bns", "student")
        self._totals = {
            name: torch.zeros((), device=self.device, dtype=torch.float32) for name in names
        }
        self._sound: dict[str, Tensor] = {}  # the student that a loss that is not finite undoes to
        self._captured: dict[tuple[Any, ...], CapturedStep] = {}

    # ---- the algorithm ----

    @torch.inference_mode(False)
    @torch.enable_grad()
    def train(self, callback: TrainerCallback | None = None) -> nn.Module:
        """Run the whole schedule from where it stands and return its ``outcome``.

        Raises:
            NonFiniteLossError: a loss or a weight of the student became NaN or infinite; it is put
                back to what it was at the end of the last epoch that was sound.
        """
        callback = callback or TrainerCallback()
        if not self._sound:
            self._keep_sound()
        while self.steps_done < self.epochs * self.steps_per_epoch:
            if self.steps_done == self.warmup_steps:
                self._start_tuning(callback)
            losses = self.step()
            if self.steps_done == 1:
                self._require_sound_answers(losses)
            callback.on_step(self, losses)
            if self.steps_done % self.steps_per_epoch == 0:
                means = self._epoch_means()
                self._require_finite(means)
                self._keep_sound()
                callback.on_epoch(self, means)
            callback.between_steps(self, losses)
            if self.world.any(callback.should_stop()):
                self._require_finite({name: float(loss) for name, loss in losses.items()})
                return self.outcome
        if self.steps_done == self.warmup_steps:
            self._start_tuning(callback)
        return self.outcome

    @property
    def outcome(self) -> nn.Module:
        """The student to measure and to save.

        A copy where its parameters are averaged or, at the end, its batch norms corrected.
        """
        self._set_modes()
        student = self.student if self.average is None else self.average.applied()
        if not self.start.bn_reestimate_end or not self.calibrated or not self._ended:
            return student
        if self._corrected is None:
            self._corrected = self._correct_copy(student)
        return self._corrected

    @property
    def _ended(self) -> bool:
        return self.steps_done >= self.epochs * self.steps_per_epoch

    @torch.inference_mode(False)
    @torch.no_grad()
    def _correct_copy(self, student: nn.Module) -> nn.Module:
        """A copy of ``student``, corrected on new images; the trainer's state stays as it is."""
        corrected, generator = copy.deepcopy((student, self.generator))
        state = self.random.get_state()
        samples = [
            tuple(map(self.world.shard, self.sample())) for _ in range(self.calibration_batches)
        ]
        self.random.set_state(state)
        images = Images(partial(self.make_images, generator=generator), samples, self.world)
        with (
            multiplications(self.precision, self.device),
            autocast(self.precision, self.device),
            self.world.joined(),
        ):
            correct(corrected, self.teacher.model, images, spread=True)
        return corrected

    def _start_tuning(self, callback: TrainerCallback) -> None:
        if not self.calibrated:
            self.calibrate(self.calibration_batches)
        self._keep_sound()
        callback.on_calibrated(self)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def step(self) -> dict[str, Tensor]:
        """One iteration: the generator learns, then, after the warm-up, the student.

        Returns:
            The step's losses, 0-d tensors: ``generator`` with its parts ``generator_ce`` and
            ``bns``, and ``student`` once fine-tuning. On a GPU the next step overwrites them.
        """
        tuning = self.steps_done >= self.warmup_steps
        if tuning and not self.calibrated:
            self.calibrate(self.calibration_batches)
        if self.steps_done % self.steps_per_epoch == 0:
            for total in self._totals.values():
                total.zero_()
        self._set_modes()
        with multiplications(self.precision, self.device), self.world.joined():
            losses = self._compiled(self._tuning_step if tuning else self._warm_up_step)()
        self.steps_done += 1
        self._corrected = None
        return losses

    def _set_modes(self) -> None:
        """Statistics of teacher and student stand still, whatever a callback has set."""
        self.teacher.eval()
        self.student.eval()
        self.generator.train()

    def _warm_up_step(self) -> dict[str, Tensor]:
        finish_generator, *_ = self._generator_step(tuning=False)
        return self._record(finish_generator())

    def _tuning_step(self) -> dict[str, Tensor]:
        finish_generator, *batch = self._generator_step(tuning=True)
        finish_student = self._student_step(*batch)
        return self._record({**finish_generator(), **finish_student()})

    def _generator_step(self, tuning: bool) -> tuple[Finish, Tensor, Tensor, Tensor]:
        """The generator's update, and the images, their labels and the teacher's logits."""
        z, labels = map(self.world.shard, self.sample())
        with autocast(self.precision, self.device):
            images = self.make_images(z, labels)
            teacher_logits, statistics = self.teacher(images)
            cross_entropy = teacher_cross_entropy(
                teacher_logits, labels, self.parts.hard_sample_gamma
            )
            mismatch = self.statistics_loss(statistics, images, tuning)
            loss = cross_entropy + self.bns_weight * mismatch
        losses = {"generator": loss, "generator_ce": cross_entropy, "bns": mismatch}
        finish = self._start_update(self.generator_optimizer, self.generator_lr, losses)
        return finish, images.detach(), labels, teacher_logits.detach()

    def _student_step(self, images: Tensor, labels: Tensor, teacher_logits: Tensor) -> Finish:
        """The student's update."""
        student = self.fused or self.student
        if self.replay is not None:
            images, labels, teacher_logits = self.replay(images, labels, teacher_logits)
        with autocast(self.precision, self.device):
            if self.parts.hard_sample_step:
                images = harder_images(student, images, labels, self.parts.hard_sample_step)
            logits = student(images)
            loss = student_loss(
                self.parts, logits, teacher_logits, labels, self.temperature, self.alpha
            )
        return self._start_update(
            self.student_optimizer,
            self.student_lr,
            {"student": loss},
            before=self._before_student_update,
            after=self._after_student_update(),
        )

    def _before_student_update(self, rate: Tensor) -> None:
        """What is done to the student's gradients."""
        if self.code_changes is not None:
            self.code_changes.scale_gradients(rate)
        if self.parts.max_grad_norm is not None:
            parameters = optimizer_parameters(self.student_optimizer)
            clip_gradients(parameters, self.parts.max_grad_norm)

    def _after_student_update(self) -> Callable[[], None]:
        """What follows the update that is about to be made."""
        widths = self.ranges.widths()

        def after() -> None:
            if self.ranges.parameters:
                self.ranges.limit(widths)
                self.range_lr.advance()
            if self.average is not None:
                self.average.update()

        return after

    def _start_update(
        self,
        optimizer: torch.optim.Optimizer,
        rate: LearningRate,
        losses: dict[str, Tensor],
        before: Callable[[Tensor], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> Finish:
        """Gradients of the first of ``losses``, and what finishes the update they are for.

        ``before`` is called with the learning rate when the gradients are there, ``after`` when the
        parameters have changed. Alone, the update is finished here.
        With other ranks, gradients travel until then: the generator's while the student computes
        its own.
        """
        name, loss = next(iter(losses.items()))
        optimizer.zero_grad()
        parameters = optimizer_parameters(optimizer)
        # The student's statistics in the generator's loss are no reason for the student to learn.
        loss.backward(inputs=parameters if self.parts.bns_of == "both" else None)
        finish_averaging = self.world.start_averaging(parameters, losses, f"{name}'s gradients")

        def finish() -> dict[str, Tensor]:
            means = finish_averaging()
            if before is not None:
                before(rate.value)
            optimizer.step()
            if after is not None:
                after()
            rate.advance()
            return means

        if self.world.parallel:
            return finish
        done = finish()
        return lambda: done

    @torch.inference_mode(False)
    @torch.no_grad()
    def calibrate(self, batches: int) -> None:
        """Make the student ready to be fine-tuned, from ``batches`` batches of generated images.

        Sets its activation ranges, and does what ``start`` says.
        """
        self._set_modes()
        samples = [tuple(map(self.world.shard, self.sample())) for _ in range(batches)]
        images = Images(self.make_images, samples, self.world)
        with (
            multiplications(self.precision, self.device),
            autocast(self.precision, self.device),
            self.world.joined(),
        ):
            sequence.begin(self.start, self.student, self.teacher.model, images, self._observe)
        self.calibrated = True

    def _observe(self, images: Images) -> None:
        """Set the student's activation ranges by the minima and maxima over ``images``."""
        quantizers = [
            module
            for module in self.student.modules()
            if isinstance(module, QAct) and not module.dynamic_range
        ]
        if not quantizers:
            return
        for quantizer in quantizers:
            quantizer.reset_range()
            quantizer.train()
        try:
            with self.fused.weights_kept() if self.fused else nullcontext():
                images.through(self.fused or self.student)
        finally:
            for quantizer in quantizers:
                quantizer.eval()

    def sample(self) -> tuple[Tensor, Tensor]:
        """Standard normal noise ``(B, latent_dim)`` and uniform labels of all ranks.

        Labels are classes ``(B,)``, or with mixed ones shares ``(B, num_classes)``. Every rank
        draws the whole batch, so that one random state is all there is.
        """
        shape = (self.batch_size, int(self.generator.latent_dim))  # type: ignore[arg-type]
        dtype = checks.floating_parameter(self.generator).dtype
        z = torch.randn(shape, generator=self.random, device=self.device, dtype=dtype)
        labels = torch.randint(
            self.num_classes, (self.batch_size,), generator=self.random, device=self.device
        )
        if self.parts.mix_probability:
            labels = mixed_labels(
                labels,
                self.num_classes,
                self.parts.mix_probability,
                self.parts.mix_classes,
                self.random,
            )
        return z, labels

    def make_images(self, z: Tensor, labels: Tensor, generator: nn.Module | None = None) -> Tensor:
        """The images that teacher and student see of what :meth:`sample` returns.

        ``generator`` stands in for the trainer's.
        """
        return make_images(generator or self.generator, self.low_pass, z, labels)

    # ---- what it takes to go on later ----

    @property
    def _stateful(self) -> dict[str, StatefulPart]:
        """The parts that keep something from step to step."""
        parts: dict[str, StatefulPart | None] = {"average": self.average, "replay": self.replay}
        return {name: part for name, part in parts.items() if part is not None}

    def _keep_sound(self) -> None:
        """Remember the student as one that a loss that is not finite undoes to."""
        self._sound = _snapshot(self.student)
        if self.average is not None:
            self.average.keep()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a trainer made with the same arguments needs to go on bit for bit.

        Tensors, numbers, a string, and dictionaries of such, whose keys are strings:
        ``student`` and ``generator`` (parameters, statistics, ranges), ``student_optimizer`` and
        ``generator_optimizer``, ``schedules``, ``random``, ``totals`` (the epoch's losses so
        far), ``sound`` (the student that :meth:`train` puts back after a loss that is not
        finite), ``parts`` (what each part keeps), ``steps_done``, ``calibrated`` and ``device``.
        The teacher is not in it. Tensors are the trainer's own, which go on changing, as in
        ``nn.Module.state_dict``.
        """
        return {
            "student": self.student.state_dict(),
            "generator": self.generator.state_dict(),
            "student_optimizer": optimizer_state(self.student_optimizer),
            "generator_optimizer": optimizer_state(self.generator_optimizer),
            "schedules": {"student": self.student_lr.steps, "generator": self.generator_lr.steps},
            "random": self.random.get_state(),
            "totals": dict(self._totals),
            "sound": dict(self._sound),
            "parts": {name: part.state_dict() for name, part in self._stateful.items()},
            "steps_done": self.steps_done,
            "calibrated": self.calibrated,
            "device": self.device.type,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where the trainer that ``state`` is of was.

        Tensors are copied into the trainer's own, in place. Training goes on bit for bit on the
        same machine if the trainer was made with the same arguments; a ``memory_format`` of
        ``"auto"`` must be given as what was chosen, because rounding depends on it.

        Raises:
            InputError: ``state`` is of other networks, or of a trainer on another kind of device,
                whose random numbers are others; nothing has been changed.
        """
        missing = self.state_dict().keys() - state.keys() - {"parts"}
        if missing:
            raise InputError(f"state: has no {', '.join(sorted(missing))}")
        if state["device"] != self.device.type:
            raise InputError(
                f"state: is of a trainer on {state['device']}, this one is on {self.device.type}: "
                "their random numbers differ"
            )
        check_module_state("student", self.student, state["student"])
        check_module_state("generator", self.generator, state["generator"])
        check_optimizer_state(
            "student_optimizer", self.student_optimizer, state["student_optimizer"]
        )
        check_optimizer_state(
            "generator_optimizer", self.generator_optimizer, state["generator_optimizer"]
        )
        check_parts_state(self._stateful, state.get("parts", {}))
        self.student.load_state_dict(state["student"])
        self.generator.load_state_dict(state["generator"])
        load_optimizer_state(self.student_optimizer, state["student_optimizer"])
        load_optimizer_state(self.generator_optimizer, state["generator_optimizer"])
        self.student_lr.go_to(state["schedules"]["student"])
        self.range_lr.go_to(state["schedules"]["student"])
        self.generator_lr.go_to(state["schedules"]["generator"])
        self.random.set_state(state["random"].cpu())
        for name, total in self._totals.items():
            total.copy_(state["totals"][name])
        self._sound = {
            name: value.to(self.device, copy=True) for name, value in state["sound"].items()
        }
        for name, part in self._stateful.items():
            part.load_state_dict(state["parts"][name])
        self.steps_done = state["steps_done"]
        self._corrected = None
        self.calibrated = state["calibrated"]
        self._captured.clear()  # a graph may read optimizer state that has just gone

    # ---- how a step is run ----

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
        """How steps are run: memory format, execution, and what is fused."""
        seconds = self.memory_format_seconds
        timed = ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items())
        lines = (
            f"memory format: {self.memory_format}" + (f" (a step in {timed})" if timed else ""),
            f"execution: {self.execution}, {self.precision}",
            f"start: {self.start.describe()}",
            f"parts: {self.parts.describe()}",
            f"fusion: {'none' if self.fused is None else self.fused.summary()}",
            *self.teacher.describe_unrecorded(),
            *self._frozen(),
        )
        return "\n".join(lines)

    def _frozen(self) -> list[str]:
        """A line about the student's parameters that are not trained, if there are any."""
        parameters = dict(self.student.named_parameters())
        frozen = [name for name, value in parameters.items() if not value.requires_grad]
        if not frozen:
            return []
        listed = ", ".join(frozen[:5]) + (", ..." if len(frozen) > 5 else "")
        return [f"frozen: {len(frozen)} of {len(parameters)} parameters: {listed}"]

    def _compiled(self, step: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
        """``step``, or the CUDA graph of it for what it depends on now."""
        if not self.cuda_graph:
            return step
        constants = (self.batch_size, self.bns_weight, self.temperature, self.alpha, self.precision)
        key = (step.__name__, *constants)
        if key not in self._captured:
            self._captured.clear()  # a graph keeps its step's memory
            self._captured[key] = CapturedStep(step, self.random)
        return self._captured[key]

    def _record(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses, added to the epoch's totals."""
        losses = {name: loss.detach() for name, loss in losses.items()}
        for name, loss in losses.items():
            self._totals[name].add_(loss)
        return losses

    def _epoch_means(self) -> dict[str, float]:
        """The mean losses of the epoch that has just ended."""
        tuning = self.steps_done > self.warmup_steps
        return {
            name: float(total) / self.steps_per_epoch
            for name, total in self._totals.items()
            if tuning or name != "student"
        }

    def _choose_memory_format(self, teacher: nn.Module, settings: dict[str, Any]) -> MemoryFormat:
        trial = {**settings, "warmup_epochs": 0, "calibration_batches": 1}

        def make_step(name: MemoryFormat) -> Callable[[], dict[str, Tensor]]:
            options = {**trial, "memory_format": name}
            student, generator = copy.deepcopy((self.student, self.generator))
            return GDFQTrainer(teacher, student, generator, **options, world=self.world).step

        uncounted = WARM_UP_STEPS + 1 if self.cuda_graph else 1  # what is timed is the graph
        chosen, self.memory_format_seconds = fastest_memory_format(make_step, uncounted)
        names = get_args(MemoryFormat)
        return names[self.world.broadcast_from_rank0(names.index(chosen))]

    def _require_sound_answers(self, losses: dict[str, Tensor]) -> None:
        """Raise an InputError where the teacher's answers are not finite before any update."""
        for name in ("generator_ce", "bns"):
            value = float(losses[name])
            if not math.isfinite(value):
                raise InputError(
                    "teacher: answers NaN or infinite values to the first generated images "
                    f"({name} is {value}); check its weights and running statistics"
                )

    @torch.no_grad()
    def _require_finite(self, means: dict[str, float]) -> None:
        """Put the student back and raise where a loss or, by the last update, a weight is not."""
        for name, mean in means.items():
            if not math.isfinite(mean):
                self._put_back(f"{name} loss became {mean}", name)
        # A quantizer whose range is kept clips a weight of any size: the losses need not tell.
        weights = [parameter.isfinite().all() for parameter in self.student.parameters()]
        if not torch.stack(weights).all():
            self._put_back("student's weights became infinite or NaN", "student")

    def _put_back(self, what: str, name: str) -> NoReturn:
        self.student.load_state_dict(self._sound)
        if self.average is not None:
            self.average.put_back()
        key = "student_lr" if name == "student" else "generator_lr"
        raise NonFiniteLossError(
            f"the {what} by step {self.steps_done}; the student is kept as it was one epoch "
            f"before. Lower {key}, or train longer with a smaller one."
        )


def _fuse(student: nn.Module, images: Tensor) -> FusedModel | None:
    return fuse(student, images) if isinstance(student, fx.GraphModule) else None


def _snapshot(module: nn.Module) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
