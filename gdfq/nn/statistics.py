"""The frozen teacher, which records the statistics of its batch norms' inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode

from gdfq.distributed import global_moments, joined_world
from gdfq.errors import InputError
from gdfq.nn.copying import copied
from gdfq.nn.hardtanh import LeanHardtanh
from gdfq.ops.batch_norm_stats import batch_norm_stats

# Operators of batch norm, which take the weight first.
_OPERATORS: tuple[Callable[..., Any], ...] = (
    torch.batch_norm,
    torch.ops.aten.batch_norm,
    torch.ops.aten.batch_norm.default,
)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Statistics(NamedTuple):
    """Batch statistics and running statistics of each layer, ``(C,)``, in order of execution."""

    means: list[Tensor]
    vars: list[Tensor]
    running_means: list[Tensor]
    running_vars: list[Tensor]

    def add(self, mean: Tensor, var: Tensor, running_mean: Tensor, running_var: Tensor) -> None:
        """Append the statistics of one layer."""
        for values, value in zip(self, (mean, var, running_mean, running_var), strict=True):
            values.append(value)

    def by_norm(self) -> Statistics:
        """Return the mean over all calls of a batch norm that is called several times.

        That is what it stores: training has moved its running statistics at every call.
        """
        calls: dict[int, list[tuple[Tensor, ...]]] = {}
        for call in zip(*self, strict=True):
            calls.setdefault(id(call[2]), []).append(call)
        if len(calls) == len(self.means):
            return self
        means, variances, stored_means, stored_vars = zip(
            *(zip(*together, strict=True) for together in calls.values()), strict=True
        )
        return Statistics(
            [torch.stack(each).mean(0) for each in means],
            [torch.stack(each).mean(0) for each in variances],
            [each[0] for each in stored_means],
            [each[0] for each in stored_vars],
        )


# F.batch_norm(input, running_mean, running_var, weight, bias, eps)
Compute = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, float], Tensor]


class BatchNormCalls(TorchFunctionMode):
    """Mode in which ``compute`` replaces each batch norm that uses running statistics.

    Covers ``nn.BatchNorm2d``, subclasses, and direct calls of ``F.batch_norm``.
    """

    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self.compute = compute

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
        if func in _OPERATORS:
            return self.operator(*args, **kwargs)
        return func(*args, **kwargs)

    def operator(
        self,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Tensor:
        """Replace ``torch.batch_norm``."""
        return self.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )

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
        """Replace ``F.batch_norm``."""
        if running_mean is None or running_var is None or training:
            return F.batch_norm(
                input, running_mean, running_var, weight, bias, training, momentum, eps
            )
        return self.compute(input, running_mean, running_var, weight, bias, eps)


class _Recording(BatchNormCalls):
    """Mode in which batch norms append their statistics to ``record``.

    Gradients stay enabled under ``torch.no_grad`` in a ``forward``, since the generator is trained
    through all layers.

    Args:
        record: to append to.
        stored: paths of batch norms, by ``id`` of their running means and variances.

    Attributes:
        read: paths of batch norms whose running statistics other operations read.
    """

    def __init__(self, record: Statistics, stored: Mapping[int, str]) -> None:
        super().__init__(self.normalize)
        self.record = record
        self.stored = stored
        self.read: set[str] = set()
        self.gradients = torch.is_grad_enabled()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch._C._set_grad_enabled and self.gradients:
            return None
        if func is not F.batch_norm and func not in _OPERATORS:
            values = (*args, *(kwargs or {}).values())
            self.read.update(self.stored[id(v)] for v in values if id(v) in self.stored)
        return super().__torch_function__(func, types, args, kwargs)

    def normalize(
        self,
        x: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        y, mean, var = batch_norm_stats(x, running_mean, running_var, weight, bias, eps)
        self.record.add(mean, var, running_mean, running_var)
        return y


class StatisticsTeacher(nn.Module):
    """A frozen copy of a network that returns logits and statistics of its batch norms' inputs.

    Records all calls of ``F.batch_norm`` and ``torch.batch_norm`` with running statistics.

    Args:
        model: the trained network; not modified.
        shared: share parameters and buffers with ``model``, which may still be trained; otherwise
            they are copied and frozen.

    Attributes:
        unrecorded: paths of batch norms that the last forward computed by other operations.

    Raises:
        InputError: a batch norm keeps no running statistics. In ``forward``: no batch norm is
            called, or a subclass of batch norm does not call ``F.batch_norm``.
    """

    def __init__(self, model: nn.Module, shared: bool = False) -> None:
        super().__init__()
        if shared:
            tensors = [*model.parameters(), *model.buffers()]
            self.model = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
        else:
            self.model = copied(model, name="teacher").eval().requires_grad_(False)
        self.record = Statistics([], [], [], [])
        self.unrecorded: list[str] = []
        # Called subclasses of batch norm, which may compute in another way.
        self.called: dict[str, Any] = {}
        for path, module in list(self.model.named_modules(remove_duplicate=False)):
            if type(module) in (nn.ReLU6, nn.Hardtanh) and module.inplace:
                # PyTorch's copies every activation; a MobileNetV2 has 35 of them.
                lean = LeanHardtanh(module.min_val, module.max_val, inplace=True)
                self.model.set_submodule(path, lean)
            if not isinstance(module, _BatchNorm):
                continue
            if module.running_mean is None:
                raise InputError(
                    f"teacher: batch norm {path!r} keeps no running statistics "
                    "(track_running_stats=False); the generator learns from them"
                )
            if type(module) not in BATCH_NORMS:
                module.register_forward_pre_hook(partial(self._note, path))

    def _note(self, path: str, module: nn.Module, args: Any) -> None:
        self.called[path] = module

    def _storing(self) -> dict[str, nn.Module]:
        """Return the modules that keep running statistics, by path."""
        return {
            path: module
            for path, module in self.model.named_modules()
            if all(name in module._buffers for name in ("running_mean", "running_var"))
            and module.running_mean is not None
            and not isinstance(module, _InstanceNorm)
        }

    def describe_unrecorded(self) -> list[str]:
        """Return a line about batch norms that could not be recorded, if there are any."""
        if not self.unrecorded:
            return []
        count, listed = len(self.unrecorded), ", ".join(self.unrecorded[:5])
        return [
            f"batch norms: the statistics of {count} of {len(self._storing())} are neither learned "
            "from nor corrected, because other operations than F.batch_norm compute with them: "
            f"{listed}{', ...' if count > 5 else ''}"
        ]

    def _require_statistics(self) -> None:
        """Raise InputError unless a batch norm, and each subclass of it, has been recorded."""
        recorded = {id(stored) for stored in self.record.running_means}
        for path, module in self.called.items():
            if id(module.running_mean) not in recorded:
                raise _unknown_kind(path, module)
        if recorded:
            return
        storing = self._storing()
        for path, module in storing.items():
            if not isinstance(module, _BatchNorm):
                raise _unknown_kind(path, module)
        if self.unrecorded:
            raise InputError(
                f"teacher: batch norm {self.unrecorded[0]!r} cannot be recorded: other operations "
                "than F.batch_norm compute with its running statistics; call the layer itself"
            )
        uncalled = (
            f"has no batch-norm layer that is called in evaluation mode (of {len(storing)}, the "
            f"first is {next(iter(storing))!r})"
            if storing
            else "has no batch-norm layer"
        )
        raise InputError(
            f"teacher: {uncalled}; the generator learns what images look like "
            "from the statistics stored there, and without data there is nothing else to "
            "learn it from, so the method cannot be used. Layer norm and group norm store none"
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Statistics]:
        """Return logits ``(N, num_classes)`` and the statistics of each batch norm.

        Within :meth:`gdfq.distributed.World.joined`, statistics are over all ranks' images.
        """
        for values in self.record:
            values.clear()
        self.called.clear()
        storing = self._storing().items()
        stored = {id(b): path for path, m in storing for b in (m.running_mean, m.running_var)}
        with _Recording(self.record, stored) as recording:
            logits = self.model(images)
        recorded = {stored.get(id(mean)) for mean in self.record.running_means}
        self.unrecorded = sorted(recording.read - recorded)
        self._require_statistics()
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


def _unknown_kind(path: str, module: nn.Module) -> InputError:
    return InputError(
        f"teacher: {path!r} is a {type(module).__name__}, a kind of batch norm "
        "whose statistics cannot be recorded: its forward does not call F.batch_norm with "
        "its running statistics; replace it by nn.BatchNorm2d"
    )
