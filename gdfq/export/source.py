"""Loading of a packed student to export, and of images to check an exported file on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gdfq.convert import QuantizedModel
from gdfq.data import open_batches
from gdfq.errors import InputError
from gdfq.export import packed
from gdfq.models import Generator
from gdfq.recipes import Recipe
from gdfq.recipes.images import images_in_turn
from gdfq.sources import Preprocessing

GENERATED = 256  # default number of generated images


@dataclass
class CheckImages:
    """Batches of normalized images ``(N, C, H, W)``, with labels of ``gdfq.data.Batches`` or None.

    ``range``: lower and upper bound of normalized values, for pixels in [0, 1].
    """

    batches: Iterable[tuple[Tensor, Tensor | None]]
    name: str
    shape: tuple[int, int, int]
    range: tuple[float, float]

    @property
    def example(self) -> Tensor:
        """A batch of zeros in the shape that the network takes."""
        return torch.zeros(2, *self.shape, dtype=torch.float32)


def open_packed(path: Path) -> tuple[Recipe, QuantizedModel]:
    """Return the recipe and the student of a packed file that names its recipe.

    Raises:
        InputError: ``path`` is not such a file.
    """
    header, _ = packed.read(path)
    found = header.parsed_recipe()
    if found is None:
        raise InputError(
            f"run: {path} names no recipe, so no network and no images; export it from Python"
        )
    return found, packed.load(path)


def open_images(
    recipe: Recipe,
    where: Path,
    limit: int | None = None,
    given: Iterable[tuple[Tensor, Tensor]] | None = None,
    make_generator: Callable[[], Generator | None] = lambda: None,
) -> CheckImages:
    """Return images for a student: its recipe's data set; without one, generated images.

    Generated images of another size than the network's input are resized to it.

    Args:
        recipe: of a run, complete.
        where: run folder or packed file, for messages.
        limit: number of images; None selects the whole data set, or 256 generated images.
        given: batches to use instead.
        make_generator: returns the run's generator, None if there is none.

    Raises:
        InputError: the data set cannot be read; or there is neither a data set nor a generator.
    """
    facts = _preprocessing(where, recipe)
    bounds = [((0 - m) / s, (1 - m) / s) for m, s in zip(facts.mean, facts.std, strict=True)]
    limits = min(lo for lo, _ in bounds), max(hi for _, hi in bounds)
    shape = facts.channels, facts.image_size, facts.image_size
    if given is not None:
        name = "the images given" if limit is None else f"{limit:,} of the images given"
        return CheckImages(given if limit is None else _first(given, limit), name, shape, limits)
    if recipe.teacher.data != "none":
        batches = open_batches(recipe, facts)
        count = min(limit or batches.pictures, batches.pictures)
        name = f"{count:,} test images of {batches.name}"
        return CheckImages(_first(batches, count), name, shape, limits)
    generator = make_generator()
    if generator is None:
        raise InputError(
            f"run: the recipe of {where} names no data set, and there is no checkpoint with a "
            "generator: no images to compare on"
        )
    count = limit or GENERATED
    generator = copy.deepcopy(generator).cpu()
    made = (
        (x if x.shape[1:] == shape else F.interpolate(x, shape[1:], mode="bilinear"), None)
        for x in images_in_turn(recipe, generator, facts.num_classes, count)
    )
    return CheckImages(made, f"{count:,} generated images", shape, limits)


def _preprocessing(path: Path, recipe: Recipe) -> Preprocessing:
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
