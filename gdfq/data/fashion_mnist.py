"""The test set of Fashion-MNIST, included in the package."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from gdfq.data.arrays import ArraySet
from gdfq.errors import InputError

FOLDER = Path(__file__).parents[1] / "assets" / "fashion_mnist"
CLASS_NAMES = (
    "T-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped uint8 array in MNIST's IDX format."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"data: cannot read {path}: {error}") from error
    try:
        dims = raw[3]
        shape = np.frombuffer(raw, ">u4", count=dims, offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)
    except (IndexError, ValueError) as error:
        raise InputError(f"data: {path} is not an IDX file: {error}") from error


def open_fashion_mnist() -> ArraySet:
    """Read the 10,000 test images, 28x28 gray."""
    images = read_idx(FOLDER / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(FOLDER / "t10k-labels-idx1-ubyte.gz")
    return ArraySet("fashion-mnist", images[..., None], labels)
