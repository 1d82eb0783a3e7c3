"""Real images, for measuring a finished network; nothing that trains imports this package."""

from gdfq.data.batches import Batches, confusion, share, top1
from gdfq.data.sets import LabelledPictures, class_names, open_test_set

__all__ = [
    "Batches",
    "LabelledPictures",
    "class_names",
    "confusion",
    "open_test_set",
    "share",
    "top1",
]
