"""The algorithm: generator and student in turns (Xu et al., ECCV 2020, algorithm 1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from gdfq.errors import InputError, NonFiniteLossError
from gdfq.losses import bns_loss, kd_ce_loss
from gdfq.nn import QAct, StatisticsTeacher
from gdfq.training.schedules import Schedule, learning_rate_factor


class TrainerCallback:
    """What :meth:`GDFQTrainer.train` calls while it runs; override what is needed."""

    def on_step(self, trainer: GDFQTrainer, losses: dict[str, Tensor]) -> None:
        """After every step, with that step's losses."""

    def on_calibrated(self, trainer: GDFQTrainer) -> None:
        """Once, when the ranges are set and fine-tuning is about to start."""

    def on_epoch(self, trainer: GDFQTrainer, losses: dict[str, float]) -> None:
        """After every epoch, with the epoch's mean losses."""

    def should_stop(self) -> bool:
        """Asked after every step; True ends the training there."""
        return False


class GDFQTrainer:
    """Fine-tunes a quantized student on images that a generator learns from the teacher.

    Args:
        teacher: the trained float network; it is copied, never modified.
        student: its quantized copy, from :func:`gdfq.quantize_model`; trained in place.
        generator: anything like :class:`gdfq.models.Generator`: ``generator(z, labels)`` returns
            images, ``generator.latent_dim`` is the length of ``z``. Trained in place.
        num_classes: of the teacher's logits.
        batch_size: images per step, >= 2.
        epochs: of the whole run, warm-up included.
        steps_per_epoch: steps in each.
        warmup_epochs: first epochs, in which only the generator learns.
        calibration_batches: batches that set the activation ranges before fine-tuning starts.
        student_lr, momentum, weight_decay: of the student's Nesterov SGD.
        generator_lr: of the generator's Adam, whose betas are (0.5, 0.999).
        bns_weight: of the batch-norm-statistics loss in the generator's.
        temperature, alpha: see :func:`gdfq.losses.kd_ce_loss`.
        schedule: ``"step"``, ``"cosine"`` or ``"constant"``, for both learning rates; the
            student's cosine spans its fine-tuning.
        milestones: epochs at which ``"step"`` divides both learning rates by 10.
        seed: of the noise and the labels. The generator's first weights are the caller's: seed
            them with ``torch.manual_seed`` before making it.

    Attributes:
        student: the student.
        steps_done: steps so far.

    Raises:
        InputError: an argument is out of range, the teacher has no batch norm or has parameters
            that are not finite, or teacher, student and ``num_classes`` do not fit.

    Source: Xu et al., ECCV 2020, algorithm 1. The defaults are the paper's for CIFAR-10. The
    ranges are calibrated just before fine-tuning, on what the generator makes by then.
    """

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
        seed: int = 0,
    ) -> None:
        _check_int("num_classes", num_classes, 2)
        _check_int("batch_size", batch_size, 2)
        _check_int("epochs", epochs, 0)
        _check_int("steps_per_epoch", steps_per_epoch, 1)
        _check_int("warmup_epochs", warmup_epochs, 0)
        _check_int("calibration_batches", calibration_batches, 1)
        if warmup_epochs > epochs:
            raise InputError(f"warmup_epochs: must be <= epochs = {epochs}, got {warmup_epochs}")
        for name, value in (
            ("student_lr", student_lr),
            ("generator_lr", generator_lr),
            ("temperature", temperature),
        ):
            if not 0 < value < math.inf:
                raise InputError(f"{name}: must be > 0 and finite, got {value!r}")
        for name, value in (
            ("weight_decay", weight_decay),
            ("bns_weight", bns_weight),
            ("alpha", alpha),
        ):
            if not 0 <= value < math.inf:
                raise InputError(f"{name}: must be >= 0 and finite, got {value!r}")
        if not 0 <= momentum < 1:
            raise InputError(f"momentum: must be in [0, 1), got {momentum!r}")
        if schedule not in get_args(Schedule):
            raise InputError(f"schedule: must be one of {get_args(Schedule)}, got {schedule!r}")
        _check_finite("teacher", teacher)
        _check_finite("student", student)

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
        self.steps_done = 0
        self.calibrated = False

        self.device = next(teacher.parameters()).device
        self.random = torch.Generator(self.device).manual_seed(seed)
        self._check_shapes()

        self.generator_optimizer = torch.optim.Adam(
            generator.parameters(), lr=generator_lr, betas=(0.5, 0.999)
        )
        self.student_optimizer = torch.optim.SGD(
            student.parameters(),
            lr=student_lr,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=momentum > 0,
        )
        steps = epochs * steps_per_epoch
        tuned = steps - self.warmup_steps
        # The student's schedule is counted from its first step; milestones are the run's epochs.
        student_milestones = [epoch - warmup_epochs for epoch in milestones]
        self.generator_schedule = LambdaLR(
            self.generator_optimizer,
            learning_rate_factor(schedule, steps, steps_per_epoch, milestones),
        )
        self.student_schedule = LambdaLR(
            self.student_optimizer,
            learning_rate_factor(schedule, tuned, steps_per_epoch, student_milestones),
        )

    # ---- the algorithm ----

    def train(self, callback: TrainerCallback | None = None) -> nn.Module:
        """Run the whole schedule from where it stands and return the student.

        Raises:
            NonFiniteLossError: a loss became NaN or infinite; the student is put back to what it
                was at the end of the last epoch that was sound.
        """
        callback = callback or TrainerCallback()
        sound = _snapshot(self.student)
        for _ in range(self.steps_done // self.steps_per_epoch, self.epochs):
            totals: dict[str, Tensor] = {}
            for _ in range(self.steps_per_epoch - self.steps_done % self.steps_per_epoch):
                if self.steps_done == self.warmup_steps:
                    if not self.calibrated:
                        self.calibrate(self.calibration_batches)
                    sound = _snapshot(self.student)
                    callback.on_calibrated(self)
                losses = self.step()
                for name, loss in losses.items():
                    totals[name] = totals.get(name, torch.zeros_like(loss)) + loss
                callback.on_step(self, losses)
                if callback.should_stop():
                    self._require_finite({k: float(v) for k, v in losses.items()}, sound)
                    return self.student
            means = {name: float(total) / self.steps_per_epoch for name, total in totals.items()}
            self._require_finite(means, sound)
            sound = _snapshot(self.student)
            callback.on_epoch(self, means)
        if not self.calibrated:
            self.calibrate(self.calibration_batches)
            callback.on_calibrated(self)
        return self.student

    def step(self) -> dict[str, Tensor]:
        """One iteration: the generator learns, then, after the warm-up, the student.

        Returns:
            The step's losses, 0-d tensors: ``generator`` with its parts ``generator_ce`` and
            ``bns``, and ``student`` once fine-tuning.
        """
        if self.steps_done >= self.warmup_steps and not self.calibrated:
            self.calibrate(self.calibration_batches)

        z, labels = self.sample()
        images = self.generator(z, labels)
        teacher_logits, statistics = self.teacher(images)
        cross_entropy = F.cross_entropy(teacher_logits, labels)
        mismatch = bns_loss(*statistics)
        generator_loss = cross_entropy + self.bns_weight * mismatch
        _update(self.generator_optimizer, self.generator_schedule, generator_loss)
        losses = {"generator": generator_loss, "generator_ce": cross_entropy, "bns": mismatch}

        if self.steps_done >= self.warmup_steps:
            student_logits = self.student(images.detach())
            student_loss = kd_ce_loss(
                student_logits, teacher_logits.detach(), labels, self.temperature, self.alpha
            )
            _update(self.student_optimizer, self.student_schedule, student_loss)
            losses["student"] = student_loss

        self.steps_done += 1
        return {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def calibrate(self, batches: int) -> None:
        """Set the student's activation ranges from ``batches`` batches of generated images."""
        quantizers = [module for module in self.student.modules() if isinstance(module, QAct)]
        for quantizer in quantizers:
            quantizer.reset_range()
            quantizer.train()
        try:
            for _ in range(batches):
                self.student(self.generator(*self.sample()))
        finally:
            for quantizer in quantizers:
                quantizer.eval()
        self.calibrated = True

    def sample(self) -> tuple[Tensor, Tensor]:
        """Standard normal noise ``(B, latent_dim)`` and uniform labels ``(B,)``."""
        shape = (self.batch_size, int(self.generator.latent_dim))  # type: ignore[arg-type]
        z = torch.randn(shape, generator=self.random, device=self.device)
        labels = torch.randint(
            self.num_classes, (self.batch_size,), generator=self.random, device=self.device
        )
        return z, labels

    # ---- checks ----

    @torch.no_grad()
    def _check_shapes(self) -> None:
        latent_dim = getattr(self.generator, "latent_dim", None)
        if not isinstance(latent_dim, int):
            raise InputError("generator: must have an int attribute latent_dim, the length of z")
        classes = getattr(self.generator, "num_classes", self.num_classes)
        if classes != self.num_classes:
            raise InputError(
                f"num_classes: {self.num_classes} given, but the generator was made for {classes}"
            )
        probe = copy.deepcopy(self.generator)  # a forward moves its running statistics
        z = torch.zeros(2, latent_dim, device=self.device)
        labels = torch.zeros(2, dtype=torch.int64, device=self.device)
        images = probe(z, labels)
        try:
            logits, _ = self.teacher(images)
        except RuntimeError as error:
            raise InputError(
                f"teacher: does not take the generator's images of shape {tuple(images.shape)}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        if logits.dim() != 2 or logits.shape[1] != self.num_classes:
            raise InputError(
                f"num_classes: {self.num_classes} given, but the teacher's logits have shape "
                f"(N, {', '.join(map(str, logits.shape[1:]))})"
            )
        trial = copy.deepcopy(self.student)  # a forward in training mode moves its ranges
        for quantizer in trial.modules():
            if isinstance(quantizer, QAct):
                quantizer.train()
        answer = trial(images)
        if answer.shape != logits.shape:
            raise InputError(
                f"student: its logits have shape {tuple(answer.shape)}, the teacher's "
                f"{tuple(logits.shape)}; make it with quantize_model(teacher)"
            )

    def _require_finite(self, means: dict[str, float], sound: dict[str, Any]) -> None:
        for name, mean in means.items():
            if not torch.isfinite(torch.tensor(mean)):
                self.student.load_state_dict(sound)
                key = "student_lr" if name == "student" else "generator_lr"
                raise NonFiniteLossError(
                    f"the {name} loss became {mean} by step {self.steps_done}; the student is "
                    f"kept as it was one epoch before. Lower {key}, or train longer with a "
                    "smaller one."
                )


def _update(optimizer: torch.optim.Optimizer, schedule: LambdaLR, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


def _snapshot(module: nn.Module) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _check_int(name: str, value: int, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InputError(f"{name}: must be an int >= {minimum}, got {value!r}")


def _check_finite(name: str, module: nn.Module) -> None:
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name}: {key!r} holds NaN or infinite values")
