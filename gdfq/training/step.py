"""One iteration of the paper's algorithm: generator and student learn alternately.

With noise ``z`` and labels ``y``, images ``x = G(z, y)``, the teacher's logits ``t`` and the
student's ``s``::

    generator  CE(t, y) + bns_weight * BNS(x)
    student    CE(s, y) + alpha * KD(s, t)

Source: Xu et al., ECCV 2020, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gdfq.nn import StatisticsTeacher
from gdfq.nn.statistics import Statistics
from gdfq.ops.bns_loss import bns_loss
from gdfq.ops.kd_ce_loss import kd_ce_loss
from gdfq.training.generated import GeneratedImages
from gdfq.training.parts.part import BNSLoss, CrossEntropy, Part, StudentLoss
from gdfq.training.precision import autocast
from gdfq.training.settings import Training
from gdfq.training.update import Finish, Update


class Step:
    """An iteration.

    Args:
        teacher: the frozen network; it returns its batch norms' statistics beside its logits.
        student: the quantized network, fused or not.
        images: what the generator makes.
        update_generator, update_student: the updates of both networks.
        parts: additions; they may replace losses.
        training: weights of the losses, and the precision.
    """

    def __init__(
        self,
        teacher: StatisticsTeacher,
        student: Callable[[Tensor], Tensor],
        images: GeneratedImages,
        update_generator: Update,
        update_student: Update,
        parts: Sequence[Part],
        training: Training,
    ) -> None:
        self.teacher = teacher
        self.student = student
        self.images = images
        self.update_generator = update_generator
        self.update_student = update_student
        self.parts = parts
        self.training = training
        self.cross_entropy: CrossEntropy = F.cross_entropy
        self.bns: BNSLoss = self.paper_bns
        self.kd_ce: StudentLoss = self.paper_kd_ce
        for part in parts:
            self.cross_entropy = part.cross_entropy(self.cross_entropy)
            self.bns = part.bns_loss(self.bns)
            self.kd_ce = part.student_loss(self.kd_ce)

    def warm_up(self) -> dict[str, Tensor]:
        """Train the generator; return its losses."""
        finish_generator, *_ = self.train_generator(tuning=False)
        return finish_generator()

    def fine_tune(self) -> dict[str, Tensor]:
        """Train generator and student; return their losses."""
        finish_generator, x, y, t = self.train_generator(tuning=True)
        finish_student = self.train_student(x, y, t)
        return {**finish_generator(), **finish_student()}

    def train_generator(self, tuning: bool) -> tuple[Finish, Tensor, Tensor, Tensor]:
        """Start the generator's update; return it with images, labels and teacher's logits."""
        z, y = self.images.sample()
        with self.precision():
            x = self.images.make(z, y)
            t, statistics = self.teacher(x)
            ce = self.cross_entropy(t, y)
            bns = self.bns(statistics, x, tuning)
            loss = ce + self.training.bns_weight * bns
        losses = {"generator": loss, "generator_ce": ce, "bns": bns}
        return self.update_generator.start(losses), x.detach(), y, t.detach()

    def train_student(self, x: Tensor, y: Tensor, t: Tensor) -> Finish:
        """Start the student's update."""
        with self.precision():
            for part in self.parts:
                x, y, t = part.student_batch(self.student, (x, y, t))
            s = self.student(x)
            loss = self.kd_ce(s, t, y)
        return self.update_student.start({"student": loss})

    def paper_bns(self, statistics: Statistics, x: Tensor, tuning: bool) -> Tensor:
        """Return the mismatch of the teacher's batch-norm statistics, equation 3."""
        return bns_loss(*statistics.by_norm())

    def paper_kd_ce(self, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the student's cross-entropy and distillation loss."""
        return kd_ce_loss(s, t, y, self.training.temperature, self.training.alpha)

    def precision(self) -> torch.autocast:
        """Compute in the precision of the settings."""
        return autocast(self.training.precision, self.images.device)
