"""Test sets of real images, for evaluation only; no training code imports this package."""

from gdfq.data.batches import (
    Batches,
    accuracy,
    confusion,
    counted_classes,
    open_batches,
    top1,
)
from gdfq.data.sets import LabelledPictures, class_names, open_test_set

__all__ = [
    "Batches",
    "LabelledPictures",
    "accuracy",
    "class_names",
    "confusion",
    "counted_classes",
    "open_batches",
    "open_test_set",
    "top1",
]
