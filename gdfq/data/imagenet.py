"""The validation set of ImageNet, from folders or tar files, decoded on access."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image

from gdfq.errors import InputError

ENDINGS = (
    ".jpeg", ".jpg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff",
)  # fmt: skip
TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
# Folders that operating systems create without a leading dot.
SYSTEM = {
    "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot", "__macosx",
    "lost+found", "$recycle.bin", "system volume information",
}  # fmt: skip
# Names of a data set's splits, never of classes.
PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True)
class Where:
    """Location of a picture: ``size`` bytes at ``offset`` of ``file``; None is the whole file."""

    file: Path
    name: str
    size: int
    offset: int | None = None


class PictureFiles:
    """A test set of picture files, decoded on access.

    Labels are classes, or ``(classes,)`` bool with several right ones.

    Raises:
        InputError: a file is empty.
    """

    decodes = True

    def __init__(
        self,
        name: str,
        places: list[Where],
        labels: Sequence[int] | np.ndarray,
        classes: int,
        note: str = "",
    ) -> None:
        empty = [where.name for where in places if not where.size]
        if empty:
            raise InputError(
                f"data: {len(empty)} of {len(places)} pictures are empty files, {empty[0]} is the "
                "first; get them again, or remove them"
            )
        self.name = name
        self.places = places
        self.labels = labels
        self.classes = classes
        self.note = note
        self._tar: tuple[int, Path, BinaryIO] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Image.Image, int | np.ndarray]:
        where = self.places[index]
        try:
            picture = Image.open(io.BytesIO(self._bytes(where)))
            picture.load()
            return _with_8_bits(picture), self.labels[index]
        except Exception as error:  # a damaged file can fail in any way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"data: cannot decode {where.name}: {reason}") from error

    def _bytes(self, where: Where) -> bytes:
        if where.offset is None:
            return where.file.read_bytes()
        # Each process opens the file itself: a forked one would share the file position.
        if self._tar is None or self._tar[:2] != (os.getpid(), where.file):
            self._tar = (os.getpid(), where.file, where.file.open("rb"))
        file = self._tar[2]
        file.seek(where.offset)
        return file.read(where.size)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tar": None}


def _with_8_bits(picture: Image.Image) -> Image.Image:
    """Convert ``picture`` to a mode that Pillow converts to gray and RGB without clipping.

    Pillow clips 16-bit gray pixels; this keeps their upper 8 bits, as Pillow does for 16-bit RGB.

    Raises:
        ValueError: the value of white is unknown, or Pillow cannot convert the colors.
    """
    if picture.mode.startswith("I;16") or (picture.mode, picture.format) == ("I", "PPM"):
        tags = getattr(picture, "tag_v2", {})  # of a TIFF: 258 is its bits, 262 = 0: 0 is white
        pixels = np.asarray(picture) >> (tags.get(258, (16,))[0] - 8)
        return Image.fromarray((255 - pixels if tags.get(262) == 0 else pixels).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are {'floats' if picture.mode == 'F' else '32-bit integers'}, and nothing "
            "says which value is white; save it with 8 or 16 bits"
        )
    if picture.mode in ("LAB", "La"):
        raise ValueError(f"its colors are {picture.mode}; save it as gray or RGB")
    return picture


# ---- finding the pictures ----


class Folder(Protocol):
    """A folder on disk or in a tar file, without hidden entries.

    Attributes:
        name: without its path.
        linked: whether it is a symbolic link.
    """

    name: str
    linked: bool

    @property
    def folders(self) -> list[Folder]:
        """Its subfolders, including linked ones."""

    @property
    def pictures(self) -> list[Where]:
        """The pictures directly in it."""


class _OnDisk:
    """A folder on disk, read on access."""

    def __init__(self, path: Path, linked: bool = False) -> None:
        self.path = path
        self.name = path.name
        self.linked = linked

    @cached_property
    def _entries(self) -> list[os.DirEntry[str]]:
        with os.scandir(self.path) as entries:
            return [entry for entry in entries if not _hidden(entry.name)]

    @cached_property
    def folders(self) -> list[Folder]:
        return [_OnDisk(self.path / e.name, e.is_symlink()) for e in self._entries if e.is_dir()]

    @cached_property
    def pictures(self) -> list[Where]:
        found = [e for e in self._entries if _is_picture(e.name) and not e.is_dir()]
        paths = [self.path / e.name for e in found]
        return [Where(p, str(p), e.stat().st_size) for p, e in zip(paths, found, strict=True)]


@dataclass
class _InTar:
    name: str
    within: dict[str, _InTar] = field(default_factory=dict)
    pictures: list[Where] = field(default_factory=list)
    linked: bool = False

    @property
    def folders(self) -> list[Folder]:
        return list(self.within.values())


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def _is_picture(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def open_imagenet(root: Path) -> PictureFiles:
    """Find the pictures of ``root`` and their classes, see :func:`class_order`.

    Hidden files and those of operating systems are skipped. Nothing is unpacked to disk.

    Args:
        root: a folder of class folders; a folder of pictures with the devkit (archive or unpacked)
            beside them; a folder with such a folder as ``val`` or as its only subfolder; a tar file
            of any of these; or the validation set's tar file or the folder with it.

    Raises:
        InputError: ``root`` does not exist, has no pictures or no labels, or a picture is empty.
    """
    if root.is_file():
        return _labelled(_read_tar(root), [root.parent], root)
    if not root.is_dir():
        raise InputError(f"data: there is no {root}; set data_path or GDFQ_DATA")
    try:
        return _labelled(_OnDisk(root), [root], root)
    except OSError as error:
        raise InputError(f"data: cannot read {error.filename}: {error.strerror}") from error


def _labelled(folder: Folder, near: list[Path], root: Path) -> PictureFiles:
    """Return the pictures below ``folder`` with labels; search a devkit in the folders ``near``."""
    while True:
        if isinstance(folder, _OnDisk):
            near = [folder.path, *near]
            if (folder.path / TAR).is_file():
                return _labelled(_read_tar(folder.path / TAR), near, folder.path / TAR)
        inner = {f.name: f for f in folder.folders}
        only = next(iter(inner.values())) if len(inner) == 1 and not folder.pictures else None
        if "val" in inner:
            folder = inner["val"]
        elif only is not None and (only.folders or _has_tar(only)):
            folder = only
        else:
            break
    near.append(near[0].parent)
    by_class = {name: sorted(_all(f), key=lambda w: w.name) for name, f in inner.items()}
    empty = sorted(name for name, places in by_class.items() if not places)
    by_class = {name: places for name, places in by_class.items() if places}
    if set(by_class) <= PARTS and len(by_class) > 1:
        raise InputError(
            f"data: {root} has {' and '.join(sorted(by_class))}; give the one to measure on"
        )
    if len(by_class) == 1 and not folder.pictures:
        only = inner[next(iter(by_class))]
        if not only.pictures:
            return _labelled(only, near, root)
        if (devkit := _devkit(near)) is not None:
            return _in_order_of_names(only.pictures, devkit, root)
    if not by_class:
        if folder.pictures:
            return _in_order_of_names(folder.pictures, _devkit(near), root)
        where = folder.path if isinstance(folder, _OnDisk) else root
        wanted = (
            "no picture" if root.is_file() else (f"neither class folders with pictures nor {TAR}")
        )
        raise InputError(f"data: {where} has {wanted}; pictures end in {', '.join(ENDINGS)}")
    order, note = class_order(by_class)
    if empty:
        note += f"{'; ' if note else ''}folders without a picture are skipped: {_some(empty)}"
    places = [where for name in order for where in by_class[name]]
    labels = [label for label, name in enumerate(order) for _ in by_class[name]]
    return PictureFiles("imagenet", places, labels, len(order), note)


def _all(folder: Folder) -> Iterator[Where]:
    """Yield the pictures below ``folder``, skipping linked folders, which could form cycles."""
    yield from folder.pictures
    for inner in folder.folders:
        if not inner.linked:
            yield from _all(inner)


def _has_tar(folder: Folder) -> bool:
    return isinstance(folder, _OnDisk) and (folder.path / TAR).is_file()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def class_order(names: Iterable[str]) -> tuple[list[str], str]:
    """Return class folders in the order of their classes, and a note if that needs explaining.

    Numbered names are in numerical order: ``0`` to ``11``, ``v2_class0`` to ``v2_class11``,
    ``1_cat`` to ``12_dog``. They must share one prefix, ignoring case, without a repeated number;
    if letters follow directly (``0cat``), no number may be missing. If only some names are plain
    numbers, these are class indices and the other names fill the gaps. All other names are in text
    order, as in torchvision's ``ImageFolder``.
    """
    text = sorted(names)
    folded = [name.casefold() for name in text]
    prefix = re.sub(r"\d+$", "", os.path.commonprefix(folded))  # noqa: RUF071 (characters)
    found = [re.match(r"(\d+)([a-z]?)", name[len(prefix) :]) for name in folded]
    numbers = {int(m[1]): name for name, m in zip(text, found, strict=True) if m is not None}
    dense = len(numbers) == max(numbers, default=0) - min(numbers, default=0) + 1
    fractions = re.search(r"\d[.,]$", prefix)  # 0.25 is before 0.5
    if (
        len(numbers) == len(text)
        and not fractions
        and (dense or not any(m[2] for m in found if m is not None))
    ):
        order = [numbers[number] for number in sorted(numbers)]
        note = _difference(order, text, "in the order of their numbers", "takes")
        gaps = set(range(min(numbers), max(numbers))) - set(numbers)
        if gaps and max(numbers) < 2 * len(numbers):  # else they are no indices, as in n01440764
            note += f"{'; ' if note else ''}none has the number {min(gaps)}, those after it move up"
        return order, note
    indices = {name: int(name) for name in text if re.fullmatch(r"\d+", name)}
    taken = set(indices.values())
    if indices and len(taken) == len(indices) and max(taken) < len(text):
        others = iter([name for name in text if name not in indices])
        by_index = {index: name for name, index in indices.items()}
        order = [by_index.get(i) or next(others) for i in range(len(text))]
        left = [name for name in order if name not in indices]
        return order, (
            "class folders that are named by a number have that class, the others fill the gaps: "
            + _some([f"{name} = {order.index(name)}" for name in left])
        )
    return text, _difference(
        text, sorted(text, key=_natural), "in the order of their names as text"
    )


def _difference(order: list[str], other: list[str], how: str, imagefolder: str = "") -> str:
    for first, instead in zip(order, other, strict=True):
        if first != instead:
            rest = f", where torchvision's ImageFolder {imagefolder} {instead} first"
            return f"class folders {how}, {first} before {instead}{rest if imagefolder else ''}"
    return ""


def _natural(name: str) -> list[tuple[str, int]]:
    """Sort key of natural order: numbers by value, letters ignoring case."""
    pieces = re.findall(r"(\D*)(\d*)", name.casefold())
    return [(text, int(number or 0)) for text, number in pieces]


def _read_tar(path: Path) -> _InTar:
    """Index the pictures of an uncompressed tar file in one pass over its headers."""
    root = _InTar("")
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                *parents, name = PurePosixPath(member.name).parts or ("",)
                if not member.isreg() or not _is_picture(name):
                    continue
                if any(map(_hidden, (*parents, name))):
                    continue
                folder = root
                for parent in parents:
                    folder = folder.within.setdefault(parent, _InTar(parent))
                shown = f"{path}:{member.name}"
                folder.pictures.append(Where(path, shown, member.size, member.offset_data))
    except tarfile.TarError as error:
        raise InputError(
            f"data: {path} cannot be read in place: {error}; it must be whole, and not compressed"
        ) from error
    except OSError as error:
        raise InputError(f"data: cannot read {path}: {error.strerror}") from error
    return root


# ---- labels from ImageNet's devkit ----


def _in_order_of_names(
    places: list[Where], devkit: tuple[Path, bytes, bytes] | None, root: Path
) -> PictureFiles:
    if devkit is None:
        raise InputError(
            f"data: the validation images in {root} have no labels: {DEVKIT} is not beside them, "
            "and there are no class folders"
        )
    labels, classes = _truth(*devkit)
    if len(labels) != len(places):
        raise InputError(
            f"data: {root} has {len(places)} pictures, the devkit's ground truth {len(labels)}"
        )
    places = sorted(places, key=lambda where: PurePosixPath(where.name))
    return PictureFiles("imagenet", places, labels, classes)


def _truth(path: Path, truth: bytes, meta: bytes) -> tuple[list[int], int]:
    """Return the validation set's labels, ordered by WordNet ID, and the number of classes."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise InputError(
            "data: reading ImageNet's devkit needs scipy: pip install 'gdfq[imagenet]'"
        ) from error
    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        # The devkit's numbers of synsets; those without children are the classes.
        names = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if s["num_children"] == 0}
        order = {name: label for label, name in enumerate(sorted(names.values()))}
        numbers = [int(line) for line in truth.split()]
        unknown = sorted(set(numbers) - set(names))
        if unknown:
            raise ValueError(f"{TRUTH} has class {unknown[0]}, and meta.mat does not")
        return [order[names[number]] for number in numbers], len(order)
    except Exception as error:  # a damaged file can fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"data: cannot read ImageNet's devkit in {path}: {reason}") from error


def _devkit(near: list[Path]) -> tuple[Path, bytes, bytes] | None:
    """Return folder, ground truth and metadata of a devkit, packed or unpacked, if any."""
    for folder in near:
        unpacked = folder / DEVKIT.removesuffix(".tar.gz") / "data"
        packed = folder / DEVKIT
        try:
            if (unpacked / TRUTH).is_file():
                meta = (unpacked / "meta.mat").read_bytes()
                return folder, (unpacked / TRUTH).read_bytes(), meta
            if not packed.is_file():
                continue
            found: dict[str, bytes] = {}
            with tarfile.open(packed) as tar:
                for member in tar:
                    file = tar.extractfile(member) if member.isreg() else None
                    if file is not None:
                        found[PurePosixPath(member.name).name] = file.read()
            return folder, found[TRUTH], found["meta.mat"]
        except (OSError, EOFError, tarfile.TarError, KeyError, zlib.error) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"data: cannot read {packed}: {reason}") from error
    return None
