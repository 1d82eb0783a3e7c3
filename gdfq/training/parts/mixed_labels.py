"""Labels that are mixes of classes.

With probability ``q`` an image's class ``y`` is replaced by a convex mix of ``n`` different
classes, drawn uniformly, whose shares are the softmax of ``n`` standard normal numbers. The
generator takes the mix of the classes' embeddings, and the mix is the label in both losses'
cross-entropy. Images of mixes lie near the teacher's decision boundaries, of which single classes
say little.

Source: Choi et al., "Qimera", NeurIPS 2021: q = 0.4 (0.7 for ResNet-50) and n = 2 for CIFAR-10, 10
for CIFAR-100, 100 to 500 for ImageNet. Costs tensors of logits' size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gdfq.errors import InputError
from gdfq.nn.copying import copied
from gdfq.nn.given import one_line
from gdfq.settings import Settings
from gdfq.training.checks import example_batch
from gdfq.training.labels import as_probabilities
from gdfq.training.parts.part import Loop, Part

if TYPE_CHECKING:
    from typing_extensions import Self


class MixedLabelSettings(Settings):
    """Settings of mixed labels."""

    mix_probability: float = Field(
        0.0, ge=0, le=1, description="share of images whose label is a mix of classes"
    )
    mix_classes: int = Field(2, ge=2, description="classes in a mix")

    @model_validator(mode="after")
    def _check_mixes(self) -> Self:
        if self.mix_classes != 2 and not self.mix_probability:
            raise InputError("mix_classes: has no effect without mix_probability")
        return self


class MixedLabels(Part):
    """Labels of which a share is mixed."""

    settings: MixedLabelSettings

    def check(self, loop: Loop) -> None:
        """Raise InputError for too few classes, or a generator that takes no mixed labels."""
        mixed, classes = self.settings.mix_classes, loop.num_classes
        if mixed > classes:
            raise InputError(
                f"mix_classes: must be <= {classes}, the number of classes, got {mixed}"
            )
        trial = copied(loop.generator, name="generator").train()
        z, _ = example_batch(trial, 2)
        shares = torch.full((2, classes), 1 / classes, device=z.device, dtype=torch.float32)
        try:
            trial(z, shares)
        except (RuntimeError, IndexError, TypeError) as error:
            raise InputError(
                f"mix_probability: the generator does not take labels (N, {classes}), shares "
                f"of each class: {one_line(error)}"
            ) from error

    def labels(self, labels: Tensor, num_classes: int, rng: torch.Generator) -> Tensor:
        """Return ``(B, num_classes)`` probabilities; see :func:`mixed_labels`."""
        settings = self.settings
        return mixed_labels(
            labels, num_classes, settings.mix_probability, settings.mix_classes, rng
        )


def mixed_labels(
    labels: Tensor, classes: int, probability: float, mixed: int, rng: torch.Generator
) -> Tensor:
    """Return ``labels`` as probabilities ``(B, classes)``, each row a mix with ``probability``.

    Args:
        labels: ``(B,)`` classes.
        classes: how many there are.
        probability: that a row becomes a mix.
        mixed: classes in a mix, at most ``classes``.
        rng: where all random numbers are drawn from.
    """
    batch, device = len(labels), labels.device
    chosen = (
        torch.rand((batch, classes), generator=rng, device=device, dtype=torch.float32)
        .topk(mixed, 1)
        .indices
    )
    shares = torch.randn((batch, mixed), generator=rng, device=device, dtype=torch.float32).softmax(
        1
    )
    is_mix = torch.rand((batch, 1), generator=rng, device=device, dtype=torch.float32) < probability
    single = as_probabilities(labels, classes)
    return torch.where(is_mix, torch.zeros_like(single).scatter(1, chosen, shares), single)
