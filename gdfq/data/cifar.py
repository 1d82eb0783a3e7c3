"""The test images of CIFAR-10 and CIFAR-100, from the files that torchvision reads too."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gdfq.data.arrays import ArraySet
from gdfq.errors import InputError

CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

# Per data set: folder, file of the test images, key of their labels, archive.
FILES = {
    "cifar10": ("cifar-10-batches-py", "test_batch", "labels", "cifar-10-python.tar.gz"),
    "cifar100": ("cifar-100-python", "test", "fine_labels", "cifar-100-python.tar.gz"),
}

# The files are pickles, which could name any callable. These make an array, and do nothing else.
_RECONSTRUCT = np.zeros(0).__reduce__()[0]
ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class _ArraysOnly(pickle.Unpickler):
    """Reads numbers, strings, lists, dictionaries and numpy arrays; refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a data set needs not")
        return ALLOWED[module, name]


def open_cifar(name: Literal["cifar10", "cifar100"], root: Path) -> ArraySet:
    """The 10,000 test images, 32x32.

    Args:
        name: which of the two.
        root: the extracted folder (``cifar-10-batches-py``), one that has it, or one that has
            the archive; the archive is not unpacked to disk.

    Raises:
        InputError: they are not there, or not what they should be.
    """
    folder, file, key, archive = FILES[name]
    content, path = _content(root, folder, file, archive)
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        # Written by Python 2, its strings are bytes; rewritten by Python 3 they may not be.
        batch = {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}
        images = batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return ArraySet(name, images, batch[key])
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(f"data: {path} is no file of {name}: {error}") from error


def _content(root: Path, folder: str, file: str, archive: str) -> tuple[bytes, Path]:
    for path in (root / file, root / folder / file):
        if path.is_file():
            return path.read_bytes(), path
    packed = root / archive
    if not packed.is_file():
        raise InputError(
            f"data: there is no {folder}/{file} in {root}, and no {archive}; "
            "set data_path or GDFQ_DATA"
        )
    try:
        with tarfile.open(packed) as tar:
            member = tar.extractfile(f"{folder}/{file}")
            assert member is not None
            return member.read(), packed
    except (tarfile.TarError, OSError, EOFError, KeyError, AssertionError) as error:
        raise InputError(f"data: cannot read {folder}/{file} in {packed}: {error}") from error
