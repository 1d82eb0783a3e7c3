"""A recipe's networks: teacher, student, generator."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gdfq import models
from gdfq.convert import QuantizedModel, quantize_model
from gdfq.distributed import World
from gdfq.recipes import Recipe
from gdfq.sources import LoadedTeacher, Preprocessing, find_source, load_teacher
from gdfq.training import GDFQTrainer


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
        leaf_modules=spec.leaf_modules,
        zero_in_range=spec.zero_in_range,
        learned_ranges=spec.learned_ranges,
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


def build_trainer(
    recipe: Recipe, teacher: LoadedTeacher, generator: nn.Module, world: World | None = None
) -> GDFQTrainer:
    """The recipe's trainer of a new student, at step 0; it trains ``generator`` in place."""
    return GDFQTrainer(
        teacher.network,
        build_student(recipe, teacher.network),
        generator,
        teacher.preprocessing.num_classes,
        **recipe.training.model_dump(),
        parts=recipe.parts.build(),
        start=recipe.start.build(),
        world=world,
    )
