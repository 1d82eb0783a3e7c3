"""The frozen teacher, whose batch-norm layers report the statistics of what passes through."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from gdfq.distributed import global_moments, joined_world
from gdfq.errors import InputError
from gdfq.nn.hardtanh import LeanHardtanh
from gdfq.ops.batch_norm_stats import batch_norm_stats

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Statistics(NamedTuple):
    """Batch statistics per layer, in order of execution, beside those the layers store."""

    means: list[Tensor]
    vars: list[Tensor]
    running_means: list[Tensor]
    running_vars: list[Tensor]

    def add(self, mean: Tensor, var: Tensor, running_mean: Tensor, running_var: Tensor) -> None:
        """Append those of one layer's input, and those it stores."""
        for values, value in zip(self, (mean, var, running_mean, running_var), strict=True):
            values.append(value)


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
        self.record.add(mean, var, self.running_mean, self.running_var)
        return y


class RecordingCall(nn.Module):
    """A subclass of batch norm: its own forward, whose ``F.batch_norm`` must report its input."""

    def __init__(self, norm: _BatchNorm, path: str, record: Statistics) -> None:
        super().__init__()
        self.norm = norm
        self.path = path
        self.record = record

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the subclass makes of its input."""
        before = len(self.record.means)
        y = self.norm(*args, **kwargs)
        recorded = self.record.running_means[before:]
        if not any(stored is self.norm.running_mean for stored in recorded):
            raise InputError(
                f"teacher: {self.path!r} is a {type(self.norm).__name__}, a kind of batch norm "
                "whose statistics cannot be recorded: its forward does not call F.batch_norm with "
                "its running statistics; replace it by nn.BatchNorm2d"
            )
        return y


class _Intercept(TorchFunctionMode):
    """Within, calls of ``F.batch_norm`` with stored statistics are recorded."""

    def __init__(self, record: Statistics) -> None:
        super().__init__()
        self.record = record

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self.batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if running_mean is None or running_var is None or training:
            return F.batch_norm(
                input, running_mean, running_var, weight, bias, training, momentum, eps
            )
        y, mean, var = batch_norm_stats(input, running_mean, running_var, weight, bias, eps)
        self.record.add(mean, var, running_mean, running_var)
        return y


class StatisticsTeacher(nn.Module):
    """A frozen copy of a network that returns its logits and its batch-norm inputs' statistics.

    Batch norms are its layers and what calls ``F.batch_norm`` with stored statistics.

    Args:
        model: the trained network; it is copied, never modified.
        shared: the copy's parameters and buffers are the model's own, which may go on being
            trained; otherwise they are copied and frozen.

    Raises:
        InputError: it has no batch-norm layer with running statistics; when it runs, a subclass
            of batch norm does not call ``F.batch_norm``, so that nothing can be recorded.
    """

    def __init__(self, model: nn.Module, shared: bool = False) -> None:
        super().__init__()
        if shared:
            tensors = [*model.parameters(), *model.buffers()]
            self.model = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
        else:
            self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.record = Statistics([], [], [], [])
        replaced: dict[nn.Module, nn.Module] = {}
        for path, module in list(self.model.named_modules(remove_duplicate=False)):
            if type(module) in (nn.ReLU6, nn.Hardtanh) and module.inplace:
                # PyTorch's would copy every activation; a MobileNetV2 has 35 of them.
                lean = LeanHardtanh(module.min_val, module.max_val, inplace=True)
                self.model.set_submodule(path, lean)
            if not isinstance(module, _BatchNorm):
                continue
            if module.running_mean is None:
                raise InputError(
                    f"teacher: batch norm {path!r} keeps no running statistics "
                    "(track_running_stats=False); the generator learns from them"
                )
            if module not in replaced:
                replaced[module] = (
                    RecordingBatchNorm(module, self.record)
                    if type(module) in BATCH_NORMS
                    else RecordingCall(module, path, self.record)
                )
            self.model.set_submodule(path, replaced[module])
        if not replaced:
            raise InputError(
                "teacher: has no batch-norm layer; the generator learns what images look like "
                "from the statistics stored there, and without data there is nothing else to "
                "learn it from, so the method cannot be used. Layer norm and group norm store none"
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Statistics]:
        """Logits ``(N, num_classes)`` of ``images`` and the statistics, layer by layer.

        Those of all ranks' images within :meth:`gdfq.distributed.World.joined`.
        """
        for values in self.record:
            values.clear()
        with _Intercept(self.record):
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
