"""What is exported, and images to compare on: from a run folder or a packed file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gdfq import models, packed
from gdfq.convert import QuantizedModel
from gdfq.data import load_test_images
from gdfq.errors import InputError
from gdfq.recipes import Recipe
from gdfq.run import load_run
from gdfq.training.checkpoint import newest_sound

GENERATED = 256  # images, where there is no data set and nobody says how many


@dataclass
class Images:
    """Normalized images ``(N, C, H, W)``, their labels if known, what they are, and their range.

    ``range``: smallest and largest value of any image with pixels in [0, 1].
    """

    images: Tensor
    labels: Tensor | None
    name: str
    range: tuple[float, float]


def open_student(path: Path) -> tuple[Recipe, QuantizedModel]:
    """Recipe and student of a run folder, or of a packed file that names its recipe.

    Raises:
        InputError: ``path`` is neither.
    """
    if path.is_dir():
        recipe, _, student = load_run(path)
        return recipe, student
    header, _ = packed.read(path)
    found = header.parsed_recipe()
    if found is None:
        raise InputError(
            f"run: {path} names no recipe, so no network and no images; export it from Python"
        )
    return found, packed.load(path)


def open_images(path: Path, recipe: Recipe, limit: int | None = None) -> Images:
    """Images for the student at ``path``: the recipe's data set; without one, generated ones.

    Args:
        path: run folder or packed file.
        recipe: of the student.
        limit: how many; None is all of the data set, or 256 generated ones.

    Raises:
        InputError: the data set cannot be read; or there is none, and no checkpoint of a
            generator in the run folder either.
    """
    spec = recipe.teacher
    ends = [((0 - m) / s, (1 - m) / s) for m, s in zip(spec.mean, spec.std, strict=True)]
    limits = min(low for low, _ in ends), max(high for _, high in ends)
    if spec.data != "none":
        images, labels = load_test_images(spec.data, spec.mean, spec.std)
        return Images(images[:limit], labels[:limit], f"test images of {spec.data}", limits)
    sound = newest_sound(path, lambda problem: None) if path.is_dir() else None
    if sound is None:
        raise InputError(
            f"run: the recipe of {path} names no data set, and there is no checkpoint with a "
            "generator: no images to compare on"
        )
    generator = models.Generator(
        spec.num_classes, spec.image_size, spec.channels, **recipe.generator.model_dump()
    )
    generator.load_state_dict(sound[1]["trainer"]["generator"])
    images = _generate(generator, limit or GENERATED, recipe)
    return Images(images, None, "generated images", limits)


@torch.no_grad()
def _generate(generator: models.Generator, count: int, recipe: Recipe) -> Tensor:
    """Images of all classes, made as in training: with the batch norms of training mode."""
    random = torch.Generator().manual_seed(recipe.training.seed)
    batches = []
    for start in range(0, count, GENERATED):
        size = max(2, min(GENERATED, count - start))
        z = torch.randn((size, recipe.generator.latent_dim), generator=random)
        labels = torch.arange(size) % recipe.teacher.num_classes
        batches.append(generator(z, labels))
    return torch.cat(batches)[:count]
