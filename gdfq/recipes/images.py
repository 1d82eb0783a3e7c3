"""Images of a recipe's generator, made as training makes them."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gdfq.recipes import Recipe
from gdfq.training.parts.low_pass import LowPass, make_images


class GeneratedImages:
    """The images that a copy of ``generator`` makes with the recipe's parts.

    Args:
        recipe: of the run.
        generator: the run's; it is left as it is.
        rng: source of all random numbers, on the generator's device.
    """

    def __init__(self, recipe: Recipe, generator: nn.Module, rng: torch.Generator) -> None:
        self.generator = copy.deepcopy(generator).train()  # a forward moves its running statistics
        self.latent_dim = recipe.generator.latent_dim
        self.batch_size = recipe.training.batch_size
        self.rng = rng
        self.low_pass = None
        if recipe.parts.low_pass is not None:
            size = recipe.teacher.image_size
            assert size is not None  # a run's recipe says it
            self.low_pass = LowPass((size, size), recipe.parts.low_pass, rng.device)

    def noise(self, count: int) -> Tensor:
        """Draw standard normal noise ``(count, latent_dim)``."""
        shape = (count, self.latent_dim)
        return torch.randn(shape, generator=self.rng, device=self.rng.device, dtype=torch.float32)

    def make(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return the images ``(N, C, H, W)`` of noise ``z`` and classes ``labels``."""
        return make_images(self.generator, self.low_pass, z, labels)


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
    images = GeneratedImages(recipe, generator, seeded(recipe, generator))
    columns = max(1, images.batch_size // classes)
    made = []
    for first in range(0, count, columns):
        repeats = min(columns, count - first)
        labels = torch.arange(classes, device=images.rng.device).repeat_interleave(repeats)
        batch = images.make(images.noise(len(labels)), labels)
        made.append(batch.cpu().unflatten(0, (classes, repeats)))
    return torch.cat(made, 1)


@torch.no_grad()
def random_images(
    recipe: Recipe, generator: nn.Module, classes: int, count: int, rng: torch.Generator
) -> Tensor:
    """Return ``(count, C, H, W)`` images of random classes, made in training's batches."""
    images = GeneratedImages(recipe, generator, rng)
    made = []
    for _ in range(0, count, images.batch_size):
        z = images.noise(images.batch_size)
        labels = torch.randint(classes, (images.batch_size,), generator=rng, device=rng.device)
        made.append(images.make(z, labels))
    return torch.cat(made)[:count]


@torch.no_grad()
def images_in_turn(
    recipe: Recipe, generator: nn.Module, classes: int, count: int
) -> Iterator[Tensor]:
    """Yield training's batches of images of all classes in turn, ``count`` images in all."""
    images = GeneratedImages(recipe, generator, seeded(recipe, generator))
    for start in range(0, count, images.batch_size):
        z = images.noise(images.batch_size)
        labels = torch.arange(start, start + images.batch_size, device=images.rng.device)
        yield images.make(z, labels % classes)[: count - start]
