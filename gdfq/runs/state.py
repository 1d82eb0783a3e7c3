"""What a run has come to: its recipe and its networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gdfq.convert import QuantizedModel
from gdfq.errors import InputError
from gdfq.models import Generator
from gdfq.nn import QAct, average_weight_bits, float_weight_share
from gdfq.recipes import Recipe
from gdfq.recipes.networks import build_generator
from gdfq.runs.folder import STUDENT_FILE, read_run, shorten, use_format
from gdfq.runs.measure import effective_bits
from gdfq.sources import LoadedTeacher
from gdfq.training.checkpoint import newest_sound
from gdfq.training.parts.average import averaged_state


@dataclass
class RunState:
    """A run's recipe and networks after so many steps.

    Attributes:
        folder: of the run.
        recipe: in full.
        teacher: the float network.
        student: its quantized copy.
        generator: of the images; None where it was not kept.
        step: steps done.
        counts: by ``"teacher"`` and ``"student"``, how the test images were taken, see
            :func:`gdfq.data.confusion`, where that has been measured.
        result: fields of :class:`gdfq.runs.measure.Result`, as far as they are known.
    """

    folder: Path
    recipe: Recipe
    teacher: LoadedTeacher
    student: QuantizedModel
    generator: Generator | None
    step: int
    counts: dict[str, Tensor]
    result: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.teacher.network.parameters()).device

    @property
    def calibrated(self) -> bool:
        """Whether the student's activation ranges are set."""
        acts = [module for module in self.student.modules() if isinstance(module, QAct)]
        return all(act.has_range for act in acts)


def read_json(path: Path) -> dict[str, Any]:
    """What is in a file of JSON; empty where that cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def open_run(
    folder: Path,
    report: Callable[[str], None],
    device: str = "cpu",
    network: nn.Module | None = None,
) -> RunState:
    """The state of the run in ``folder``, finished or not.

    Args:
        folder: of the run.
        report: told, in a line, about each file that cannot be used.
        device: where the networks are put.
        network: the teacher, where the run was given it in Python; of any weights.

    Raises:
        InputError: ``folder`` holds no run, or its teacher cannot be built.
    """
    recipe, teacher, student = read_run(folder, network)
    generator: Generator | None = build_generator(recipe, teacher.preprocessing)
    assert generator is not None
    result = read_json(folder / "result.json")
    found = newest_sound(folder, report)
    step = 0
    if found is None:
        generator = None
    else:
        trained = found[1]["trainer"]
        step = trained["steps_done"]
        known = {key: found[1].get(key) for key in ("before", "evaluation", "training_seconds")}
        result = {**known, **result}
        generator.load_state_dict(trained["generator"])
        student.load_state_dict(averaged_state(trained))
    # Later than any checkpoint: of a run that ended, or of one whose checkpoints are gone.
    if result.get("finished") or result.get("failure") or found is None:
        try:
            student.load_state_dict(load_file(folder / STUDENT_FILE))
            step = result.get("steps", step)
        except (OSError, SafetensorError, InputError) as error:
            report(f"cannot load {folder / STUDENT_FILE}: {shorten(error)}")
    if "average_weight_bits" not in result:
        with suppress(InputError):  # the network computes all its weights
            result["average_weight_bits"] = average_weight_bits(student)
            result["float_weight_share"] = float_weight_share(student)
            effective = effective_bits(student, teacher.preprocessing)
            result["effective_weight_bits"], result["effective_act_bits"] = effective
    networks = [n for n in (teacher.network, student, generator) if n is not None]
    use_format(recipe, *networks)
    for network in networks:
        network.to(device)
    return RunState(folder, recipe, teacher, student, generator, step, {}, result)
