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

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.nn import StatisticsTeacher
from gdfq.nn.statistics import Statistics
from gdfq.ops.bns_loss import bns_loss
from gdfq.training.parts.settings import Parts

EPSILON = 1e-8


class StatisticsLoss:
    """The mismatch of statistics that ``parts`` ask for.

    Args:
        parts: which of the variants.
        teacher: whose layers' statistics it is given.
        student: whose statistics it takes itself, where asked for.
        images: a few, as the teacher takes them.

    Raises:
        InputError: a pattern of ``parts.bns_layers`` matches no batch norm.
    """

    @torch.no_grad()
    def __init__(
        self, parts: Parts, teacher: StatisticsTeacher, student: nn.Module, images: Tensor
    ) -> None:
        self.parts = parts
        self.teacher = teacher
        self.student = student
        self.recorder: StatisticsTeacher | None = None  # of the student, from its first use
        self.all_layers = parts.bns_layers == ("*",)
        if not self.all_layers:
            _, statistics = teacher(images)
            names = _names(teacher)
            _require_matches(
                parts.bns_layers, [names[id(stored)] for stored in statistics.running_means]
            )

    def __call__(self, statistics: Statistics, images: Tensor, tuning: bool) -> Tensor:
        """The loss, 0-d, of the teacher's ``statistics`` on ``images``.

        Where asked for and ``tuning``, of the student's on them too.
        """
        chosen = self._chosen(statistics, self.teacher)
        if tuning and self.parts.bns_of == "both":
            if self.recorder is None:
                self.recorder = StatisticsTeacher(self.student, shared=True)
            _, own = self.recorder(images)
            own = self._chosen(own, self.recorder)
            chosen = Statistics(*(ours + theirs for ours, theirs in zip(chosen, own, strict=True)))
        return self._compare(chosen)

    def _chosen(self, statistics: Statistics, network: StatisticsTeacher) -> Statistics:
        if self.all_layers:
            return statistics
        names = _names(network)
        layers = [
            layer
            for layer in zip(*statistics, strict=True)
            if any(fnmatchcase(names[id(layer[2])], p) for p in self.parts.bns_layers)
        ]
        return Statistics(*([layer[i] for layer in layers] for i in range(4)))

    def _compare(self, statistics: Statistics) -> Tensor:
        statistics = _of_norms(statistics)
        if self.parts.bns_spread == "std":
            statistics = statistics._replace(
                vars=_roots(statistics.vars), running_vars=_roots(statistics.running_vars)
            )
        return bns_loss(*statistics)


def _of_norms(statistics: Statistics) -> Statistics:
    """``statistics`` with the mean of all calls for a batch norm that is called several times.

    That is what it stores: training has moved its running statistics at every call.
    """
    calls: dict[int, list[tuple[Tensor, ...]]] = {}
    for call in zip(*statistics, strict=True):
        calls.setdefault(id(call[2]), []).append(call)
    if len(calls) == len(statistics.means):
        return statistics
    means, variances, stored_means, stored_vars = zip(
        *(zip(*together, strict=True) for together in calls.values()), strict=True
    )
    return Statistics(
        [torch.stack(each).mean(0) for each in means],
        [torch.stack(each).mean(0) for each in variances],
        [each[0] for each in stored_means],
        [each[0] for each in stored_vars],
    )


def _roots(variances: Sequence[Tensor]) -> list[Tensor]:
    return [torch.sqrt(variance + EPSILON) for variance in variances]


def _names(network: StatisticsTeacher) -> dict[int, str]:
    """The batch norms' names by the identity of what they store, whatever the layer's class."""
    names: dict[int, str] = {}
    for path, buffer in network.model.named_buffers(remove_duplicate=False):
        names.setdefault(id(buffer), path.rpartition(".")[0])
    return names


def _require_matches(patterns: Sequence[str], names: list[str]) -> None:
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        plain = "".join(letter for letter in pattern if letter not in "*?[]!")
        near = difflib.get_close_matches(plain, names, n=3, cutoff=0.4) or names[:3]
        raise InputError(
            f"bns_layers: {pattern!r} matches no batch norm; there are: {', '.join(near)}, ..."
        )
