"""Test sets that fit into memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from gdfq.errors import InputError


class ArraySet:
    """A test set of uint8 images ``(N, H, W, C)``, C = 1 or 3, and N labels.

    Raises:
        InputError: images have another shape or dtype, their number is not that of the labels, or
            there are none.
    """

    decodes = False
    note = ""

    def __init__(self, name: str, images: np.ndarray, labels: Sequence[int] | np.ndarray) -> None:
        if images.ndim != 4 or images.dtype != np.uint8 or len(images) != len(labels):
            raise InputError(
                f"data: {name} has images of shape {images.shape}, {images.dtype}, and "
                f"{len(labels)} labels"
            )
        if not len(images):
            raise InputError(f"data: {name} has no images")
        self.name = name
        self.images = images
        self.labels = np.asarray(labels, np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = self.images[index]
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        return picture, int(self.labels[index])
