"""Checkpoints: everything that resuming a run needs, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from gdfq.errors import InputError
from gdfq.files import remove, write_file

_NAME = re.compile(r"checkpoint-(\d+)\.safetensors")
_UNKNOWN = b"0" * 64  # stands where the checksum will be, while it is computed


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of ``step`` in ``folder``."""
    return folder / f"checkpoint-{step}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in ``folder``, newest first, valid or not; [] without a folder."""
    paths = folder.glob("checkpoint-*")
    found = [(match, path) for path in paths if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda pair: -int(pair[0][1]))]


def write_checkpoint(
    folder: Path, step: int, state: dict[str, Any], previous: Path | None = None
) -> Path:
    """Write ``state`` as the checkpoint of ``step``; it and ``previous`` are kept, no other.

    The file is a safetensors file: tensors by their path in ``state`` (``student/conv1.weight``),
    all else as JSON in its header, with the SHA-256 of the file, in which the checksum's own
    digits count as zeros. It is written beside, synchronized and renamed.

    Args:
        folder: where checkpoints are.
        step: steps done so far.
        state: a dictionary of tensors, numbers, strings, None, dictionaries of such, and lists
            without tensors. Keys are strings.
        previous: the valid checkpoint before it.

    Returns:
        The checkpoint's path.

    Raises:
        OSError: it could not be written; the checkpoints that were there still are.
    """
    tensors: dict[str, Tensor] = {}
    header = {"sha256": _UNKNOWN.decode(), "state": _take_tensors(state, "", tensors)}
    content = save(_unshared(tensors), metadata={"gdfq": json.dumps(header)})
    checksum = _checksum(content, _UNKNOWN)
    at = content.index(_UNKNOWN)
    view = memoryview(content)
    path = checkpoint_path(folder, step)
    write_file(path, view[:at], checksum, view[at + len(checksum) :])
    remove(set(checkpoints(folder)) - {path, previous})
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state in a checkpoint, on the CPU. Nothing in the file is executed.

    Raises:
        InputError: the file cannot be read, is no checkpoint, or is not what was written.
    """
    try:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["gdfq"])
        checksum = header["sha256"].encode()
        state = header["state"]
    except OSError as error:
        raise InputError(f"checkpoint: cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"checkpoint: {path} is corrupt: it has no header of one") from error
    if _checksum(content, checksum) != checksum:
        raise InputError(f"checkpoint: {path} is corrupt: its checksum does not match")
    try:
        return _put_tensors(state, "", load(content))
    except SafetensorError as error:
        raise InputError(f"checkpoint: cannot read {path}: {error}") from error


def newest_valid(
    folder: Path, on_warning: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest valid checkpoint in ``folder`` and its state; None without any.

    Args:
        folder: where checkpoints are.
        on_warning: called with a line about each checkpoint that cannot be used.
    """
    for path in checkpoints(folder):
        try:
            return path, read_checkpoint(path)
        except InputError as error:
            on_warning(str(error))
    return None


def _checksum(content: bytes, stored: bytes) -> bytes:
    at = content.find(stored)
    view = memoryview(content)
    digest = hashlib.sha256(view[:at])
    digest.update(_UNKNOWN)
    digest.update(view[at + len(_UNKNOWN) :])
    return digest.hexdigest().encode()


def _take_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``value`` for JSON, its tensors moved to ``tensors`` and null in their places."""
    if isinstance(value, dict):
        return {key: _take_tensors(v, f"{path}{key}/", tensors) for key, v in value.items()}
    if isinstance(value, Tensor):
        tensors[path[:-1]] = value
        return None
    return value


def _put_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return {key: _put_tensors(v, f"{path}{key}/", tensors) for key, v in value.items()}
    return tensors.get(path[:-1], value)


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, contiguous, in memory of their own, as the format demands."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result
