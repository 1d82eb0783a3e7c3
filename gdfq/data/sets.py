"""Test sets by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from gdfq.data import cifar, fashion_mnist, photographs
from gdfq.data.arrays import ArraySet
from gdfq.data.cifar import open_cifar
from gdfq.data.fashion_mnist import open_fashion_mnist
from gdfq.data.imagenet import open_imagenet
from gdfq.data.photographs import open_photographs
from gdfq.errors import InputError

ROOT = "GDFQ_DATA"


class LabelledPictures(Protocol):
    """Pictures with labels, by index.

    Attributes:
        name: of the data set.
        decodes: whether pictures are decoded from files, which worker processes can do.
        note: how classes were found, if that needs explaining; else empty.
    """

    name: str
    decodes: bool
    note: str

    def __len__(self) -> int:
        """Number of pictures."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int | np.ndarray]:
        """Return a picture and its class; of several right ones ``(classes,)`` bool."""


def open_test_set(name: str, path: str | None, num_classes: int) -> LabelledPictures:
    """Open the test set ``name``.

    Args:
        name: ``"fashion-mnist"`` (in the package), ``"cifar10"``, ``"cifar100"``, ``"imagenet"`` or
            ``"photographs"``.
        path: see :func:`gdfq.data.cifar.open_cifar`, :func:`gdfq.data.imagenet.open_imagenet` and
            :func:`gdfq.data.photographs.open_photographs`. None uses the folder in the environment
            variable GDFQ_DATA (ImageNet: its subfolder ``imagenet``).
        num_classes: of the network.

    Raises:
        InputError: the test set is not at ``path``, or its classes do not fit ``num_classes``.
    """
    if name == "fashion-mnist":
        return _fitting(open_fashion_mnist(), num_classes)
    if path is None and not os.environ.get(ROOT):
        raise InputError(f"data: no place to look for {name}; set data_path or {ROOT}")
    root = Path(path or os.environ[ROOT]).expanduser()
    if name in ("cifar10", "cifar100"):
        return _fitting(open_cifar(name, root), num_classes)  # type: ignore[arg-type]
    if name == "photographs":
        if num_classes != photographs.CLASSES:
            raise InputError(
                f"data: {name} have ImageNet's {photographs.CLASSES} classes, the network "
                f"{num_classes}"
            )
        return open_photographs(root)
    if name != "imagenet":
        raise InputError(
            f"data: must be fashion-mnist, cifar10, cifar100, imagenet or photographs, got {name!r}"
        )
    pictures = open_imagenet(root if path is not None else root / "imagenet")
    if pictures.classes != num_classes:
        raise InputError(
            f"data: {root} has {pictures.classes} classes, the network {num_classes}; all class "
            "folders must be there, because they are counted in the order of their names"
            + (f" ({pictures.note})" if pictures.note else "")
        )
    return pictures


def _fitting(images: ArraySet, num_classes: int) -> ArraySet:
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= num_classes:
        raise InputError(
            f"data: {images.name} has images of class {low if low < 0 else high}, counted from 0, "
            f"and the network {num_classes} classes"
        )
    return images


def class_names(data: str, num_classes: int) -> tuple[str, ...]:
    """Return the display names of the classes."""
    if data == "photographs":
        return photographs.class_names()
    known = {"fashion-mnist": fashion_mnist.CLASS_NAMES, "cifar10": cifar.CLASS_NAMES}
    return known.get(data) or tuple(f"class {label}" for label in range(num_classes))
