"""The training loop."""

from gdfq.training.callback import TrainerCallback
from gdfq.training.parts import Parts
from gdfq.training.settings import Training
from gdfq.training.start import Start
from gdfq.training.trainer import GDFQTrainer

__all__ = ["GDFQTrainer", "Parts", "Start", "TrainerCallback", "Training"]
