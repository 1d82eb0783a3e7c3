"""Settings of how a run is done."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, model_validator

from gdfq.distributed import World
from gdfq.environment import resolve_device
from gdfq.runs.tensorboard import require_tensorboard
from gdfq.settings import Settings


class Options(Settings):
    """How a run is done: nothing that a recipe decides.

    The command line's options and their help are made of these fields. A device ``"auto"`` is, for
    a resumed run, the one that it began on; TensorBoard must be installed to log to it.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    device: str = Field("cpu", description="cpu or cuda; auto takes a GPU where there is one")
    checkpoint_every: float = Field(
        60.0, ge=0, description="seconds between checkpoints; 0 for one after every step"
    )
    tensorboard: bool = Field(False, description="log to `tensorboard` in the run folder")
    workers: int | None = Field(
        None,
        ge=0,
        description="processes that decode test images; by default one a core, at most 8",
    )
    report: bool = Field(False, description="leave report.html in a finished run's folder")
    world: World = Field(
        default_factory=World,
        description="processes of the run; all read its folder, the first writes",
    )
    network: Any = Field(None, description="the teacher, if the caller has it as nn.Module")
    evaluate: Any = Field(
        None, description="what measures accuracy instead of the recipe's data set"
    )

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, values: Any) -> Any:
        return values  # what the caller gave stays the same object

    @model_validator(mode="after")
    def _available(self) -> Options:
        resolve_device(self.device)
        if self.tensorboard:
            require_tensorboard()
        return self
