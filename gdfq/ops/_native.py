"""Loading of the native module, with one sentence if it fails."""

from __future__ import annotations

import mmap
import re
import sys
import sysconfig
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

_FILE = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
_HERE = Path(__file__).resolve().parents[1]


def _built_for_torch(library: Path) -> str | None:
    """Return the version of torch that ``library`` was compiled for, without loading it."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = re.search(rb"gdfq is built for torch ([\w.+-]+)\0", data)
        return found[1].decode() if found else None


def _release(version: str) -> str:
    """Return the part of a version that stands for one binary interface: 2.14 for 2.14.1."""
    return ".".join(version.split(".")[:2])


def _missing() -> str:
    """Explain why this package's folder has no native module, and how to get one."""
    others = {Path(entry or ".").resolve() / "gdfq" for entry in sys.path} - {_HERE}
    installed = next((other for other in others if (other / _FILE).exists()), None)
    if installed is not None:
        return (
            f"{_HERE} is not the installed package but its source, which has no native module; the "
            f"installed one is {installed}: start Python outside {_HERE.parent}, or "
            "run `pip install --no-build-isolation --editable .` there."
        )
    built = sorted(path.name for path in _HERE.glob("_C*.so"))
    if built:
        return (
            f"its native module was built for another Python ({', '.join(built)}, not {_FILE}); "
            "run `pip install --no-build-isolation .` in its source folder."
        )
    return (
        "its native module has not been built; "
        "run `pip install --no-build-isolation .` in its source folder."
    )


def _load() -> ModuleType:
    library = _HERE / _FILE
    if not library.exists():
        raise ImportError(f"gdfq: {_missing()}")
    again = "`pip install --no-build-isolation --force-reinstall --no-deps .` in its source folder"
    built = _built_for_torch(library)
    if built is not None and _release(built) != _release(torch.__version__):
        raise ImportError(
            f"gdfq: built for torch {built}, but torch {torch.__version__} is installed; run "
            f"`pip install 'torch=={_release(built)}.*'`, or {again}."
        )
    try:
        return import_module("gdfq._C")
    except ImportError as error:
        raise ImportError(
            f"gdfq: its native module, built for torch {built}, does not load beside torch "
            f"{torch.__version__} ({error}); run {again}."
        ) from None


try:
    _C = _load()
except ImportError as reason:
    # `python -m gdfq` imports the package before gdfq/__main__.py could say it in one line.
    if sys.argv[:1] == ["-m"]:
        raise SystemExit(str(reason)) from None
    raise

torch_version: str = _C.torch_version
compiler: str = _C.compiler
parts: str = _C.parts
cuda_version: str | None = _C.cuda_version
cuda_architectures: str | None = _C.cuda_architectures
