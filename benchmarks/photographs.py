"""Photographs that a student is compared with its teacher on; ``gdfq data photographs`` has them.

For accuracy, ``gdfq.data.open_test_set("photographs", folder, 1000)`` has the labelled ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gdfq.data.batches import resize_and_crop
from gdfq.data.photographs import list_photographs
from gdfq.sources import Preprocessing

CROPS = 5  # of each photograph


def crops(folder: Path, preprocessing: Preprocessing, photographs: int = 10) -> Iterator[Tensor]:
    """Yield five crops of each photograph, with labels or without, normalized for a network.

    The centre square is resized to 5/4 of ``image_size``; crops are its centre and four corners.

    Args:
        folder: written by ``gdfq data photographs``, see
            :func:`gdfq.data.photographs.list_photographs`, which gives their order.
        preprocessing: of the network's input; its ``resize`` is not used.
        photographs: in a batch; the last may have fewer.

    Yields:
        ``(5 * photographs, 3, image_size, image_size)`` float32, crop by crop of one photograph
        after the other.

    Raises:
        InputError: there are no photographs in ``folder``.
    """
    paths = [path for path, _ in list_photographs(folder)]
    mean, std = (
        torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    for start in range(0, len(paths), photographs):
        pixels = [_five(path, preprocessing) for path in paths[start : start + photographs]]
        yield (torch.cat(pixels).float() / 255 - mean) / std


def _five(path: Path, preprocessing: Preprocessing) -> Tensor:
    """Return the crops of a photograph, ``(5, C, H, W)`` uint8."""
    size = preprocessing.image_size
    side = math.ceil(size * 5 / 4)
    picture = resize_and_crop(
        Image.open(path), replace(preprocessing, resize=side, image_size=side)
    )
    square = torch.from_numpy(np.array(picture).reshape(side, side, -1)).permute(2, 0, 1)
    rest = side - size
    places = [(rest // 2, rest // 2), (0, 0), (0, rest), (rest, 0), (rest, rest)]
    return torch.stack([square[:, y : y + size, x : x + size] for y, x in places])
