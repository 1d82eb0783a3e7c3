"""Pictures of generated images."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from gdfq.data import class_names
from gdfq.recipes import Recipe
from gdfq.sources import Preprocessing
from gdfq.training import GDFQTrainer
from gdfq.training.parts.low_pass import LowPass, make_images

# Classes that are shown, and images of each.
ROWS, COLUMNS = 20, 10
GAP = 4
FONT_SIZE = 15
# Small images are enlarged to about the one, large ones reduced to the other.
SMALLEST, LARGEST = 56, 112


def picture(recipe: Recipe, images: Preprocessing, trainer: GDFQTrainer) -> Image.Image:
    """One row of generated images per class, the first classes where there are many."""
    names = shown_classes(recipe, images)
    rows = class_images(recipe, len(names), COLUMNS, trainer.generator)
    return image_grid(list(rows), names, images.mean, images.std)


def shown_classes(recipe: Recipe, images: Preprocessing) -> tuple[str, ...]:
    """Names of the classes that are shown: the first."""
    return class_names(recipe.teacher.data, images.num_classes)[:ROWS]


@torch.no_grad()
def class_images(
    recipe: Recipe,
    classes: int,
    count: int,
    generator: nn.Module,
) -> Tensor:
    """``(classes, count, C, H, W)`` generated images of the first classes, on the CPU.

    They are made as in training, in batches that are balanced over these classes and, as far
    as that goes, no larger than training's.
    """
    device = next(generator.parameters()).device
    random = torch.Generator(device).manual_seed(recipe.training.seed)
    generator = copy.deepcopy(generator).train()  # a forward moves its running statistics
    low_pass = low_pass_of(recipe, device)
    columns = max(1, recipe.training.batch_size // classes)
    parts = []
    for first in range(0, count, columns):
        repeats = min(columns, count - first)
        labels = torch.arange(classes, device=device).repeat_interleave(repeats)
        shape = (len(labels), recipe.generator.latent_dim)
        z = torch.randn(shape, generator=random, device=device, dtype=torch.float32)
        parts.append(
            make_images(generator, low_pass, z, labels).cpu().unflatten(0, (classes, repeats))
        )
    return torch.cat(parts, 1)


def low_pass_of(recipe: Recipe, device: torch.device) -> LowPass | None:
    """The filter that images of a run of ``recipe`` go through, if there is one."""
    width, size = recipe.parts.low_pass, recipe.teacher.image_size
    if width is None:
        return None
    assert size is not None  # a run's recipe says it
    return LowPass((size, size), width, device)


@torch.no_grad()
def random_images(
    recipe: Recipe, classes: int, count: int, generator: nn.Module, random: torch.Generator
) -> Tensor:
    """``(count, C, H, W)`` generated images of random classes, made as training's batches are.

    Args:
        recipe: of the run.
        classes: that the teacher has.
        count: of images.
        generator: the run's; it is left as it is.
        random: of noise and classes, on the generator's device.
    """
    device = random.device
    generator = copy.deepcopy(generator).train()  # a forward moves its running statistics
    size, made = recipe.training.batch_size, 0
    low_pass = low_pass_of(recipe, device)
    parts = []
    while made < count:
        z = torch.randn(
            (size, recipe.generator.latent_dim),
            generator=random,
            device=device,
            dtype=torch.float32,
        )
        labels = torch.randint(classes, (size,), generator=random, device=device)
        parts.append(make_images(generator, low_pass, z, labels))
        made += size
    return torch.cat(parts)[:count]


def image_grid(
    rows: Sequence[Tensor], names: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> Image.Image:
    """One row of images per class, its name at the left.

    Args:
        rows: per class ``(N, C, H, W)`` normalized images, C = 1 or 3; other channel counts show
            the first channel.
        names: of the classes.
        mean, std: per channel, the normalization to undo; what leaves [0, 1] is clipped.
    """
    size = rows[0].shape[-1]
    side = min(size * max(1, SMALLEST // size), LARGEST)
    resample = Image.Resampling.NEAREST if side >= size else Image.Resampling.LANCZOS
    cell = side + GAP
    font = ImageFont.load_default(FONT_SIZE)
    margin = GAP * 4 + int(max(font.getlength(name) for name in names))
    columns = max(len(row) for row in rows)
    canvas = Image.new("RGB", (margin + columns * cell, GAP + len(rows) * cell), "white")
    draw = ImageDraw.Draw(canvas)
    for r, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = GAP + r * cell
        middle = top + side // 2
        draw.text((margin - GAP * 2, middle), name, "black", font, anchor="rm")
        for c, pixels in enumerate(to_pixels(row, mean, std)):
            tile = Image.fromarray(pixels)
            tile = tile.resize((side, side), resample)
            canvas.paste(tile, (margin + c * cell, top))
    return canvas


def to_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """``(N, H, W, 3)`` uint8 of normalized images ``(N, C, H, W)``; see :func:`image_grid`."""
    shift, scale = (
        torch.tensor(v, device=images.device, dtype=torch.float32).view(1, -1, 1, 1)
        for v in (list(mean), list(std))
    )
    values = (images.float() * scale + shift).clamp(0, 1) * 255
    if values.shape[1] != 3:
        values = values[:, :1].expand(-1, 3, -1, -1)
    return values.round().byte().permute(0, 2, 3, 1).cpu().numpy()
