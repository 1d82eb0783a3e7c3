"""A run's folder: made, written to, and loaded from."""

from __future__ import annotations

import textwrap
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gdfq.convert import QuantizedModel
from gdfq.errors import InputError
from gdfq.files import is_partial, partial, remove, write_file
from gdfq.nn import QAct
from gdfq.recipes import Recipe, load_recipe
from gdfq.recipes.networks import TEACHER_FILE, build_student, build_teacher
from gdfq.sources import LoadedTeacher
from gdfq.training.memory_format import TORCH_FORMATS

STUDENT_FILE = "student.safetensors"


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
    """Bring networks into the memory format of a finished recipe, on which rounding depends."""
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
    """The network's state; what it has under several names, several times."""
    return {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }


def read_run(
    folder: Path, network: nn.Module | None = None
) -> tuple[Recipe, LoadedTeacher, QuantizedModel]:
    """Recipe and teacher of a run folder, and the student as it was before the run.

    Arguments and errors are those of :func:`load_run`.
    """
    if not (folder / "recipe.toml").is_file():
        raise InputError(f"run: {folder} is no run folder: it has no recipe.toml")
    recipe, teacher = build_teacher(load_recipe(str(folder / "recipe.toml")), network, folder)
    return recipe, teacher, build_student(recipe, teacher.network)


def shorten(error: Exception) -> str:
    """What ``error`` says, without the end of a list of hundreds of tensors."""
    return textwrap.shorten(str(error), 400, placeholder=" ...")


def load_run(
    folder: Path, network: nn.Module | None = None
) -> tuple[Recipe, LoadedTeacher, QuantizedModel]:
    """Recipe, teacher and student of a run folder.

    Args:
        folder: of the run.
        network: the teacher, where the run was given it in Python; of any weights.

    Raises:
        InputError: ``folder`` holds no run, or none that can be loaded.
    """
    recipe, teacher, student = read_run(folder, network)
    use_format(recipe, teacher.network, student)
    try:
        student.load_state_dict(load_file(folder / STUDENT_FILE))
    except (OSError, SafetensorError, InputError) as error:
        raise InputError(f"run: cannot load {folder / STUDENT_FILE}: {shorten(error)}") from error
    if not all(m.has_range for m in student.modules() if isinstance(m, QAct)):
        raise InputError(
            f"run: the student in {folder} has no activation ranges: its run failed before "
            "fine-tuning began"
        )
    return recipe, teacher, student
