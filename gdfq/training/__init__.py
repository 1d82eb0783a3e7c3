"""The training loop."""

from gdfq.training.parts import Parts
from gdfq.training.trainer import GDFQTrainer, TrainerCallback

__all__ = ["GDFQTrainer", "Parts", "TrainerCallback"]
