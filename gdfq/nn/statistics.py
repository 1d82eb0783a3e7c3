"""The frozen teacher, whose batch-norm layers report the statistics of what passes through."""

from __future__ import annotations

import copy
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gdfq.distributed import global_moments, joined_world
from gdfq.errors import InputError
from gdfq.ops.batch_norm_stats import batch_norm_stats

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Statistics(NamedTuple):
    """Batch statistics per layer, in order of execution, beside those the layers store."""

    means: list[Tensor]
    vars: list[Tensor]
    running_means: list[Tensor]
    running_vars: list[Tensor]


class RecordingBatchNorm(nn.Module):
    """A frozen batch norm that appends its input's mean and variance to a record."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: _BatchNorm, record: Statistics) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.record = record

    def forward(self, x: Tensor) -> Tensor:
        """Evaluation-mode batch norm of ``x``, ``(N, C, ...)``."""
        y, mean, var = batch_norm_stats(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.eps
        )
        self.record.means.append(mean)
        self.record.vars.append(var)
        self.record.running_means.append(self.running_mean)
        self.record.running_vars.append(self.running_var)
        return y


class StatisticsTeacher(nn.Module):
    """A frozen copy of a network that returns its logits and its batch-norm inputs' statistics.

    Args:
        model: the trained network; it is copied, never modified.

    Raises:
        InputError: it has no batch-norm layer with running statistics, or one of a kind whose
            statistics cannot be recorded.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.record = Statistics([], [], [], [])
        replaced: dict[nn.Module, RecordingBatchNorm] = {}
        for path, module in list(self.model.named_modules(remove_duplicate=False)):
            if not isinstance(module, _BatchNorm):
                continue
            if module.running_mean is None:
                raise InputError(
                    f"teacher: batch norm {path!r} keeps no running statistics "
                    "(track_running_stats=False); the generator learns from them"
                )
            if type(module) not in BATCH_NORMS:
                raise InputError(
                    f"teacher: {path!r} is a {type(module).__name__}, a kind of batch norm whose "
                    "statistics cannot be recorded; replace it by nn.BatchNorm2d"
                )
            if module not in replaced:
                replaced[module] = RecordingBatchNorm(module, self.record)
            self.model.set_submodule(path, replaced[module])
        if not replaced:
            raise InputError(
                "teacher: has no batch-norm layer; the generator learns what images look like "
                "from the statistics stored there, so the method cannot be used"
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Statistics]:
        """Logits ``(N, num_classes)`` of ``images`` and the statistics, layer by layer.

        Those of all ranks' images within :meth:`gdfq.distributed.World.joined`.
        """
        for values in self.record:
            values.clear()
        logits = self.model(images)
        statistics = Statistics(*(list(values) for values in self.record))
        for values in self.record:
            values.clear()
        world = joined_world()
        if world is not None:
            means, variances = global_moments(
                world, statistics.means, statistics.vars, "teacher's statistics"
            )
            statistics = statistics._replace(means=means, vars=variances)
        return logits, statistics
