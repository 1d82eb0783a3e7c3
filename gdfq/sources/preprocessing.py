"""Preprocessing of a network's input, from the recipe, the network's source and the data set."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gdfq.errors import InputError

Crop = Literal["center", "squash"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

_IMAGENET: dict[str, Any] = {
    "num_classes": 1000, "image_size": 224, "channels": 3,
    "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "resize": 256,
}  # fmt: skip
# The usual input of networks trained on each data set.
DATA_SETS: dict[str, dict[str, Any]] = {
    "fashion-mnist": {
        "num_classes": 10, "image_size": 28, "channels": 1, "mean": [0.2860], "std": [0.3530],
    },
    "cifar10": {
        "num_classes": 10, "image_size": 32, "channels": 3,
        "mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616],
    },
    "cifar100": {
        "num_classes": 100, "image_size": 32, "channels": 3,
        "mean": [0.5071, 0.4867, 0.4408], "std": [0.2675, 0.2565, 0.2761],
    },
    "imagenet": _IMAGENET,
    "photographs": _IMAGENET,
}  # fmt: skip


@dataclass(frozen=True)
class Preprocessing:
    """The steps from a picture to a network's input: resize, crop, scale to [0, 1], normalize.

    Attributes:
        num_classes: of the network's logits.
        image_size: height and width of the input, >= 4.
        channels: of the input; 1 is gray, 3 is RGB.
        mean, std: per channel; the input is ``(pixel - mean) / std``.
        resize: length of the picture's shorter edge before the crop (both edges for ``"squash"``).
        crop: ``"center"`` keeps the picture's shape, ``"squash"`` resizes both edges.
        interpolation: of the resizing.
    """

    num_classes: int
    image_size: int
    channels: int
    mean: list[float]
    std: list[float]
    resize: int
    crop: Crop = "center"
    interpolation: Interpolation = "bilinear"

    def fields(self) -> dict[str, Any]:
        """Return keys and values of a recipe's [teacher]."""
        return asdict(self)


def image_size(model: str, given: dict[str, Any], facts: dict[str, Any], data: str) -> int:
    """Return the input's height and width: as given, else the source's, else the data set's."""
    for known in (given, facts, DATA_SETS.get(data, {})):
        if "image_size" in known:
            return known["image_size"]
    raise InputError(
        f"image_size: {model} does not say which images it takes; give their height and width"
    )


def resolve(
    model: str, num_classes: int, given: dict[str, Any], facts: dict[str, Any], data: str
) -> tuple[Preprocessing, list[str]]:
    """Return the preprocessing and a note for each value that had to be assumed.

    Args:
        model: the network's name in messages.
        num_classes: number of its logits.
        given: the recipe's values, which take precedence.
        facts: the source's values.
        data: the evaluation's data set, whose usual values come last.

    Raises:
        InputError: the image size is unknown, ``mean`` or ``std`` does not have one entry per
            channel, or ``resize`` is below the image size.
    """
    usual = DATA_SETS.get(data, {})
    size = image_size(model, given, facts, data)
    known = {**usual, **facts, **given, "image_size": size, "num_classes": num_classes}
    notes = []
    channels = known.setdefault("channels", 3)
    if "mean" not in known or "std" not in known:
        name = "ImageNet's" if channels == 3 else "0.5 and 0.25"
        known.setdefault("mean", IMAGENET_MEAN if channels == 3 else [0.5] * channels)
        known.setdefault("std", IMAGENET_STD if channels == 3 else [0.25] * channels)
        notes.append(f"mean and std: {name}, because {model} does not say")
    for key in ("mean", "std"):
        if len(known[key]) != channels:
            raise InputError(
                f"{key}: needs one entry for each of the {channels} channels, got {known[key]}"
            )
    if "resize" not in given:
        origin = facts if "resize" in facts else usual
        if "resize" in origin:  # in proportion to the image size
            known["resize"] = math.ceil(size * origin["resize"] / origin["image_size"])
        else:
            known["resize"] = size
    if known["resize"] < size:
        raise InputError(f"resize: must be >= image_size = {size}, got {known['resize']}")
    fields = Preprocessing.__dataclass_fields__
    values = {key: known[key] for key in fields if key in known}
    values["mean"], values["std"] = list(known["mean"]), list(known["std"])
    return Preprocessing(**values), notes
