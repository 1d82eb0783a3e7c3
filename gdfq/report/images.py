"""Generated images by class, and their statistics beside those that the teacher stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gdfq.report.contents import ClassImages, NormStatistics
from gdfq.sources import Preprocessing

# Images of a class in a report; fewer of large ones, which are reduced too.
SHOWN_SMALL, SHOWN_LARGE = 10, 4
SMALL, LARGEST = 64, 112
NORMS, CHANNELS = 2, 64
PASS = 64


def to_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return normalized images ``(N, C, H, W)`` as ``(N, H, W, 3)`` uint8.

    C is 1 or 3; other channel counts show the first channel. ``mean`` and ``std`` are per channel
    the normalization to undo; values outside [0, 1] are clipped.
    """
    shift, scale = (
        torch.tensor(v, device=images.device, dtype=torch.float32).view(1, -1, 1, 1)
        for v in (list(mean), list(std))
    )
    values = (images.float() * scale + shift).clamp(0, 1) * 255
    if values.shape[1] != 3:
        values = values[:, :1].expand(-1, 3, -1, -1)
    return values.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def images_by_class(
    made: Tensor, names: Sequence[str], preprocessing: Preprocessing
) -> list[ClassImages]:
    """Pick some images of each class from ``(classes, count, C, H, W)``, and take their mean."""
    shown = SHOWN_SMALL if preprocessing.image_size <= SMALL else SHOWN_LARGE
    classes = []
    for label, (row, name) in enumerate(zip(made, names, strict=True)):
        pixels = to_pixels(row[:shown], preprocessing.mean, preprocessing.std)
        mean = (
            to_pixels(row, preprocessing.mean, preprocessing.std).mean(0).round().astype(np.uint8)
        )
        gray = preprocessing.channels != 3
        tiles = [_tile(picture, gray) for picture in (*pixels, mean)]
        classes.append(ClassImages(label, name, tiles[:-1], tiles[-1], len(row)))
    return classes


def _tile(pixels: np.ndarray, gray: bool) -> np.ndarray:
    image = Image.fromarray(pixels)
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return np.array(image.convert("L" if gray else "RGB"))


@torch.no_grad()
def norm_statistics(
    teacher: nn.Module, norms: Mapping[str, _BatchNorm], made: Tensor
) -> list[NormStatistics]:
    """Return what ``teacher``'s first batch norms store, and their inputs' means for ``made``.

    Args:
        teacher: the network.
        norms: its batch norms in order of execution, by name.
        made: ``(classes, count, C, H, W)`` normalized images by class.
    """
    first = dict(list(norms.items())[:NORMS])
    means: dict[str, list[Tensor]] = {name: [] for name in first}
    hooks = [norm.register_forward_pre_hook(_appender(means[name])) for name, norm in first.items()]
    try:
        for images in made.flatten(0, 1).split(PASS):
            teacher(images)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for name, norm in first.items():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if not means[name]:
            continue
        by_class = torch.cat(means[name]).unflatten(0, made.shape[:2]).mean(1)[:, :CHANNELS]
        found.append(
            NormStatistics(
                name,
                len(norm.running_mean),
                norm.running_mean[:CHANNELS].tolist(),
                norm.running_var[:CHANNELS].sqrt().tolist(),
                by_class.mean(0).tolist(),
                by_class.tolist(),
            )
        )
    return found


def _appender(means: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep the mean of each image in each channel."""
        x = args[0].detach().double()
        means.append(x.flatten(2).mean(2) if x.dim() > 2 else x)

    return hook
