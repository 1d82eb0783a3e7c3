"""The interface of a part: hooks that follow a training step in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor, nn

from gdfq.distributed import World
from gdfq.nn import StatisticsTeacher
from gdfq.nn.statistics import Statistics
from gdfq.settings import Settings
from gdfq.training.schedules import LearningRate
from gdfq.training.settings import Training

# Teacher's logits (B, K) and labels -> the generator's cross-entropy, 0-d.
CrossEntropy = Callable[[Tensor, Tensor], Tensor]
# The teacher's statistics, images, whether the student is fine-tuned -> the BNS loss, 0-d.
BNSLoss = Callable[[Statistics, Tensor, bool], Tensor]
# Student's and teacher's logits (B, K) and labels -> the student's loss, 0-d.
StudentLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
# The student's images, labels and teacher's logits.
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Loop:
    """The training loop that a part is set up for.

    Attributes:
        teacher, student, generator: the networks.
        images: two generated images.
        training: settings of the schedule and the losses.
        num_classes: of the teacher's logits.
        rng: source of all random numbers.
        world: the processes that train together.
    """

    teacher: StatisticsTeacher
    student: nn.Module
    generator: nn.Module
    images: Tensor
    training: Training
    num_classes: int
    rng: torch.Generator
    world: World


class Part:
    """An addition to the paper's loop; each hook leaves the loop as it is unless overridden.

    Hooks are called for one part after the other, in the order of
    :data:`gdfq.training.parts.PARTS`. Those of a step must not read values on the host: a CUDA
    graph replays them.

    Args:
        settings: :class:`gdfq.training.Parts`, of which a part reads the fields of the class that
            it annotates ``settings`` with.

    Attributes:
        settings_class: that class.
        name: the name of the part's module, under which checkpoints keep its state.
    """

    settings: Any
    settings_class: ClassVar[type[Settings]]
    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.settings_class = get_type_hints(cls)["settings"]
        cls.name = cls.__module__.rpartition(".")[2]

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @classmethod
    def is_on(cls, settings: Settings, learned_ranges: bool) -> bool:
        """Return whether the loop has this part: one of its settings is not at its default.

        ``learned_ranges``: whether ranges of the student are trained.
        """
        return not settings.changed().keys().isdisjoint(cls.settings_class.model_fields)

    # ---- before the first step ----

    @classmethod
    def check_settings(cls, settings: Any, training: Training, learned_ranges: bool) -> None:
        """Raise InputError if the part's settings, on or off, contradict what lies outside them.

        The message starts with the name of a field of the settings or of ``training``.
        """

    def check(self, loop: Loop) -> None:
        """Raise InputError if the part cannot work in ``loop``, of which nothing has changed."""

    def setup(self, loop: Loop) -> None:
        """Prepare for ``loop``, whose networks have their final weights and memory format."""

    def parameter_groups(self, groups: list[dict[str, Any]], rate: LearningRate) -> Any:
        """Return the parameter groups of the student's optimizer, whose rate is ``rate``."""
        return groups

    # ---- images ----

    def labels(self, labels: Tensor, num_classes: int, rng: torch.Generator) -> Tensor:
        """Return the labels ``(B,)``, or ``(B, num_classes)`` probabilities."""
        return labels

    def images(self, images: Tensor) -> Tensor:
        """Return the images ``(B, C, H, W)`` that teacher and student see; differentiable."""
        return images

    # ---- the generator's loss; asked for once, before the first step ----

    def cross_entropy(self, loss: CrossEntropy) -> CrossEntropy:
        """Return the generator's cross-entropy, given the one without this part."""
        return loss

    def bns_loss(self, loss: BNSLoss) -> BNSLoss:
        """Return the batch-norm statistics loss, given the one without this part."""
        return loss

    # ---- the student's update ----

    def student_batch(self, student: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
        """Return the batch that the student is trained on."""
        return batch

    def student_loss(self, loss: StudentLoss) -> StudentLoss:
        """Return the student's loss, given the one without; asked for once, before all steps."""
        return loss

    def gradients(self, parameters: list[Tensor], rate: Tensor) -> None:
        """Change the gradients of the student's ``parameters``, in place, before the update."""

    def after_update(self) -> None:
        """Follow the student's update."""

    # ---- results, snapshots and checkpoints ----

    def final_student(self, student: nn.Module) -> nn.Module:
        """Return the student to measure and to save: ``student`` or a changed copy."""
        return student

    @classmethod
    def final_state(cls, student: dict[str, Tensor], state: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the state of :meth:`final_student`, given the student's and the part's."""
        return student

    def snapshot(self) -> None:
        """Remember the part's state, for :meth:`restore`."""

    def restore(self) -> None:
        """Return to the last snapshot: a loss has become non-finite."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the part keeps between steps: tensors, and dictionaries of tensors."""
        return {}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise InputError if :meth:`load_state_dict` cannot load ``state``."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load ``state``: tensors are copied, in place where they exist."""
