"""The test sets of CIFAR-10 and CIFAR-100, in the files that torchvision uses."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from gdfq.data.arrays import ArraySet
from gdfq.errors import InputError

CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

# For each data set: folder, file of the test images, key of their labels, archive.
FILES = {
    "cifar10": ("cifar-10-batches-py", "test_batch", "labels", "cifar-10-python.tar.gz"),
    "cifar100": ("cifar-100-python", "test", "fine_labels", "cifar-100-python.tar.gz"),
}
# Files of CIFAR-10's images, by split.
CIFAR10_SPLITS = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}


def _latin1(text: str, encoding: str) -> bytes:
    """Return the bytes that Python 3 writes as ``text`` into pickles of protocol 2 and below."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"its bytes are in {encoding!r}, not in 'latin1'")
    return text.encode(encoding)


# A pickle can name any callable; these only construct arrays, numbers and bytes. Which ones a file
# uses depends on the protocol and on the version of numpy.
_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_FROM_BUFFER = np.zeros(0).__reduce_ex__(5)[0]
_SCALAR = np.int64(0).__reduce__()[0]
ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): bytes,  # for b""
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, strings, lists, dictionaries and numpy arrays; refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a data set needs not")
        return ALLOWED[module, name]


def open_cifar(
    name: Literal["cifar10", "cifar100"], root: Path, file: str | None = None
) -> ArraySet:
    """Read the 10,000 test images, 32x32 RGB, or the images of another file.

    Args:
        name: of the data set.
        root: the archive, its extracted folder (``cifar-10-batches-py``), the file of test images
            in it, or a folder with one of these up to one level down. The archive is not unpacked
            to disk.
        file: name of the file to read, such as ``"data_batch_1"``; None reads the test images.

    Raises:
        InputError: the files are missing, damaged, or not of this data set.
    """
    folder, test_file, key, archive = FILES[name]
    content, path = _content(root, folder, file or test_file, archive)
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        # Keys are bytes in files of Python 2, text in files rewritten by Python 3.
        batch = {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}
        images = batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return ArraySet(name, images, batch[key])
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(f"data: {path} is not a file of {name}: {error}") from error


def _content(root: Path, folder: str, file: str, archive: str) -> tuple[bytes, Path]:
    """Return the bytes of the test images' file, and the file or archive they are from."""
    if not root.exists():
        raise InputError(f"data: there is no {root}; set data_path or GDFQ_DATA")
    try:
        if root.is_file():
            return (
                _from_archive(root, folder, file)
                if tarfile.is_tarfile(root)
                else (root.read_bytes(), root)
            )
        for place in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
            for path in (place / file, place / folder / file):
                if path.is_file():
                    return path.read_bytes(), path
            for packed in (place / archive, place / archive.removesuffix(".gz")):
                if packed.is_file():
                    return _from_archive(packed, folder, file)
    except OSError as error:
        raise InputError(f"data: cannot read {error.filename}: {error.strerror}") from error
    raise InputError(
        f"data: there is no {folder}/{file} in {root}, and no {archive}; set data_path or GDFQ_DATA"
    )


def _from_archive(packed: Path, folder: str, file: str) -> tuple[bytes, Path]:
    try:
        with tarfile.open(packed) as tar:
            for member in tar:
                if PurePosixPath(member.name).parts[-2:] in ((folder, file), (file,)):
                    content = tar.extractfile(member)
                    if content is not None:
                        return content.read(), packed
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"data: cannot read {folder}/{file} in {packed}: {error}") from error
    raise InputError(f"data: {packed} has no {folder}/{file}")
