"""A run's parts: its folder, its networks, what is measured and shown of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from gdfq import models
from gdfq.convert import QuantizedModel, quantize_model
from gdfq.data import Batches, class_names, open_test_set, top1
from gdfq.distributed import World
from gdfq.errors import InputError
from gdfq.files import is_partial, partial, remove, write_file
from gdfq.nn import QAct
from gdfq.recipes import Recipe, load_recipe
from gdfq.runs.picture import image_grid
from gdfq.sources import LoadedTeacher, Preprocessing, find_source, load_teacher
from gdfq.training import GDFQTrainer
from gdfq.training.memory_format import TORCH_FORMATS


@dataclass
class Result:
    """The closing table of a run: top-1 in percent, None where it was not measured."""

    name: str
    weight_bits: int
    act_bits: int
    average_weight_bits: float
    seed: int
    steps: int
    finished: bool
    training_seconds: float
    teacher: float | None = None
    before: float | None = None
    after: float | None = None
    evaluation: str = "not asked for"
    failure: str | None = None


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


def build_teacher(recipe: Recipe) -> tuple[Recipe, LoadedTeacher]:
    """The recipe's teacher, and the recipe with everything about it filled in.

    Raises:
        InputError: see :func:`gdfq.sources.load_teacher`.
    """
    given = recipe.teacher.model_dump(exclude={"data_path"})
    teacher = load_teacher(**given, seed=recipe.training.seed)
    found = {**teacher.preprocessing.fields(), "weights": teacher.weights}
    if recipe.teacher.data_path is not None:
        found["data_path"] = str(Path(recipe.teacher.data_path).resolve())
    return recipe.with_options(found), teacher


def build_network(recipe: Recipe) -> nn.Module:
    """The recipe's network, in evaluation mode; no weights are looked for.

    Raises:
        InputError: its source has no such network.
    """
    given = recipe.teacher.model_dump(include={"num_classes", "image_size", "channels"})
    with torch.random.fork_rng():
        source = find_source(recipe.teacher.model)
        return source.build(None, {k: v for k, v in given.items() if v is not None}).eval()


def build_student(recipe: Recipe, teacher: nn.Module) -> QuantizedModel:
    """The quantized copy of ``teacher``, its ranges not yet set."""
    spec = recipe.quantization
    return quantize_model(
        teacher,
        spec.weight_bits,
        spec.act_bits,
        bits=recipe.exceptions(),
        first_last_bits=spec.first_last_bits,
        ste=spec.ste,
        momentum=spec.range_momentum,
    )


def build_generator(recipe: Recipe, images: Preprocessing) -> models.Generator:
    """The recipe's generator of such images, its first weights drawn from the recipe's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.training.seed)
        return models.Generator(
            images.num_classes,
            images.image_size,
            images.channels,
            **recipe.generator.model_dump(),
        )


def _use_format(recipe: Recipe, *networks: nn.Module) -> None:
    """Bring networks into the memory format of a finished recipe, on which rounding depends."""
    name = recipe.training.memory_format
    for network in networks:
        network.to(memory_format=TORCH_FORMATS["channels_last" if name == "auto" else name])


def open_batches(
    recipe: Recipe,
    images: Preprocessing,
    workers: int | None = None,
    world: World | None = None,
) -> Batches:
    """The test images that the recipe names, this process's share of them.

    Raises:
        InputError: it names none, or they cannot be opened; the message has the path.
    """
    spec = recipe.teacher
    if spec.data == "none":
        raise InputError("data: the recipe names no data set to measure on")
    world = world or World()
    test_set = open_test_set(spec.data, spec.data_path, images.num_classes)
    return Batches(test_set, images, workers=workers, rank=world.rank, ranks=world.size)


class Measure:
    """Top-1 on the recipe's data set, or None with the reason in the result."""

    def __init__(
        self,
        recipe: Recipe,
        images: Preprocessing,
        workers: int | None,
        result: Result,
        world: World,
    ) -> None:
        self.recipe = recipe
        self.images = images
        self.workers = workers
        self.result = result
        self.world = world
        self.batches: Batches | None = None

    def __call__(self, model: nn.Module) -> float | None:
        """Top-1 of ``model`` in percent."""
        if self.recipe.teacher.data == "none":
            return None
        problem = ""
        try:
            if self.batches is None:
                self.batches = open_batches(self.recipe, self.images, self.workers, self.world)
        except InputError as error:
            problem = str(error)
        try:
            if self.world.any(bool(problem)) or self.batches is None:
                raise InputError(problem or "data: another process cannot open it")
            share = top1(model, self.batches, self.world)
        except InputError as error:
            self.result.evaluation = f"skipped: {error}"
            return None
        pictures = self.world.total(self.batches.pictures)
        self.result.evaluation = f"{pictures:,} test images of {self.batches.name}"
        return share


def save_student(student: nn.Module, recipe: Recipe, path: Path) -> None:
    """Write the student's state as safetensors; loading it gives the same outputs bit for bit."""
    state = {name: value.contiguous() for name, value in student.state_dict().items()}
    # One entry: safetensors writes several in an order that changes from run to run.
    # Written by Python, so that the file gets the permissions of any other.
    write_file(path, save(state, metadata={"recipe": recipe.to_toml()}))


def load_run(folder: Path) -> tuple[Recipe, LoadedTeacher, QuantizedModel]:
    """Recipe, teacher and student of a run folder."""
    if not (folder / "recipe.toml").is_file():
        raise InputError(f"run: {folder} is no run folder: it has no recipe.toml")
    recipe, teacher = build_teacher(load_recipe(str(folder / "recipe.toml")))
    student = build_student(recipe, teacher.network)
    _use_format(recipe, teacher.network, student)
    try:
        student.load_state_dict(load_file(folder / "student.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"run: cannot load {folder / 'student.safetensors'}: {error}") from error
    if not all(m.num_batches_tracked for m in student.modules() if isinstance(m, QAct)):
        raise InputError(
            f"run: the student in {folder} has no activation ranges: its run failed before "
            "fine-tuning began"
        )
    return recipe, teacher, student


# Of the picture: classes, and images of each.
ROWS, COLUMNS = 20, 10


@torch.no_grad()
def picture(recipe: Recipe, images: Preprocessing, trainer: GDFQTrainer) -> Image.Image:
    """One row of generated images per class, the first classes where there are many.

    They are made as in training, in batches that are balanced over the classes shown and, as far
    as that goes, no larger than training's.
    """
    names = class_names(recipe.teacher.data, images.num_classes)[:ROWS]
    random = torch.Generator(trainer.device).manual_seed(recipe.training.seed)
    generator = copy.deepcopy(trainer.generator)  # a forward moves its running statistics
    columns = max(1, recipe.training.batch_size // len(names))
    parts = []
    for first in range(0, COLUMNS, columns):
        repeats = min(columns, COLUMNS - first)
        labels = torch.arange(len(names), device=trainer.device).repeat_interleave(repeats)
        shape = (len(labels), recipe.generator.latent_dim)
        z = torch.randn(shape, generator=random, device=trainer.device)
        parts.append(generator(z, labels).cpu().unflatten(0, (len(names), repeats)))
    return image_grid(list(torch.cat(parts, 1)), names, images.mean, images.std)
