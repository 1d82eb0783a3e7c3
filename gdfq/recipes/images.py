"""Images of a recipe's generator, made as training makes them."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gdfq.recipes import Recipe
from gdfq.training.generated import GeneratedImages
from gdfq.training.parts import make_parts


def generated_images(
    recipe: Recipe, generator: nn.Module, classes: int, rng: torch.Generator
) -> GeneratedImages:
    """Return the images that a copy of ``generator`` makes with the recipe's parts.

    Args:
        recipe: of the run.
        generator: the run's; it is left as it is.
        classes: that the teacher has.
        rng: source of all random numbers, on the generator's device.
    """
    generator = copy.deepcopy(generator).train()  # a forward moves its running statistics
    parts = make_parts(recipe.parts)
    return GeneratedImages(generator, classes, recipe.training.batch_size, rng, parts)


def seeded(recipe: Recipe, generator: nn.Module) -> torch.Generator:
    """Return a source of random numbers on the generator's device, seeded as the recipe says."""
    device = next(generator.parameters()).device
    return torch.Generator(device).manual_seed(recipe.training.seed)


@torch.no_grad()
def class_images(recipe: Recipe, generator: nn.Module, classes: int, count: int) -> Tensor:
    """Return ``(classes, count, C, H, W)`` images of the first classes, on the CPU.

    They are made in batches that are balanced over these classes and, as far as that goes, no
    larger than training's.
    """
    images = generated_images(recipe, generator, classes, seeded(recipe, generator))
    columns = max(1, images.batch_size // classes)
    made = []
    for first in range(0, count, columns):
        repeats = min(columns, count - first)
        labels = torch.arange(classes, device=images.device).repeat_interleave(repeats)
        batch = images.make(images.noise(len(labels)), labels)
        made.append(batch.cpu().unflatten(0, (classes, repeats)))
    return torch.cat(made, 1)


@torch.no_grad()
def random_images(
    recipe: Recipe, generator: nn.Module, classes: int, count: int, rng: torch.Generator
) -> Tensor:
    """Return ``(count, C, H, W)`` images, drawn and made as training's batches are."""
    images = generated_images(recipe, generator, classes, rng)
    batches = range(0, count, images.batch_size)
    return torch.cat([images.make(*images.sample()) for _ in batches])[:count]


@torch.no_grad()
def images_in_turn(
    recipe: Recipe, generator: nn.Module, classes: int, count: int
) -> Iterator[Tensor]:
    """Yield training's batches of images of all classes in turn, ``count`` images in all."""
    images = generated_images(recipe, generator, classes, seeded(recipe, generator))
    for start in range(0, count, images.batch_size):
        z = images.noise(images.batch_size)
        labels = torch.arange(start, start + images.batch_size, device=images.device)
        yield images.make(z, labels % classes)[: count - start]
