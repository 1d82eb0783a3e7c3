"""Atomic file writes (a temporary file, then a rename) and locks between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gdfq.errors import InputError

_SUFFIX = ".partial"
# Errors of file systems that lack a call: SMB, FUSE, shared folders of virtual machines.
_UNSUPPORTED = {
    errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EISDIR,
    errno.ENOTTY,
}  # fmt: skip


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Return the argument ``name`` as a path; raise InputError if it is none."""
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{name}: must be a path, got {value!r}")
    return Path(value)


def write_file(path: Path, *parts: bytes | memoryview) -> None:
    """Atomically write the concatenated ``parts`` to ``path``, replacing an existing file.

    If the process or the machine dies, ``path`` holds the complete old or new content, as far as
    the file system supports fsync and rename; without rename the file is copied.

    Raises:
        OSError: the write failed; the old content of ``path`` is intact.
    """
    beside = partial(path)
    try:
        with beside.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            _synchronize(file.fileno())
        _rename(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    # The rename is durable only after an fsync of the folder, which may be unreadable.
    with suppress(PermissionError), _if_supported():
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            _synchronize(folder)
        finally:
            os.close(folder)


@contextmanager
def _if_supported() -> Iterator[None]:
    """Suppress errors of calls that the file system does not support."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _synchronize(descriptor: int) -> None:
    with _if_supported():
        os.fsync(descriptor)


def _rename(source: Path, target: Path) -> None:
    with _if_supported():
        source.replace(target)
        return
    shutil.copyfile(source, target)
    source.unlink()


def partial(path: Path) -> Path:
    """Return the temporary file that :func:`write_file` uses for ``path``."""
    return path.with_name(f".{path.name}{_SUFFIX}")


def is_partial(path: Path) -> bool:
    """Whether ``path`` is a temporary file of :func:`write_file`, left by a killed process."""
    return path.name.startswith(".") and path.name.endswith(_SUFFIX)


def remove(paths: Iterable[Path]) -> None:
    """Delete files, ignoring those that cannot be deleted."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``, which the system releases when the process ends.

    Raises:
        InputError: another process holds the lock.
    """
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"resume: another process is running in {path.parent}") from error
        except OSError:
            pass  # a file system without locks
        yield
