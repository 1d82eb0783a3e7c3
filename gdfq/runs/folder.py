"""A run's folder: its files' names, and how they are written.

``recipe.toml`` comes first, so that a run that was killed can be resumed, and is locked while the
run is in progress. What each file holds and who reads it: the table in ``docs/running.md``. The
names that lower layers need too are :data:`gdfq.recipes.networks.TEACHER_FILE`,
:data:`gdfq.export.files.PACKED`, and those of :mod:`gdfq.training.checkpoint`.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.files import is_partial, partial, remove, write_file
from gdfq.recipes import Recipe
from gdfq.recipes.networks import TEACHER_FILE
from gdfq.training.memory_format import TORCH_FORMATS

RECIPE = "recipe.toml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
STUDENT = "student.safetensors"
IMAGES = "images.png"
RESULT = "result.json"
MEASURED = "report.json"
PAGE = "report.html"
TENSORBOARD = "tensorboard"


def create_folder(folder: Path) -> None:
    """Make ``folder``, which must not exist or be empty, and be writable."""
    try:
        if folder.is_dir() and not all(map(is_partial, folder.iterdir())):
            raise InputError(f"out: {folder} exists and is not empty; nothing is overwritten")
        folder.mkdir(parents=True, exist_ok=True)
        remove(folder.iterdir())
        probe = partial(folder / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"out: cannot write to {folder}: {error.strerror}") from error


def use_format(recipe: Recipe, *networks: nn.Module) -> None:
    """Bring networks into the memory format of a run's recipe, on which rounding depends."""
    name = recipe.training.memory_format
    for network in networks:
        network.to(memory_format=TORCH_FORMATS["channels_last" if name == "auto" else name])


def save_student(student: nn.Module, recipe: Recipe, path: Path) -> None:
    """Write the student's state as safetensors; loading it gives the same outputs bit for bit."""
    # One entry: safetensors writes several in an order that changes from run to run.
    # Written by Python, so that the file gets the permissions of any other.
    write_file(path, save(_state(student), metadata={"recipe": recipe.to_toml()}))


def save_teacher(teacher: nn.Module, folder: Path) -> None:
    """Write the weights of a teacher that the caller gave into the run's folder."""
    write_file(folder / TEACHER_FILE, save(_state(teacher)))


def _state(network: nn.Module) -> dict[str, Tensor]:
    """Return the network's state; a tensor with several names is in it several times."""
    return {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if it cannot be read or is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def shorten(error: Exception) -> str:
    """Return the error's message without the end of a list of hundreds of tensors."""
    return textwrap.shorten(str(error), 400, placeholder=" ...")


def device_of(folder: Path) -> str:
    """Return the device that the run in ``folder`` began on; "auto" if it is not known."""
    device = read_json(folder / ENVIRONMENT).get("device")
    return device if isinstance(device, str) else "auto"
