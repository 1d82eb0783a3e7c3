"""Normalized batches of a test set, decoded by several processes, and accuracy on them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gdfq.data.sets import LabelledPictures, open_test_set
from gdfq.distributed import World
from gdfq.errors import InputError
from gdfq.recipes import Recipe
from gdfq.sources import Preprocessing

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
MODES = {1: "L", 3: "RGB"}


class Batches:
    """Normalized batches of a test set: images ``(N, C, H, W)`` float32, and labels.

    Labels are ``(N,)`` int64, or ``(N, classes)`` bool, True for each right class.

    Args:
        test_set: from :func:`gdfq.data.open_test_set`.
        preprocessing: from a picture to the network's input.
        batch_size: pictures per batch (the last may have fewer). None selects 250, or 64 for images
            above 64 pixels, since workers hold several batches in shared memory.
        workers: decoding processes; 0 decodes in this process. None selects one per core, at most
            8, or 0 for test sets that need no decoding.
        rank, ranks: this process takes the pictures ``rank, rank + ranks, ...``.

    Attributes:
        pictures: number of pictures of this rank; ``len()`` is its number of batches.
        name, note: of the test set.

    Raises:
        InputError: the network takes neither gray nor RGB images, or the first picture cannot be
            decoded.
    """

    def __init__(
        self,
        test_set: LabelledPictures,
        preprocessing: Preprocessing,
        batch_size: int | None = None,
        workers: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if preprocessing.channels not in MODES:
            raise InputError(
                f"data: {test_set.name} can be gray or RGB, the network takes "
                f"{preprocessing.channels} channels"
            )
        if workers is None:
            workers = min(8, os.cpu_count() or 1) if test_set.decodes else 0
        if batch_size is None:
            batch_size = 250 if preprocessing.image_size <= 64 else 64
        self.name = test_set.name
        self.note = test_set.note
        decoded = _Decoded(test_set, preprocessing, range(rank, len(test_set), ranks))
        self.pictures = len(decoded)
        if self.pictures:
            decoded[0]  # fail before training if pictures cannot be decoded
        shape = (1, -1, 1, 1)
        self.mean = torch.tensor(preprocessing.mean, dtype=torch.float32).view(shape)
        self.std = torch.tensor(preprocessing.std, dtype=torch.float32).view(shape)
        self.loader: DataLoader[Any] = DataLoader(
            decoded, batch_size, num_workers=workers, worker_init_fn=_one_thread
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            for pixels, labels in self.loader:
                yield (pixels.float() / 255 - self.mean) / self.std, labels
        except InputError as error:
            # A worker's error is the last line of a traceback.
            *_, line = str(error).strip().splitlines()
            raise InputError(line.split("InputError: ", 1)[-1]) from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                f"workers: a process that decodes pictures died ({str(error).splitlines()[0]}); "
                "with workers = 0 there is none"
            ) from error


class _Decoded(Dataset[tuple[Tensor, int | np.ndarray]]):
    """A subset of a test set, resized and cropped: ``(C, H, W)`` uint8 and the label."""

    def __init__(
        self, test_set: LabelledPictures, preprocessing: Preprocessing, indices: range
    ) -> None:
        self.test_set = test_set
        self.preprocessing = preprocessing
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int | np.ndarray]:
        picture, label = self.test_set[self.indices[index]]
        picture = resize_and_crop(picture, self.preprocessing)
        pixels = np.array(picture, np.uint8).reshape(*picture.size[::-1], -1)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), label


def resize_and_crop(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Convert ``picture`` to the mode and size of the network's input.

    As torchvision's ``Resize`` and ``CenterCrop``: the shorter edge becomes ``resize``, the longer
    one in proportion, rounded down; with ``"squash"`` both become ``resize``. The center is kept.
    """
    picture = picture.convert(MODES[preprocessing.channels])
    width, height = picture.size
    short, target = min(width, height), preprocessing.resize
    if preprocessing.crop == "squash":
        size = (target, target)
    else:
        size = (target * width // short, target * height // short)
    if size != picture.size:
        picture = picture.resize(size, FILTERS[preprocessing.interpolation])
    side = preprocessing.image_size
    left, top = (round((length - side) / 2) for length in size)
    return picture.crop((left, top, left + side, top + side))


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def counted_classes(labels: Tensor, predicted: Tensor) -> Tensor:
    """Return the class ``(N,)`` that each image counts as.

    Labels ``(N,)`` are these classes. With several right ones, ``(N, classes)`` bool, it is the
    predicted class ``(N,)`` where that is among them, else the first of them; so a prediction is
    right exactly where it equals the result.

    Raises:
        InputError: an image has no right class.
    """
    if labels.dim() == 1:
        return labels
    if not labels.any(1).all():
        raise InputError("data: has an image without a right class")
    right = labels.gather(1, predicted[:, None]).squeeze(1)
    return torch.where(right, predicted, labels.int().argmax(1))


@torch.inference_mode()
def confusion(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], world: World | None = None
) -> Tensor:
    """Return the confusion matrix of ``model``: ``(classes, classes)`` int64 counts on the CPU.

    Entry ``[i, j]`` counts images of class ``i`` predicted as ``j``; for labels with several right
    classes see :func:`counted_classes`. All ranks of ``world`` must
    call it, each with its own batches; all get the sum over the ranks.

    Raises:
        InputError: on any rank a picture cannot be read, or the network lacks its class.
    """
    world = world or World()
    device = next(model.parameters()).device
    counts = torch.zeros(0, dtype=torch.int64)
    problem: InputError | None = None
    try:
        for images, labels in batches:
            logits = model(images.to(device))
            classes = logits.shape[1]
            if labels.dim() == 2 and labels.shape[1] != classes:
                raise InputError(
                    f"data: has labels of {labels.shape[1]} classes, and the network {classes}"
                )
            predicted = logits.argmax(1).cpu()
            counted = counted_classes(labels, predicted)
            if counted.max() >= classes:
                raise InputError(
                    f"data: has images of class {int(counted.max())}, counted from 0, and the "
                    f"network {classes} classes"
                )
            pairs = counted * classes + predicted
            found = torch.bincount(pairs, minlength=classes**2)
            counts = counts + found if len(counts) else found
    except InputError as error:
        problem = error
    if world.any(problem is not None):
        raise problem or InputError("data: another process cannot read its test images")
    if world.parallel:
        size = world.largest(len(counts))
        counts = counts if len(counts) else torch.zeros(size, dtype=torch.int64)
        world.sum(counts, "agreement")
    classes = math.isqrt(len(counts))
    return counts.view(classes, classes)


def top1(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], world: World | None = None
) -> float:
    """Return the top-1 accuracy of ``model`` in percent.

    For ``world`` and errors see :func:`confusion`.
    """
    return accuracy(confusion(model, batches, world))


def accuracy(counts: Tensor) -> float:
    """Return the top-1 accuracy in percent from counts of :func:`confusion`."""
    return 100.0 * int(counts.trace()) / int(counts.sum())


def open_batches(
    recipe: Recipe,
    preprocessing: Preprocessing,
    workers: int | None = None,
    world: World | None = None,
) -> Batches:
    """Open the test images that the recipe names, this process's share of them.

    Raises:
        InputError: it names none, or they cannot be opened; the message has the path.
    """
    spec = recipe.teacher
    if spec.data == "none":
        raise InputError("data: the recipe names no data set to measure on")
    world = world or World()
    test_set = open_test_set(spec.data, spec.data_path, preprocessing.num_classes)
    return Batches(test_set, preprocessing, workers=workers, rank=world.rank, ranks=world.size)
