"""Older generated images, kept for the student.

The last ``n`` batches that the student was trained on are kept with their labels and the teacher's
logits. Each row of the student's batch is, with probability ``replay_share``, replaced by the same
row of one of these, drawn uniformly; in the first steps there are fewer than ``n``, and in the very
first none. The generator drifts, and the student forgets what it no longer shows.

Source: experience replay (Lin, Machine Learning 1992), with generated images as in Binici et al.,
"Preventing catastrophic forgetting in data-free knowledge distillation", WACV 2022. Costs the
memory of ``n + 1`` batches, and one copy of a batch into it and one out of it a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gdfq.errors import InputError
from gdfq.settings import Settings
from gdfq.training.parts.part import Batch, Loop, Part

if TYPE_CHECKING:
    from typing_extensions import Self

NAMES = ("images", "labels", "teacher_logits")


class ReplaySettings(Settings):
    """Settings of older images."""

    replay_batches: int = Field(
        0, ge=0, description="batches of older images that are kept for the student"
    )
    replay_share: float = Field(
        0.5, gt=0, lt=1, description="share of the student's images taken from these"
    )

    @model_validator(mode="after")
    def _check_replay(self) -> Self:
        if self.replay_share != 0.5 and not self.replay_batches:
            raise InputError("replay_share: has no effect without replay_batches")
        return self


class Replay(Part):
    """The kept batches."""

    settings: ReplaySettings

    def __init__(self, settings: ReplaySettings) -> None:
        super().__init__(settings)
        self.batches = settings.replay_batches
        self.kept: dict[str, Tensor] = {}  # rows of all batches, one batch after the other

    def check(self, loop: Loop) -> None:
        """Raise InputError where several processes train."""
        if loop.world.size > 1:
            raise InputError(
                "replay_batches: older images are kept by one process alone, and this run has "
                f"{loop.world.size}"
            )

    def setup(self, loop: Loop) -> None:
        """Count the batches kept so far: none."""
        self.batch_size = loop.training.batch_size
        self.rng = loop.rng
        self.stored = torch.zeros((), dtype=torch.int64, device=loop.images.device)

    def student_batch(self, student: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
        """Return the batch with some rows replaced by older ones.

        The given batch is kept; the oldest makes room for it.
        """
        if not self.kept:
            self._make_room(batch)
        device, places = self.stored.device, self.batches + 1
        row = torch.arange(self.batch_size, device=device)
        place = self.stored % places
        replaced, which = torch.rand(
            (2, self.batch_size), generator=self.rng, device=device, dtype=torch.float32
        ).unbind()
        older = self.stored.clamp(max=self.batches)
        back = torch.minimum(1 + (which * older).long(), older)
        taken = (place - torch.where(replaced < self.settings.replay_share, back, 0)) % places
        for kept, tensor in zip(self.kept.values(), batch, strict=True):
            kept.index_copy_(0, place * self.batch_size + row, tensor)
        self.stored.add_(1)
        rows = taken * self.batch_size + row
        images, labels, teacher_logits = (
            _laid_out_like(tensor, kept.index_select(0, rows))
            for kept, tensor in zip(self.kept.values(), batch, strict=True)
        )
        return images, labels, teacher_logits

    def _make_room(self, batch: Batch) -> None:
        rows = (self.batches + 1) * self.batch_size
        for name, tensor in zip(NAMES, batch, strict=True):
            self.kept[name] = tensor.new_zeros((rows, *tensor.shape[1:]))

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """Return the kept batches, and how many there were."""
        return {"kept": dict(self.kept), "stored": self.stored}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise InputError if ``state`` has batches of another size or number."""
        rows = (self.batches + 1) * self.batch_size
        for name, tensor in state["kept"].items():
            own = self.kept.get(name)
            if len(tensor) != rows or (own is not None and own.shape != tensor.shape):
                raise InputError(
                    f"state: the kept {name} have shape {tuple(tensor.shape)}, the trainer keeps "
                    f"{rows if own is None else tuple(own.shape)}"
                )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load ``state``; tensors are copied, in place where they exist."""
        for name, tensor in state["kept"].items():
            if name not in self.kept:
                self.kept[name] = torch.empty_like(tensor, device=self.stored.device)
            self.kept[name].copy_(tensor)
        self.stored.copy_(state["stored"])


def _laid_out_like(example: Tensor, tensor: Tensor) -> Tensor:
    if example.dim() == 4 and example.is_contiguous(memory_format=torch.channels_last):
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor
