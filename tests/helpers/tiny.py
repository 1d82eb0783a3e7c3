"""A small trained-looking teacher for tests of the training loop, and a count of operators."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gdfq
from gdfq.training import Parts

# Each part alone, and as many at once as go together.
EACH_PART = {
    "logit_mse": Parts(objective="logit_mse"),
    "kl_only": Parts(objective="kl_only"),
    "ce_weight": Parts(ce_weight=0.1),
    "ce_gate": Parts(ce_gate=0.5),
    "hard_sample_gamma": Parts(hard_sample_gamma=2.0),
    "hard_sample_step": Parts(hard_sample_step=0.01),
    "code_change_share": Parts(code_change_share=0.02),
    "max_grad_norm": Parts(max_grad_norm=0.1),
    "mix": Parts(mix_probability=0.4),
    "low_pass": Parts(low_pass=2.0),
    "bns_spread": Parts(bns_spread="std"),
    "bns_layers": Parts(bns_layers=["4"]),
    "bns_of": Parts(bns_of="both"),
    "ema": Parts(ema_decay=0.9),
    "replay": Parts(replay_batches=2),
    "all": Parts(
        objective="logit_mse",
        ce_weight=0.1,
        ce_gate=0.5,
        hard_sample_gamma=2.0,
        hard_sample_step=0.01,
        code_change_share=0.02,
        mix_probability=0.4,
        low_pass=2.0,
        bns_spread="std",
        bns_layers=["4"],
        bns_of="both",
        ema_decay=0.9,
        replay_batches=2,
    ),
}


def tiny_teacher(num_classes: int = 4, channels: int = 2) -> nn.Module:
    """Two convolutions with batch norms that have seen data, and a linear layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, num_classes),
        )
        with torch.no_grad():
            for _ in range(20):
                model(torch.randn(64, channels, 8, 8))
            model[-1].weight *= 20  # so that the class depends on the image
    return model.eval()


def tiny_trainer(
    teacher: nn.Module | None = None,
    bits: int = 4,
    learned_ranges: str = "none",
    kind: type[gdfq.GDFQTrainer] = gdfq.GDFQTrainer,
    dynamic_ranges: str = "none",
    student: nn.Module | None = None,
    **options,
) -> gdfq.GDFQTrainer:
    """A trainer of a few fast steps, everything seeded."""
    teacher = teacher or tiny_teacher()
    student = student or gdfq.quantize_model(
        teacher, bits, bits, learned_ranges=learned_ranges, dynamic_ranges=dynamic_ranges
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        generator = gdfq.models.Generator(4, 8, channels=2, latent_dim=10, width=8)
    settings = {
        "epochs": 3,
        "steps_per_epoch": 4,
        "warmup_epochs": 1,
        "calibration_batches": 2,
        "student_lr": 1e-3,
        "milestones": (2,),
        "memory_format": "contiguous",  # timing decides about "auto"
    }
    return kind(
        teacher, student, generator, num_classes=4, batch_size=16, **{**settings, **options}
    )


class Operators(TorchDispatchMode):
    """Within, operators are counted; of convolutions' backwards weight and output mask are kept."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()
        self.masks = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.name()] += 1
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append((args[2].data_ptr(), args[-1]))
        return func(*args, **(kwargs or {}))

    def named(self, *names):
        return {k: n for k, n in self.counts.items() if k.startswith(names)}
