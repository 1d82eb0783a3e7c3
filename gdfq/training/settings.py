"""The settings of the schedule and the losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from gdfq.errors import InputError
from gdfq.settings import NotNegative, Positive, Settings, shown
from gdfq.training.precision import Precision
from gdfq.training.schedules import Schedule

if TYPE_CHECKING:
    from typing_extensions import Self

Classes = Annotated[int, Field(ge=2)]


class Training(Settings):
    """The schedule and the losses; the keyword arguments of gdfq.GDFQTrainer.

    The student is trained by SGD with Nesterov momentum, the generator by Adam with betas
    (0.5, 0.999). The loss of the student is :func:`gdfq.losses.kd_ce_loss`. The student's cosine
    spans its fine-tuning. ``precision`` is ``"fp32"``, ``"tf32"`` (NVIDIA GPUs) or ``"bf16"``;
    ranges, statistics and quantizers compute in float32 always. For ``memory_format="auto"``, a few
    steps of each are timed on copies when the trainer is made, on a GPU the captured step; it is
    ``"contiguous"`` for networks that compute something else or nothing in ``"channels_last"``.
    ``seed`` is that of the noise and the labels: the generator's first weights are the caller's.
    """

    batch_size: int = Field(200, ge=2, description="images per step")
    epochs: int = Field(400, ge=0, description="epochs, warm-up included")
    steps_per_epoch: int = Field(200, ge=1, description="steps per epoch")
    warmup_epochs: int = Field(4, ge=0, description="first epochs, of the generator alone")
    calibration_batches: int = Field(
        16, ge=1, description="batches that set the activation ranges before fine-tuning"
    )
    student_lr: Positive = Field(1e-4, description="learning rate of the student")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the student's optimizer")
    weight_decay: NotNegative = Field(1e-4, description="weight decay of the student")
    generator_lr: Positive = Field(1e-3, description="learning rate of the generator")
    bns_weight: NotNegative = Field(0.1, description="weight of the batch-norm statistics loss")
    temperature: Positive = Field(20.0, description="temperature of the distillation loss")
    alpha: NotNegative = Field(1.0, description="weight of the distillation loss")
    schedule: Schedule = Field("step", description="schedule of both learning rates")
    milestones: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (100, 200, 300), description="epochs at which schedule 'step' divides by 10"
    )
    precision: Precision = Field(
        "fp32", description="of convolutions and matrix products; all else is float32"
    )
    memory_format: Literal["auto", "channels_last", "contiguous"] = Field(
        "auto", description="of tensors; 'auto' times both at the start"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="decides everything that is random")

    @model_validator(mode="after")
    def _check_warm_up(self) -> Self:
        if self.warmup_epochs > self.epochs:
            raise InputError(
                f"warmup_epochs: must be <= epochs = {shown(self.epochs)}, "
                f"got {shown(self.warmup_epochs)}"
            )
        return self

    @model_validator(mode="after")
    def _steps_can_be_counted(self) -> Self:
        for name, last in (
            ("epochs", self.epochs),
            ("milestones", max(self.milestones, default=0)),
        ):
            if last * self.steps_per_epoch >= 2**63:
                raise InputError(
                    f"{name}: times steps_per_epoch = {shown(self.steps_per_epoch)} must be "
                    f"< 2**63, got {shown(last)}"
                )
        return self

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        """First steps, in which only the generator learns."""
        return self.warmup_epochs * self.steps_per_epoch
