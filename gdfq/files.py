"""Files that are whole or not there: written beside, then renamed."""

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
# The answer of file systems without a call: SMB, FUSE, shared folders of virtual machines.
_UNSUPPORTED = {
    errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EISDIR,
    errno.ENOTTY,
}  # fmt: skip


def write_file(path: Path, *parts: bytes | memoryview) -> None:
    """Put a file of ``parts``, one after the other, at ``path``, in place of any that is there.

    Whenever the process or the machine dies, ``path`` holds the old content or the new, whole, as
    far as the file system can synchronize and rename; where it cannot rename, it is copied.

    Raises:
        OSError: it could not be written; what was at ``path`` is still there.
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
    # The new name is on the disk only once its folder is, which some may write to but not read.
    with suppress(PermissionError), _if_supported():
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            _synchronize(folder)
        finally:
            os.close(folder)


@contextmanager
def _if_supported() -> Iterator[None]:
    """Within, a call that the file system does not have ends the block, not the program."""
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
    """Where the content of ``path`` is while it is written."""
    return path.with_name(f".{path.name}{_SUFFIX}")


def is_partial(path: Path) -> bool:
    """Whether ``path`` is what :func:`write_file` leaves behind when its process is killed."""
    return path.name.startswith(".") and path.name.endswith(_SUFFIX)


def remove(paths: Iterable[Path]) -> None:
    """Delete files, where that is possible."""
    for path in paths:
        with suppress(OSError):  # in the way, but harmless
            path.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within, no other process can be; the system gives the lock up with its process.

    Raises:
        InputError: another process holds it.
    """
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"resume: another process is running in {path.parent}") from error
        except OSError:
            pass  # a file system without locks
        yield
