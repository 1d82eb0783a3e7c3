"""How a run is done."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import nn

from gdfq.distributed import World
from gdfq.environment import resolve_device
from gdfq.errors import InputError
from gdfq.runs.accuracy import Evaluate
from gdfq.runs.tensorboard import require_tensorboard


@dataclass(frozen=True)
class Options:
    """How a run is done: nothing that a recipe decides.

    Attributes:
        device: what the run computes on; rounding depends on it. ``"auto"`` is a GPU if there is
            one, and for a resumed run the device that it began on.
        checkpoint_every: seconds between checkpoints; 0 is one after every step.
        tensorboard: log to ``tensorboard`` in the run's folder; a resumed run that has this folder
            goes on logging.
        workers: processes that decode test images, see :class:`gdfq.data.Batches`.
        world: the processes of the run. All start or resume it, the first writes, and all read: a
            resumed run's folder is one that every machine sees.
        report: leave ``report.json`` and ``report.html`` in the folder of a finished run. An error
            there is a warning.
        network: the teacher, if the caller has it; the recipe names it.
        evaluate: what accuracy is measured with, instead of the recipe's data set.

    Raises:
        InputError: there is no such device, ``checkpoint_every`` is negative, or TensorBoard is not
            installed.
    """

    device: str = "cpu"
    checkpoint_every: float = 60.0
    tensorboard: bool = False
    workers: int | None = None
    world: World = field(default_factory=World)
    report: bool = False
    network: nn.Module | None = field(default=None, kw_only=True)
    evaluate: Evaluate | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        resolve_device(self.device)
        if not 0 <= self.checkpoint_every < math.inf:
            raise InputError(
                f"checkpoint_every: must be a number of seconds >= 0, got {self.checkpoint_every}"
            )
        if self.tensorboard:
            require_tensorboard()
