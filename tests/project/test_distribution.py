"""The sdist and the wheel: what is in them, and that the wheel runs in an empty environment."""

import importlib.metadata
import os
import re
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import gdfq
from tests.helpers.distribution import ROOT, build, can_build, run, tracked
from tests.standin.library import missing_tools

pytestmark = [
    pytest.mark.skipif(bool(missing_tools()), reason=f"missing: {missing_tools()}"),
    pytest.mark.skipif(not can_build(), reason="not a git clone"),
    pytest.mark.thorough,
]
DOCUMENTS = {
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md",
}  # fmt: skip
BUILD_FILES = {"CMakeLists.txt", "MANIFEST.in", "pyproject.toml", "setup.py"}
# What setuptools adds to an sdist.
GENERATED = {"PKG-INFO", "setup.cfg"}


def in_folders(*folders):
    return {name for name in tracked() if name.startswith(folders)}


# ---- contents ----


def test_the_sdist_holds_what_the_wheel_is_built_from():
    with tarfile.open(build().sdist) as archive:
        names = {m.name.split("/", 1)[1] for m in archive.getmembers() if m.isfile()}
    found = {name for name in names - GENERATED if not name.startswith("gdfq.egg-info/")}
    assert found == in_folders("gdfq/", "gdfq_command.py", "csrc/") | DOCUMENTS | BUILD_FILES
    assert "csrc/quantizer.h" in found


def test_the_wheel_holds_the_package_and_nothing_else():
    with zipfile.ZipFile(build().wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = f"gdfq-{gdfq.__version__}.dist-info/"
    native = f"gdfq/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    package = {name for name in names if not name.startswith(metadata)}
    assert package == in_folders("gdfq/", "gdfq_command.py") | {native}
    assert {"gdfq/py.typed", "gdfq/_C.pyi", "gdfq/assets/fashion_mnist/LICENSE"} <= package
    assert f"{metadata}licenses/LICENSE" in names
    assert f"{metadata}licenses/gdfq/assets/fashion_mnist/LICENSE" in names


def test_metadata():
    with zipfile.ZipFile(build().wheel) as archive:
        metadata = message_from_bytes(archive.read(f"gdfq-{gdfq.__version__}.dist-info/METADATA"))
    assert metadata["Version"] == gdfq.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause AND MIT"  # the data's is MIT
    assert metadata["Author"] == "The gdfq authors"
    assert metadata["Requires-Python"] == ">=3.10"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == gdfq.__version__


def test_twine_finds_nothing_to_complain_about():
    pytest.importorskip("twine")
    built = build()
    run(sys.executable, "-m", "twine", "check", "--strict", built.sdist, built.wheel)


# ---- in an empty environment ----


def requirements(name, extras=frozenset()):
    """All that an installed distribution needs, with what that needs; by its metadata."""
    found, waiting = {}, [(name, frozenset(extras))]
    while waiting:
        wanted, extras = waiting.pop()
        for line in importlib.metadata.requires(wanted) or []:
            needed = Requirement(line)
            marker = needed.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
                continue
            key = needed.name.lower().replace("_", "-"), frozenset(needed.extras)
            if key not in found:
                found[key] = importlib.metadata.distribution(needed.name)
                waiting.append(key)
    return list({dist.metadata["Name"]: dist for dist in found.values()}.values())


def declared():
    """The distributions that the wheel's metadata ask for, without extras."""
    with zipfile.ZipFile(build().wheel) as archive:
        metadata = message_from_bytes(archive.read(f"gdfq-{gdfq.__version__}.dist-info/METADATA"))
    names = []
    for line in metadata.get_all("Requires-Dist"):
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            names.append(needed.name)
    everything = [importlib.metadata.distribution(name) for name in names]
    for name in names:
        everything += requirements(name)
    return {dist.metadata["Name"]: dist for dist in everything}


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A virtual environment that holds the wheel, what it declares to need, and no more.

    The needed packages are links to those of this environment: torch is large.
    """
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for dist in declared().values():
        tops = {file.parts[0] for file in dist.files if ".." not in file.parts[:1]}
        for top in tops - {"__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(dist.locate_file(top))
    # With its needs: pip finds them among the links, and has no index to look elsewhere.
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-index"),
        build().wheel,
    )
    return folder


@pytest.fixture
def call(empty, tmp_path):
    """Run a command of the environment in a folder outside the source tree."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run_there(name, *arguments):
        return run(empty / "bin" / name, *arguments, cwd=tmp_path, env=kept | {"NO_COLOR": "1"})

    return run_there


IMPORT_ALL = """
import importlib, importlib.util, pkgutil, gdfq
names = [m.name for m in pkgutil.walk_packages(gdfq.__path__, "gdfq.") if m.name != "gdfq.__main__"]
if not importlib.util.find_spec("triton"):
    names = [n for n in names if not n.startswith("gdfq.ops.triton")]
for name in names:
    importlib.import_module(name)
print(gdfq.__file__, len(names))
"""


def test_every_module_imports_with_what_is_declared(call, empty):
    where, count = call("python", "-c", IMPORT_ALL).split()
    assert Path(where).is_relative_to(empty)
    assert int(count) > 50
    # What the extras bring is not there; what needs it says so.
    done = call("python", "-c", "import importlib.util as i; print(i.find_spec('onnxruntime'))")
    assert done.strip() == "None"


def test_the_command_lists_recipes_quantizes_and_inspects(call, tmp_path):
    assert "fashion-mnist-resnet20" in call("gdfq", "recipes")
    call(
        *("gdfq", "quantize", "--recipe", "fashion-mnist-resnet20", "--out", "run"),
        *("--epochs", "2", "--warmup-epochs", "1", "--steps-per-epoch", "1", "--batch-size", "8"),
        *("--data", "none"),
    )
    assert (tmp_path / "run" / "student.safetensors").is_file()
    assert "layer1.0.conv1" in call("gdfq", "inspect", "run")
    # What the run did not read, for speed: the test images of the package.
    code = (
        "from gdfq.data import open_test_set; print(len(open_test_set('fashion-mnist', None, 10)))"
    )
    assert call("python", "-c", code).strip() == "10000"
