"""Variants of the batch-norm statistics' loss in the generator's.

* ``bns_spread = "std"`` compares standard deviations, ``sqrt(var + 1e-8)``, where the paper
  compares variances: layers of large activations then weigh less beside those of small ones.
* ``bns_layers`` picks layers of the teacher by glob patterns of their names.
* ``bns_of = "both"`` adds the layers of the student, compared with the statistics that it stores
  itself, once it is being fine-tuned. The mean is over all layers of both. The generator then makes
  images on which the student's activations stay where they should be. This costs one more forward
  and backward pass of the student, unfused and without its weights' gradients.

Sources: the loss itself, Xu et al., ECCV 2020, equation 3; standard deviations, as in ZeroQ (Cai et
al., CVPR 2020). The first two cost nothing of note.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gdfq.convert.bits import near_names
from gdfq.errors import InputError
from gdfq.nn import StatisticsTeacher
from gdfq.nn.statistics import Statistics
from gdfq.ops.bns_loss import bns_loss
from gdfq.settings import Settings
from gdfq.training.parts.part import BNSLoss, Loop, Part

EPSILON = 1e-8


class StatisticsSettings(Settings):
    """Settings of the batch-norm statistics loss."""

    bns_spread: Literal["variance", "std"] = Field(
        "variance", description="what the batch-norm statistics loss compares beside means"
    )
    bns_layers: tuple[str, ...] = Field(
        ("*",), min_length=1, description="glob patterns of the batch norms it compares"
    )
    bns_of: Literal["teacher", "both"] = Field(
        "teacher", description="'both' compares the student's statistics too; one more pass"
    )


class StatisticsLoss(Part):
    """The mismatch of statistics that the settings ask for."""

    settings: StatisticsSettings

    @torch.no_grad()
    def check(self, loop: Loop) -> None:
        """Raise InputError if a pattern matches no batch norm."""
        if self.settings.bns_layers != ("*",):
            _, statistics = loop.teacher(loop.images)
            names = _names(loop.teacher)
            _require_matches(
                self.settings.bns_layers, [names[id(stored)] for stored in statistics.running_means]
            )

    def setup(self, loop: Loop) -> None:
        """Keep the networks."""
        self.teacher = loop.teacher
        self.student = loop.student
        self.recorder: StatisticsTeacher | None = None  # of the student, from its first use

    def bns_loss(self, loss: BNSLoss) -> BNSLoss:
        """Return the loss that the settings ask for."""
        return self.loss

    def loss(self, statistics: Statistics, images: Tensor, tuning: bool) -> Tensor:
        """Return the loss, 0-d, of the teacher's ``statistics`` on ``images``.

        Where asked for and ``tuning``, of the student's on them too.
        """
        chosen = self._chosen(statistics, self.teacher)
        if tuning and self.settings.bns_of == "both":
            if self.recorder is None:
                self.recorder = StatisticsTeacher(self.student, shared=True)
            _, own = self.recorder(images)
            own = self._chosen(own, self.recorder)
            chosen = Statistics(*(ours + theirs for ours, theirs in zip(chosen, own, strict=True)))
        return self._compare(chosen)

    def _chosen(self, statistics: Statistics, network: StatisticsTeacher) -> Statistics:
        patterns = self.settings.bns_layers
        if patterns == ("*",):
            return statistics
        names = _names(network)
        layers = [
            layer
            for layer in zip(*statistics, strict=True)
            if any(fnmatchcase(names[id(layer[2])], p) for p in patterns)
        ]
        return Statistics(*([layer[i] for layer in layers] for i in range(4)))

    def _compare(self, statistics: Statistics) -> Tensor:
        statistics = statistics.by_norm()
        if self.settings.bns_spread == "std":
            statistics = statistics._replace(
                vars=_roots(statistics.vars), running_vars=_roots(statistics.running_vars)
            )
        return bns_loss(*statistics)


def _roots(variances: Sequence[Tensor]) -> list[Tensor]:
    return [torch.sqrt(variance + EPSILON) for variance in variances]


def _names(network: StatisticsTeacher) -> dict[int, str]:
    """Return the batch norms' names by the identity of their buffers, for any class of layer."""
    names: dict[int, str] = {}
    for path, buffer in network.model.named_buffers(remove_duplicate=False):
        names.setdefault(id(buffer), path.rpartition(".")[0])
    return names


def _require_matches(patterns: Sequence[str], names: list[str]) -> None:
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        raise InputError(
            f"bns_layers: {pattern!r} matches no batch norm; {near_names(pattern, names)}"
        )
