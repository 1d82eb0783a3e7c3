"""A recipe's networks: teacher, student, generator."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gdfq import models
from gdfq.convert import QuantizedModel, quantize_model
from gdfq.distributed import World
from gdfq.errors import InputError
from gdfq.recipes import Recipe
from gdfq.sources import LoadedTeacher, Preprocessing, find_source, load_teacher
from gdfq.training import GDFQTrainer
from gdfq.training.start.sequence import prepare

# In a run's folder: the weights of a teacher that the caller gave.
TEACHER_FILE = "teacher.safetensors"


def build_teacher(
    recipe: Recipe, network: nn.Module | None = None, folder: Path | None = None
) -> tuple[Recipe, LoadedTeacher]:
    """Return the recipe, completed by its teacher's properties, and the teacher.

    Args:
        recipe: names the teacher.
        network: what it names, where the caller has it.
        folder: of the run; its own file of weights is named without it.

    Raises:
        InputError: see :func:`gdfq.sources.load_teacher`.
    """
    given = recipe.teacher.model_dump(exclude={"data_path"})
    teacher = load_teacher(**given, seed=recipe.training.seed, network=network)
    found = {**teacher.preprocessing.fields(), "weights": teacher.weights}
    if folder is not None and teacher.weights == str((folder / TEACHER_FILE).resolve()):
        found["weights"] = TEACHER_FILE
    if recipe.teacher.data_path is not None:
        found["data_path"] = str(Path(recipe.teacher.data_path).resolve())
    return recipe.with_options(found), teacher


def build_network(recipe: Recipe) -> nn.Module:
    """Return the recipe's network in evaluation mode, without loading weights.

    Raises:
        InputError: its source has no such network.
    """
    given = recipe.teacher.model_dump(include={"num_classes", "image_size", "channels"})
    with torch.random.fork_rng():
        source = find_source(recipe.teacher.model)
        network = source.build(None, {k: v for k, v in given.items() if v is not None})
        return network.float().eval()


@torch.no_grad()
def check_factory(recipe: Recipe, teacher: nn.Module) -> None:
    """Check that the recipe's factory, with ``teacher``'s weights, makes the same network.

    Raises:
        InputError: it does not.
    """
    factory = recipe.teacher.model
    network = build_network(recipe)
    try:
        network.load_state_dict(teacher.state_dict())
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise InputError(f"factory: {factory} makes another network: {problem}") from error
    size = recipe.teacher.image_size
    shape = (2, recipe.teacher.channels, size, size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)  # type: ignore[arg-type]
    images[1] *= 100  # far out, where one activation function differs from another
    if not torch.equal(network(images), teacher(images)):
        raise InputError(
            f"factory: {factory} makes another network: its logits differ for the same weights"
        )


def build_student(recipe: Recipe, teacher: nn.Module) -> QuantizedModel:
    """Return the quantized copy of ``teacher``, with buffers for its ranges, not yet set."""
    student = quantize_model(teacher, bits=recipe.exceptions(), **dict(recipe.quantization))
    prepare(recipe.start, student)
    return student


def build_generator(recipe: Recipe, preprocessing: Preprocessing) -> models.Generator:
    """Return the recipe's generator of such images, initialized from the recipe's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.training.seed)
        return models.Generator(
            preprocessing.num_classes,
            recipe.generator.generated_size or preprocessing.image_size,
            preprocessing.channels,
            **recipe.generator.model_dump(exclude={"generated_size"}),
        ).float()


def build_trainer(
    recipe: Recipe, teacher: LoadedTeacher, generator: nn.Module, world: World | None = None
) -> GDFQTrainer:
    """Return the recipe's trainer of a new student, at step 0; it trains ``generator`` in place."""
    return GDFQTrainer(
        teacher.network,
        build_student(recipe, teacher.network),
        generator,
        teacher.preprocessing.num_classes,
        **recipe.training.model_dump(),
        parts=recipe.parts,
        start=recipe.start,
        world=world,
    )
