"""An activation followed by a quantizer."""

from __future__ import annotations

import copy
import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdfq.distributed import World, joined_world
from gdfq.errors import InputError
from gdfq.nn.dynamic_ranges import range_axes
from gdfq.nn.quantization import DEFAULTS, Bits, Momentum
from gdfq.ops._checks import Activation, LearnedSte, Ste, check_act
from gdfq.ops.fake_quantize import contain_zero, fake_quantize
from gdfq.ops.fake_quantize_minmax import fake_quantize_minmax
from gdfq.ops.observe_fake_quantize import observe_fake_quantize
from gdfq.settings import checked

Module = TypeVar("Module", bound=nn.Module)


def activate(x: Tensor, act: Activation) -> Tensor:
    """Apply ReLU, ReLU6 or nothing."""
    if act == "relu":
        return F.relu(x)
    if act == "relu6":
        return F.relu6(x)
    check_act(act)
    return x


class QAct(nn.Module):
    """ReLU, ReLU6 or nothing, followed by fake quantization over a tracked range.

    The range behaves like batch-norm statistics. In training mode each batch updates it and is
    quantized with the updated range; in evaluation mode it is fixed::

        average <- momentum * average + (1 - momentum) * batch minimum (maximum)
        lo (hi)  = average / (1 - momentum**t)        after t batches

    Bias correction and ``zero_in_range`` (``lo = min(lo, 0)``, ``hi = max(hi, 0)``) do not change
    the average. To train weights with fixed ranges, call ``eval()`` on the :class:`QAct` modules.

    Args:
        act_bits: 2 to 8.
        act: ``"relu"``, ``"relu6"`` or ``"none"``.
        ste: straight-through estimator, ``"identity"`` or ``"clip"``.
        momentum: of the moving average, in [0, 1).
        device: of the range.
        zero_in_range: widen the range, also a loaded one, to contain 0.
        dynamic_range: compute a range for each sample and channel on the fly instead of tracking
            one, see :meth:`use_dynamic_range`.

    Shape: any; the output has the input's shape, dtype and memory format.

    Raises:
        InputError: an argument is invalid.
        RuntimeError: evaluated before any batch has set the range.

    Source: Xu et al., ECCV 2020, section 3.3.
    """

    lo: Tensor
    hi: Tensor
    average_lo: Tensor
    average_hi: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        act_bits: int = DEFAULTS.act_bits,
        act: Activation = "relu",
        ste: Ste = DEFAULTS.ste,
        momentum: float = DEFAULTS.range_momentum,
        device: Any = None,
        zero_in_range: bool = DEFAULTS.zero_in_range,
        dynamic_range: bool = False,
    ) -> None:
        super().__init__()
        self.act_bits = checked("act_bits", act_bits, Bits)
        self.act = checked("act", act, Activation)
        self.ste = checked("ste", ste, Ste)
        self.momentum = checked("momentum", momentum, Momentum)
        self.zero_in_range = checked("zero_in_range", zero_in_range, bool)
        for name in ("lo", "hi", "average_lo", "average_hi"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float32, device=device))
        self.register_buffer(
            "num_batches_tracked", torch.zeros((), dtype=torch.int64, device=device)
        )
        self._calibrated = False
        self.dynamic_range = False
        if checked("dynamic_range", dynamic_range, bool):
            self.use_dynamic_range()

    @classmethod
    def from_float(
        cls,
        module: nn.Module,
        act_bits: int = DEFAULTS.act_bits,
        ste: Ste = DEFAULTS.ste,
        momentum: float = DEFAULTS.range_momentum,
        zero_in_range: bool = DEFAULTS.zero_in_range,
        dynamic_range: bool = False,
    ) -> QAct:
        """Return the quantized counterpart of an ``nn.ReLU``, ``nn.ReLU6`` or ``nn.Identity``."""
        acts: dict[type, Activation] = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Identity: "none"}
        if type(module) not in acts:
            allowed = ", ".join(f"nn.{kind.__name__}" for kind in acts)
            raise InputError(f"module: must be one of {allowed}, got {type(module).__name__}")
        act = acts[type(module)]
        made = cls(
            act_bits, act, ste, momentum, zero_in_range=zero_in_range, dynamic_range=dynamic_range
        )
        return made.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """Activate and quantize ``x``."""
        y = activate(x, self.act)
        if self.dynamic_range:
            axes = range_axes(y.shape, self.act_bits)
            return fake_quantize_minmax(y, self.act_bits, axes, self.ste, self.zero_in_range)
        if self.training:
            moving = self.moving_range(y)
            options = (self.act_bits, self.momentum, self.ste, self.zero_in_range)
            world = joined_world()
            if world is None:
                return observe_fake_quantize(y, *moving, *options)
            # The bounds of all ranks' batch update the range as the whole batch would.
            observe_fake_quantize(_global_bounds(y, world), *moving, *options)
            return fake_quantize(y, self.lo.clone(), self.hi.clone(), self.act_bits, ste=self.ste)
        if not self._calibrated and not y.numel():
            return y  # an empty batch needs no range
        self.require_range()
        ste: LearnedSte = "learned" if self.learned else self.ste
        return fake_quantize(y, self.lo, self.hi, self.act_bits, ste=ste)

    @property
    def learned(self) -> bool:
        """Whether the range is trained, see :meth:`learn_range`."""
        return isinstance(self.hi, nn.Parameter)

    def learn_range(self) -> None:
        """Turn ``lo`` and ``hi`` into parameters; after ReLU or ReLU6 only ``hi``.

        They are trained in evaluation mode, with the gradients of ``ste="learned"``, see
        :func:`gdfq.functional.fake_quantize`.

        Raises:
            InputError: the range is dynamic.
        """
        if self.dynamic_range:
            raise InputError("dynamic_range: a range computed on the fly cannot be learned")
        for name in ("lo", "hi") if self.act == "none" else ("hi",):
            if name in self._buffers:
                bound: Tensor = getattr(self, name)
                del self._buffers[name]
                self.register_parameter(name, nn.Parameter(bound))

    def use_dynamic_range(self) -> None:
        """Compute ranges on the fly from now on, in either mode, without gradient.

        For ``(N, C, ...)``, each sample and channel has its minimum and maximum as range if a
        channel has at least ``2**act_bits`` elements; otherwise each sample has one. See
        :mod:`gdfq.nn.dynamic_ranges`.
        """
        self.dynamic_range = True
        for name in [*self._own_tensors()]:
            self._parameters.pop(name, None)
            self.register_buffer(name, None)

    @property
    def has_range(self) -> bool:
        """Whether it can be evaluated: a batch has set the range, or it is dynamic."""
        return self.dynamic_range or bool(self.num_batches_tracked)

    def _own_tensors(self) -> dict[str, Tensor]:
        own = {**self._buffers, **self._parameters}
        return {name: tensor for name, tensor in own.items() if tensor is not None}

    def moving_range(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the buffers for an observing operator to update from the batch ``x``."""
        self._calibrated = self._calibrated or x.numel() > 0
        lo, hi = self.lo, self.hi
        if self.learned:
            lo, hi = lo.detach(), hi.detach()
        return self.average_lo, self.average_hi, lo, hi, self.num_batches_tracked

    def require_range(self) -> None:
        """Raise RuntimeError if no batch has set the range."""
        if not self._calibrated:
            raise RuntimeError(
                "QAct: no batch has set the range yet; run one in training mode first "
                "(GDFQTrainer.calibrate does so for a whole student)."
            )

    def reset_range(self) -> None:
        """Reset the range to its initial state."""
        for tensor in self._own_tensors().values():
            tensor.detach().zero_()
        self._calibrated = False

    def _apply(self, fn: Any, recurse: bool = True) -> QAct:
        # Ranges stay float32 under .half() and .bfloat16(): the quantizer computes in float32.
        ranges = {n: t.detach() for n, t in self._own_tensors().items() if t.is_floating_point()}
        super()._apply(fn, recurse)
        for name, before in ranges.items():
            after = getattr(self, name)
            if after.dtype != torch.float32:
                after.data = before.to(after.device)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if self.zero_in_range and {prefix + "lo", prefix + "hi"} <= state_dict.keys():
            state_dict = {**state_dict}
            lo, hi = contain_zero(state_dict[prefix + "lo"], state_dict[prefix + "hi"])
            state_dict[prefix + "lo"], state_dict[prefix + "hi"] = lo, hi
        super()._load_from_state_dict(state_dict, prefix, *args)
        tracked = state_dict.get(prefix + "num_batches_tracked")
        if tracked is not None and tracked.device.type != "meta":
            self._calibrated = bool(tracked > 0)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        zero = ", zero_in_range=True" if self.zero_in_range else ""
        zero += ", dynamic_range=True" if self.dynamic_range else ""
        return f"act_bits={self.act_bits}, act={self.act!r}, ste={self.ste!r}{zero}"


@torch.no_grad()
def _global_bounds(x: Tensor, world: World) -> Tensor:
    """Return minimum and maximum of ``x`` over all ranks, ``(2,)`` float32; empty if ``x`` is."""
    if not x.numel():
        return x.new_empty(0, dtype=torch.float32)
    lo, hi = torch.aminmax(x)
    # A maximum over ranks may drop a NaN; an infinite range is equally unusable.
    bounds = (
        torch.stack([-lo, hi]).float().nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    )
    world.max(bounds, "activation ranges")
    return torch.stack([-bounds[0], bounds[1]])


def observing_copy(model: Module) -> Module:
    """Return a copy of ``model`` with activations in training mode, which runs without ranges."""
    trial = copy.deepcopy(model)
    for module in trial.modules():
        if isinstance(module, QAct):
            module.train()
    return trial
