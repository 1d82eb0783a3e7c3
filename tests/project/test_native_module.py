"""What importing the package says where its native module is missing or does not fit: one line."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gdfq.ops import _native

ROOT = Path(__file__).parents[2]


def load(folder):
    """Run gdfq/ops/_native.py as that of the package in ``folder``."""
    copy = folder / "gdfq" / "ops" / "_native.py"
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(_native.__file__, copy)
    return runpy.run_path(str(copy))


def without_packages(monkeypatch):
    """Take all folders that hold a gdfq off Python's path."""
    kept = [entry for entry in sys.path if not (Path(entry or ".") / "gdfq").exists()]
    monkeypatch.setattr(sys, "path", kept)


def test_another_torch_is_named_with_the_one_it_was_built_for(monkeypatch):
    built = _native.torch_version
    monkeypatch.setattr(torch, "__version__", "2.11.0+cpu")
    with pytest.raises(ImportError) as raised:
        runpy.run_path(_native.__file__)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(f"gdfq: built for torch {built}, but torch 2.11.0+cpu is installed;")
    assert f"pip install 'torch=={'.'.join(built.split('.')[:2])}.*'" in message


def test_another_patch_of_the_same_release_fits(monkeypatch):
    release = ".".join(_native.torch_version.split(".")[:2])
    monkeypatch.setattr(torch, "__version__", f"{release}.99+cu130")
    assert runpy.run_path(_native.__file__)["torch_version"] == _native.torch_version


def test_a_module_that_was_not_built(monkeypatch, tmp_path):
    without_packages(monkeypatch)
    with pytest.raises(ImportError, match="gdfq: its native module has not been built; run `pip"):
        load(tmp_path)


def test_a_source_folder_that_hides_the_installed_package(monkeypatch, tmp_path):
    without_packages(monkeypatch)
    installed = tmp_path / "site" / "gdfq"
    installed.mkdir(parents=True)
    (installed / _native._FILE).write_bytes(b"")
    monkeypatch.syspath_prepend(str(installed.parent))
    source = tmp_path / "source"
    with pytest.raises(ImportError) as raised:
        load(source)
    message = str(raised.value)
    assert f"{source / 'gdfq'} is not the installed package but its source" in message
    assert f"the installed one is {installed}" in message


def test_python_m_says_it_in_one_line(tmp_path):
    source = tmp_path / "source" / "gdfq"
    (source / "ops").mkdir(parents=True)
    shutil.copy(_native.__file__, source / "ops")
    (source / "__init__.py").write_text("import gdfq.ops._native")
    (tmp_path / "site" / "gdfq").mkdir(parents=True)
    (tmp_path / "site" / "gdfq" / _native._FILE).write_bytes(b"")
    (tmp_path / "site" / "torch.py").touch()  # which would take seconds

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=source.parent,
            env={"PYTHONPATH": str(tmp_path / "site")},
            capture_output=True,
            text=True,
        )

    done = run("-m", "gdfq", "info")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"gdfq: {source} is not the installed package but its source")
    assert run("-c", "import gdfq").stderr.endswith("\nImport" + f"Error: {done.stderr}")


def test_a_module_of_another_python(monkeypatch, tmp_path):
    without_packages(monkeypatch)
    (tmp_path / "gdfq").mkdir()
    (tmp_path / "gdfq" / "_C.cpython-39-x86_64-linux-gnu.so").write_bytes(b"")
    with pytest.raises(ImportError, match=re.escape("built for another Python (_C.cpython-39")):
        load(tmp_path)


def test_the_command_says_it_in_one_line(tmp_path):
    shutil.copy(ROOT / "gdfq_command.py", tmp_path)
    (tmp_path / "gdfq").mkdir()
    (tmp_path / "gdfq" / "cli.py").write_text("raise ImportError('gdfq: built for torch 2.0')")
    done = subprocess.run(
        [sys.executable, "-c", "import gdfq_command; gdfq_command.main()"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "gdfq: built for torch 2.0\n")
