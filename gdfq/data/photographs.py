"""Photographs of ImageNet's classes from free packages, written by ``gdfq data photographs``.

A picture may have several right classes: a dog is of any of 118 breeds.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from gdfq.data.imagenet import PictureFiles, Where
from gdfq.errors import InputError

FOLDER = "photographs"
LABELS = "labels.tsv"  # in that folder: a row for each picture, with its place and its classes
CLASSES = 1000
TABLE = Path(__file__).parent / "photographs.tsv"


@dataclass(frozen=True)
class Photograph:
    """A row of the table of photographs.

    Attributes:
        package: that it is in.
        file: its path there; of a Qt resource file, that file's path and the path in it.
        sha256: first 16 digits of its content's.
        classes: right ones of ImageNet's 1000, such as ``"345"``, ``"294 295"`` or ``"151-268"``;
            empty for one without a label.
        name: of the first class.
    """

    package: str
    file: str
    sha256: str
    classes: str
    name: str


@cache
def photographs() -> tuple[Photograph, ...]:
    """Return the table of photographs."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(Photograph(**row) for row in csv.DictReader(file, delimiter="\t"))


def parse_classes(text: str) -> list[int]:
    """Return the classes of numbers and ranges such as ``"7 151-268"``.

    Raises:
        ValueError: ``text`` is anything else, or a class is not one of ImageNet's.
    """
    found: list[int] = []
    for part in text.split():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    if not all(0 <= label < CLASSES for label in found):
        raise ValueError(f"classes must be 0 to {CLASSES - 1}, got {text!r}")
    return found


def class_names() -> tuple[str, ...]:
    """Return the names of ImageNet's classes as far as the table has them, else their numbers."""
    known = {parse_classes(p.classes)[0]: p.name for p in photographs() if p.classes}
    return tuple(known.get(label, f"class {label}") for label in range(CLASSES))


def find_folder(root: Path) -> Path:
    """Return ``root`` or its subfolder ``photographs``, whichever has the labels.

    Raises:
        InputError: neither has them.
    """
    for folder in (root, root / FOLDER):
        if (folder / LABELS).is_file():
            return folder
    raise InputError(
        f"data: there is no {LABELS} in {root} or its folder {FOLDER}; `gdfq data photographs` "
        "writes it; set data_path or GDFQ_DATA"
    )


def list_photographs(root: Path) -> list[tuple[Path, list[int]]]:
    """Return each picture's path and right classes, none for those without a label.

    Args:
        root: the folder ``photographs`` that :func:`gdfq.data.downloads.download_photographs`
            wrote, or the one that has it.

    Raises:
        InputError: the folder is not there, or its list is damaged.
    """
    folder = find_folder(root)
    try:
        with (folder / LABELS).open(encoding="utf-8", newline="") as file:
            return [
                (folder / row["picture"], parse_classes(row["classes"]))
                for row in csv.DictReader(file, delimiter="\t")
            ]
    except OSError as error:
        raise InputError(f"data: cannot read {folder / LABELS}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(f"data: cannot read {folder / LABELS}: {error}") from error


def open_photographs(root: Path) -> PictureFiles:
    """Open the labelled photographs of :func:`list_photographs`.

    Labels are ``(1000,)`` bool, True for each right class.

    Raises:
        InputError: the folder or a picture is not there, or its list is damaged.
    """
    labelled = [(path, classes) for path, classes in list_photographs(root) if classes]
    if not labelled:
        raise InputError(f"data: {find_folder(root) / LABELS} has no picture with a class")
    try:
        places = [Where(path, str(path), path.stat().st_size) for path, _ in labelled]
    except OSError as error:
        raise InputError(f"data: cannot read {error.filename}: {error.strerror}") from error
    labels = np.zeros((len(labelled), CLASSES), bool)
    for row, (_, classes) in zip(labels, labelled, strict=True):
        row[classes] = True
    return PictureFiles(FOLDER, places, labels, CLASSES)
