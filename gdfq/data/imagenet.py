"""The validation images of ImageNet, from folders or from tar files, decoded as they are needed."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from PIL import Image

from gdfq.errors import InputError

ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True)
class Where:
    """Bytes of one picture: ``size`` of them at ``offset`` of ``file``; all where size is None."""

    file: Path
    name: str
    offset: int = 0
    size: int | None = None


class PictureFiles:
    """Pictures in files, and their labels; each is decoded when it is asked for."""

    decodes = True

    def __init__(self, name: str, places: list[Where], labels: list[int], classes: int) -> None:
        self.name = name
        self.places = places
        self.labels = labels
        self.classes = classes
        self._tar: tuple[int, Path, BinaryIO] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        where = self.places[index]
        try:
            picture = Image.open(io.BytesIO(self._bytes(where)))
            picture.load()
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"data: cannot decode {where.name}: {error}") from error
        return picture, self.labels[index]

    def _bytes(self, where: Where) -> bytes:
        if where.size is None:
            return where.file.read_bytes()
        # A process that decodes has a file of its own: a position in it cannot be shared.
        if self._tar is None or self._tar[:2] != (os.getpid(), where.file):
            self._tar = (os.getpid(), where.file, where.file.open("rb"))
        file = self._tar[2]
        file.seek(where.offset)
        return file.read(where.size)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tar": None}


def open_imagenet(root: Path) -> PictureFiles:
    """The pictures of ``root``.

    Args:
        root: a folder of class folders; one that has them in ``val``; a tar file of class
            folders; the validation set's tar file, or the folder that has it, with the devkit
            (its archive or its unpacked folder) beside it. Class folders are counted in the order
            of their names. Nothing is unpacked.

    Raises:
        InputError: there is no such thing, or no picture in it.
    """
    if root.is_file():
        return _from_tar(root)
    if not root.is_dir():
        raise InputError(f"data: there is no {root}; set data_path or GDFQ_DATA")
    if (root / TAR).is_file():
        return _from_tar(root / TAR)
    folder = root / "val" if (root / "val").is_dir() else root
    named = [
        (entry.name, Where(path, str(path)))
        for entry in folder.iterdir()
        if entry.is_dir()
        for path in entry.rglob("*")
        if path.suffix.lower() in ENDINGS
    ]
    if not named:
        raise InputError(f"data: {folder} has neither class folders with pictures nor {TAR}")
    return _by_class(named)


def _by_class(named: list[tuple[str, Where]]) -> PictureFiles:
    classes = sorted({name for name, _ in named})
    number = {name: label for label, name in enumerate(classes)}
    named.sort(key=lambda pair: (pair[0], pair[1].name))
    labels = [number[name] for name, _ in named]
    return PictureFiles("imagenet", [where for _, where in named], labels, len(classes))


def _from_tar(path: Path) -> PictureFiles:
    """One pass over the headers; pictures are read where they lie."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = [
                (PurePosixPath(m.name), Where(path, f"{path}:{m.name}", m.offset_data, m.size))
                for m in tar
                if m.isreg() and PurePosixPath(m.name).suffix.lower() in ENDINGS
            ]
    except tarfile.TarError as error:
        raise InputError(
            f"data: {path} cannot be read in place: {error}; it must be whole, and not compressed"
        ) from error
    except OSError as error:
        raise InputError(f"data: cannot read {path}: {error.strerror}") from error
    if not members:
        raise InputError(f"data: {path} has no picture")
    parents = {name.parent for name, _ in members}
    if len(parents) > 1:
        return _by_class([(name.parent.name, where) for name, where in members])
    members.sort(key=lambda member: member[0])
    labels, classes = _truth(path.parent)
    if len(labels) != len(members):
        raise InputError(
            f"data: {path} has {len(members)} pictures, the devkit's ground truth {len(labels)}"
        )
    return PictureFiles("imagenet", [where for _, where in members], labels, classes)


def _truth(folder: Path) -> tuple[list[int], int]:
    """Labels of the validation set in its order, counted in the order of the WordNet names."""
    truth, meta = _devkit(folder)
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise InputError(
            "data: reading ImageNet's devkit needs scipy: pip install 'gdfq[imagenet]'"
        ) from error
    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        # Numbers of the devkit, of which those without children are classes.
        names = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if s["num_children"] == 0}
        order = {name: label for label, name in enumerate(sorted(names.values()))}
        return [order[names[int(line)]] for line in truth.split()], len(order)
    except Exception as error:  # a damaged file can fail in any way
        raise InputError(f"data: cannot read ImageNet's devkit in {folder}: {error}") from error


def _devkit(folder: Path) -> tuple[bytes, bytes]:
    """Ground truth and meta data, from the devkit's archive or its folder."""
    unpacked = folder / DEVKIT.removesuffix(".tar.gz") / "data"
    try:
        if (unpacked / TRUTH).is_file():
            return (unpacked / TRUTH).read_bytes(), (unpacked / "meta.mat").read_bytes()
        found: dict[str, bytes] = {}
        with tarfile.open(folder / DEVKIT) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() else None
                if file is not None:
                    found[PurePosixPath(member.name).name] = file.read()
        return found[TRUTH], found["meta.mat"]
    except FileNotFoundError as error:
        raise InputError(
            f"data: the validation images in {folder} have no labels: {DEVKIT} is not beside them"
        ) from error
    except (OSError, EOFError, tarfile.TarError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"data: cannot read {folder / DEVKIT}: {reason}") from error
