"""What is exported, and images to compare on: from a run folder or a packed file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from gdfq.convert import QuantizedModel
from gdfq.errors import InputError
from gdfq.export import packed
from gdfq.models import Generator
from gdfq.recipes import Recipe
from gdfq.recipes.networks import build_generator
from gdfq.runs.folder import load_run
from gdfq.runs.measure import open_batches
from gdfq.runs.picture import low_pass_of
from gdfq.sources import Preprocessing
from gdfq.training.checkpoint import newest_sound
from gdfq.training.parts.low_pass import make_images

GENERATED = 256  # images, where there is no data set and nobody says how many


@dataclass
class Images:
    """Batches of normalized images ``(N, C, H, W)`` with their labels, or None.

    ``range``: smallest and largest value of any image with pixels in [0, 1].
    """

    batches: Iterable[tuple[Tensor, Tensor | None]]
    name: str
    shape: tuple[int, int, int]
    range: tuple[float, float]

    @property
    def example(self) -> Tensor:
        """A batch as the network takes it, of zeros."""
        return torch.zeros(2, *self.shape, dtype=torch.float32)


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


def open_images(
    path: Path,
    recipe: Recipe,
    limit: int | None = None,
    given: Iterable[tuple[Tensor, Tensor]] | None = None,
) -> Images:
    """Images for the student at ``path``: the recipe's data set; without one, generated ones.

    Args:
        path: run folder or packed file.
        recipe: of the student.
        limit: how many; None is all of the data set, or 256 generated ones.
        given: batches that are used instead of both.

    Raises:
        InputError: the data set cannot be read; or there is none, and no checkpoint of a
            generator in the run folder either.
    """
    facts = _preprocessing(path, recipe)
    ends = [((0 - m) / s, (1 - m) / s) for m, s in zip(facts.mean, facts.std, strict=True)]
    limits = min(low for low, _ in ends), max(high for _, high in ends)
    shape = facts.channels, facts.image_size, facts.image_size
    if given is not None:
        name = "the images given" if limit is None else f"{limit:,} of the images given"
        return Images(given if limit is None else _first(given, limit), name, shape, limits)
    if recipe.teacher.data != "none":
        batches = open_batches(recipe, facts)
        count = min(limit or batches.pictures, batches.pictures)
        name = f"{count:,} test images of {batches.name}"
        return Images(_first(batches, count), name, shape, limits)
    sound = newest_sound(path, lambda problem: None) if path.is_dir() else None
    if sound is None:
        raise InputError(
            f"run: the recipe of {path} names no data set, and there is no checkpoint with a "
            "generator: no images to compare on"
        )
    generator = build_generator(recipe, facts)
    generator.load_state_dict(sound[1]["trainer"]["generator"])
    count = limit or GENERATED
    generated = _generated(generator, facts.num_classes, count, recipe)
    return Images(generated, f"{count:,} generated images", shape, limits)


def _preprocessing(path: Path, recipe: Recipe) -> Preprocessing:
    """What the network takes, as a finished run's recipe says it."""
    given = recipe.teacher.model_dump(include={f.name for f in fields(Preprocessing)})
    for key, value in given.items():
        if value is None:
            raise InputError(f"run: the recipe of {path} does not say teacher.{key}")
    return Preprocessing(**given)


def _first(batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in batches:
        yield images[:count], labels[:count]
        count -= len(images)
        if count <= 0:
            return


@torch.no_grad()
def _generated(
    generator: Generator, classes: int, count: int, recipe: Recipe
) -> Iterator[tuple[Tensor, None]]:
    """Images of all classes in turn, made as in training, in its batches."""
    random = torch.Generator().manual_seed(recipe.training.seed)
    size = recipe.training.batch_size
    low_pass = low_pass_of(recipe, torch.device("cpu"))
    for start in range(0, count, size):
        z = torch.randn((size, recipe.generator.latent_dim), generator=random, dtype=torch.float32)
        labels = torch.arange(start, start + size) % classes
        yield make_images(generator, low_pass, z, labels)[: count - start], None
