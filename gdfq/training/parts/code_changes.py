"""Gradients scaled such that a share of each weight's integer codes changes.

With a learning rate ``r``, each quantized weight's gradient ``g`` is multiplied by the factor ``f``
at which a share ``code_change_share`` of the weight's codes differs between ``w`` and
``w - r*f*g``, on the range that ``w`` has now. It is found by doubling from 1 until there are as
many changes, and by five bisections between that and half of it (0 where 1 was enough); the upper
bound is taken. Where 2^20 is not enough, as for a gradient of zero, the factor is 1. Codes that
stay the same for many steps, because each step is far smaller than the distance of two codes, are
the reason.

Codes are counted on the range that the weight has before the update. Where ranges are kept
(``weight_ranges = "mse"``) the update changes as many; where they are the minimum and the maximum,
computed in each forward, the range moves too, and several times as many codes change. In a small
layer the minimum is one code.

Biases, batch norms and weights of functions called without a layer keep their gradients. Momentum
and weight decay come on top, and are not counted.

Source: Choi et al., "It's All In the Teacher: Zero-Shot Quantization Brought Closer to the Teacher"
(AIT), CVPR 2022: a share of 1e-3 for CIFAR and 1e-4 for ImageNet, with the divergence
alone as objective (``kl_only``) and without weight decay. Costs 26 counts a step, each one read of
weights and gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.nn.weight import QuantizedWeight
from gdfq.ops.count_changed_codes import count_changed_codes
from gdfq.settings import Settings
from gdfq.training.parts.part import Loop, Part

DOUBLINGS = 20
BISECTIONS = 5


class CodeChangeSettings(Settings):
    """Settings of gradients by changed codes."""

    code_change_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of each weight's codes that its scaled gradient changes in a step"
    )


class CodeChanges(Part):
    """The quantized weights whose gradients are scaled."""

    settings: CodeChangeSettings

    def check(self, loop: Loop) -> None:
        """Raise InputError if no layer has a quantized weight."""
        if not _layers(loop.student):
            raise InputError(
                "code_change_share: the network has no layer with a quantized weight, only "
                "functions called with weights, whose gradients it leaves as they are"
            )

    def setup(self, loop: Loop) -> None:
        """Find the weights."""
        self.layers = _layers(loop.student)
        self.bits = [layer.weight_bits for layer in self.layers]
        share = self.settings.code_change_share
        assert share is not None
        wanted = [share * layer.weight.numel() for layer in self.layers]
        self.wanted = torch.tensor(wanted, dtype=torch.float64, device=self.layers[0].weight.device)

    @torch.no_grad()
    def gradients(self, parameters: list[Tensor], rate: Tensor) -> None:
        """Scale the gradients, in place, for an update with the learning rate ``rate``."""
        weights = [layer.weight for layer in self.layers]
        gradients = [
            weight.new_zeros(weight.shape) if weight.grad is None else weight.grad
            for weight in weights
        ]
        lows, highs = zip(*(layer.weight_range() for layer in self.layers), strict=True)
        # A row for each range: of an output, or of a kernel.
        rows, slopes = (
            [t.flatten(0, lo.dim() - 1) for t, lo in zip(tensors, lows, strict=True)]
            for tensors in (weights, gradients)
        )
        bounds = [lo.flatten() for lo in lows], [hi.flatten() for hi in highs]

        def enough(factors: Tensor) -> Tensor:
            changed = count_changed_codes(rows, slopes, factors * rate, *bounds, self.bits)
            return changed >= self.wanted

        factors = self._search(enough)
        torch._foreach_mul_(gradients, list(factors.unbind()))

    def _search(self, enough: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the least factor that was tried and is enough for each weight, else 1.

        As many trials whatever their outcome: a captured step cannot look at it.
        """
        high = torch.ones_like(self.wanted, dtype=torch.float32)
        found = enough(high)
        for _ in range(DOUBLINGS):
            high = torch.where(found, high, 2 * high)
            found = found | enough(high)
        low = torch.where(high > 1, high / 2, 0)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            reached = enough(middle)
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
        return torch.where(found, high, 1)


def _layers(student: nn.Module) -> list[QuantizedWeight]:
    """Return the layers with a quantized weight, one for each weight."""
    layers = (m for m in student.modules() if isinstance(m, QuantizedWeight))
    return list({id(layer.weight): layer for layer in layers}.values())
