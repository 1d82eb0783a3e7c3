"""How a trainer runs its steps, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from gdfq.training.trainer import GDFQTrainer


def describe(trainer: GDFQTrainer) -> str:
    """Return how steps are run: memory format, execution, and what is fused."""
    seconds = trainer.memory_format_seconds
    timed = ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items())
    lines = (
        f"memory format: {trainer.memory_format}" + (f" (a step in {timed})" if timed else ""),
        f"execution: {trainer.execution}, {trainer.training.precision}",
        f"start: {trainer.start.describe()}",
        f"parts: {trainer.part_settings.describe()}",
        f"fusion: {'none' if trainer.fused is None else trainer.fused.summary()}",
        *trainer.teacher.describe_unrecorded(),
        *_frozen(trainer.student),
    )
    return "\n".join(lines)


def _frozen(student: nn.Module) -> list[str]:
    """Return a line about the parameters that are not trained, if there are any."""
    parameters = dict(student.named_parameters())
    frozen = [name for name, value in parameters.items() if not value.requires_grad]
    if not frozen:
        return []
    listed = ", ".join(frozen[:5]) + (", ..." if len(frozen) > 5 else "")
    return [f"frozen: {len(frozen)} of {len(parameters)} parameters: {listed}"]
