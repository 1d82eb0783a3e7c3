"""The implementations to measure: this package's trainer, and rivals in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from gdfq.bench.networks import Workload, build
from gdfq.bench.plain import PlainTrainer
from gdfq.convert import quantize_model
from gdfq.distributed import World
from gdfq.errors import InputError
from gdfq.models import Generator
from gdfq.ops._checks import check_choice
from gdfq.training import GDFQTrainer
from gdfq.training.precision import Precision

Rival = Literal["plain", "frozen", "compile", "max-autotune"]
RIVALS: dict[Rival, tuple[str, dict[str, Any]]] = {
    "plain": ("plain PyTorch", {}),
    "frozen": ("plain, teacher frozen", {"frozen_teacher": True}),
    "compile": (
        "torch.compile of plain, teacher frozen",
        {"frozen_teacher": True, "compiled": "default"},
    ),
    # Plain max-autotune captures CUDA graphs inside our capture, which CUDA does not allow.
    "max-autotune": (
        "torch.compile max-autotune, teacher frozen, in one CUDA graph",
        {"frozen_teacher": True, "compiled": "max-autotune-no-cudagraphs", "captured": True},
    ),
}
NEED_CUDA: tuple[Rival, ...] = ("max-autotune",)


@dataclass
class Settings:
    """Settings of a measurement.

    Attributes:
        steps: measured steps.
        warm_up: train the generator only.
        fuse: of our trainer.
        pages_kept: run rivals, too, with freed memory kept.
        trainer: further arguments of our trainer.
        rival_precision: of the rivals; None is the trainer's.
    """

    weight_bits: int = 4
    act_bits: int = 4
    steps: int = 7
    warm_up: bool = False
    device: str = "cpu"
    fuse: bool = True
    pages_kept: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)
    rival_precision: Precision | None = None


def make(name: str, workload: Workload, settings: Settings, world: World | None = None) -> Any:
    """Create our trainer, ``"ours"``, or a rival's."""
    torch.manual_seed(0)
    generator = Generator(
        workload.num_classes, workload.image_size, conditional_bn=workload.conditional_bn
    ).to(settings.device)
    teacher = build(workload).to(settings.device)
    bits = settings.weight_bits, settings.act_bits
    if name != "ours":
        options: dict[str, Any] = {
            "precision": settings.rival_precision or settings.trainer.get("precision", "fp32"),
            "warm_up": settings.warm_up,
            **RIVALS[name][1],  # type: ignore[index]
        }
        return PlainTrainer(teacher, generator, workload.batch_size, *bits, **options)
    return GDFQTrainer(
        teacher,
        quantize_model(teacher, *bits),
        generator,
        workload.num_classes,
        workload.batch_size,
        warmup_epochs=400 if settings.warm_up else 0,
        calibration_batches=1,
        fuse=settings.fuse,
        world=world,
        **settings.trainer,
    )


def check_rivals(names: Sequence[str], device: str) -> list[Any]:
    """Return ``names`` without repeats; raise InputError if one is unknown or needs CUDA."""
    for name in names:
        check_choice("against", name, get_args(Rival))
        if name in NEED_CUDA and device != "cuda":
            raise InputError(f"against: {name!r} needs a CUDA device, got {device}")
    return list(dict.fromkeys(names))
