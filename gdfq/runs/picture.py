"""Pictures of generated images."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from gdfq.data import class_names
from gdfq.recipes import Recipe
from gdfq.recipes.images import class_images
from gdfq.report.images import to_pixels
from gdfq.sources import Preprocessing

# Classes that are shown, and images of each.
ROWS, COLUMNS = 20, 10
GAP = 4
FONT_SIZE = 15
# Small images are enlarged to about the one, large ones reduced to the other.
SMALLEST, LARGEST = 56, 112


def picture(recipe: Recipe, preprocessing: Preprocessing, generator: nn.Module) -> Image.Image:
    """Draw one row of generated images per class, the first classes if there are many."""
    names = shown_classes(recipe, preprocessing)
    rows = class_images(recipe, generator, len(names), COLUMNS)
    return image_grid(list(rows), names, preprocessing.mean, preprocessing.std)


def shown_classes(recipe: Recipe, preprocessing: Preprocessing) -> tuple[str, ...]:
    """Return the names of the classes that are shown: the first."""
    return class_names(recipe.teacher.data, preprocessing.num_classes)[:ROWS]


def image_grid(
    rows: Sequence[Tensor], names: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> Image.Image:
    """Draw one row of images per class, its name at the left.

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
