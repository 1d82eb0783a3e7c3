"""The training loop."""

from gdfq.training.trainer import GDFQTrainer, TrainerCallback

__all__ = ["GDFQTrainer", "TrainerCallback"]
