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

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gdfq.errors import InputError

NAMES = ("images", "labels", "teacher_logits")


class Replay:
    """The kept batches.

    Args:
        batches: how many older ones are kept.
        share: of a batch that comes from these.
        batch_size: rows of each.
        random: where all random numbers are drawn from.
        device: of batches and ``random``.
    """

    def __init__(
        self,
        batches: int,
        share: float,
        batch_size: int,
        random: torch.Generator,
        device: torch.device,
    ) -> None:
        self.batches = batches
        self.share = share
        self.batch_size = batch_size
        self.random = random
        self.stored = torch.zeros((), dtype=torch.int64, device=device)
        self.kept: dict[str, Tensor] = {}  # rows of all batches, one batch after the other

    def __call__(self, *batch: Tensor) -> list[Tensor]:
        """Images, labels and teacher's logits with some rows replaced by older ones.

        The given batch is kept; the oldest makes room for it.
        """
        if not self.kept:
            self._make_room(batch)
        device, places = self.stored.device, self.batches + 1
        row = torch.arange(self.batch_size, device=device)
        place = self.stored % places
        replaced, which = torch.rand(
            (2, self.batch_size), generator=self.random, device=device, dtype=torch.float32
        ).unbind()
        older = self.stored.clamp(max=self.batches)
        back = torch.minimum(1 + (which * older).long(), older)
        taken = (place - torch.where(replaced < self.share, back, 0)) % places
        for kept, tensor in zip(self.kept.values(), batch, strict=True):
            kept.index_copy_(0, place * self.batch_size + row, tensor)
        self.stored.add_(1)
        rows = taken * self.batch_size + row
        return [
            _laid_out_like(tensor, kept.index_select(0, rows))
            for kept, tensor in zip(self.kept.values(), batch, strict=True)
        ]

    def _make_room(self, batch: tuple[Tensor, ...]) -> None:
        rows = (self.batches + 1) * self.batch_size
        for name, tensor in zip(NAMES, batch, strict=True):
            self.kept[name] = tensor.new_zeros((rows, *tensor.shape[1:]))

    # ---- what it takes to go on later ----

    def state_dict(self) -> dict[str, Any]:
        """The kept batches, and how many there were."""
        return {"kept": dict(self.kept), "stored": self.stored}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise an InputError if ``state`` is of batches of another size or number."""
        rows = (self.batches + 1) * self.batch_size
        for name, tensor in state["kept"].items():
            own = self.kept.get(name)
            if len(tensor) != rows or (own is not None and own.shape != tensor.shape):
                raise InputError(
                    f"state: the kept {name} have shape {tuple(tensor.shape)}, the trainer keeps "
                    f"{rows if own is None else tuple(own.shape)}"
                )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; tensors are copied, in place where there are some."""
        for name, tensor in state["kept"].items():
            if name not in self.kept:
                self.kept[name] = torch.empty_like(tensor, device=self.stored.device)
            self.kept[name].copy_(tensor)
        self.stored.copy_(state["stored"])


def _laid_out_like(example: Tensor, tensor: Tensor) -> Tensor:
    if example.dim() == 4 and example.is_contiguous(memory_format=torch.channels_last):
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor
