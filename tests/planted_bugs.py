"""Plant the bugs of ``planted_bugs.toml``, one by one, and see whether the tests notice.

``python -m tests.planted_bugs [--fast] [WORD...]`` tries those whose file, text or tests contain a
word, or all; with ``--fast`` only tests that are not ``thorough`` may notice. Each is put into a
copy of the tree, ``build/planted`` or ``$GDFQ_PLANTED``, where the tests that are named beside it
must fail. The command fails where fewer than 95% are noticed; a bug whose text is gone counts as
not noticed. For bugs in ``csrc/`` the kernels are built in the copy, which takes minutes the first
time.
"""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_suffix(".toml")
COPY = Path(os.environ.get("GDFQ_PLANTED", ROOT / "build" / "planted"))
# They take longer to import than most of the tests take.
LARGE = ("torch._dynamo", "pydantic", "rich.console", "typer", "jinja2", "PIL.Image", "hypothesis")
LEAST = 0.95  # share of the bugs that must be noticed


class Bug(NamedTuple):
    """``old`` in ``file`` replaced by ``new``, and the ``tests`` that are to notice it."""

    file: str
    old: str
    new: str
    tests: str


BUGS = [Bug(**bug) for bug in tomllib.loads(LIST.read_text(encoding="utf-8"))["bug"]]


def copy_tree() -> None:
    """Bring the copy to the state of the working tree; what was built in it stays."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        source, target = ROOT / name, COPY / name
        if source.is_file() and not (
            target.is_file() and source.read_bytes() == target.read_bytes()
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    for module in (ROOT / "gdfq").glob("_C*.so"):
        if not (COPY / "gdfq" / module.name).exists():
            shutil.copy(module, COPY / "gdfq")


def environment() -> dict[str, str]:
    """In which the copy is built and tested."""
    own = {"PYTHONPATH": str(COPY), "GDFQ_CUDA": "off"}
    return {**os.environ, **own, "GDFQ_BUILD": str(COPY / "build" / "native")}


def build() -> None:
    """Build the copy's kernels for the CPU."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=COPY, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"building failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def run_tests(tests: str, fast: bool) -> tuple[int, str]:
    """pytest's exit status and output, from a process that has imported the large packages."""
    import pytest

    for name in LARGE:
        importlib.import_module(name)
    log = COPY / "build" / "planted.txt"
    log.parent.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        with log.open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        os.environ.update(environment())
        os.chdir(COPY)
        sys.path[:] = [str(COPY), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
        for name in [n for n in sys.modules if n.split(".")[0] in ("gdfq", "tests")]:
            del sys.modules[name]
        code = 3
        try:
            options = ["-q", "-x", "-p", "no:cacheprovider", "--rootdir", str(COPY)]
            options += ["-m", "not thorough"] if fast else []
            code = int(pytest.main([*options, *shlex.split(tests)]))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


def is_native(bug: Bug) -> bool:
    """Whether the CPU's kernels must be built; some tests build their own."""
    return bug.file.startswith("csrc/") and not any(w in bug.tests for w in ("standin", "races"))


def layer(bug: Bug) -> str:
    """The folder that holds it, or the module itself."""
    folder, name, *_ = bug.file.split("/")
    return f"{folder}/{name}"


def plant(bug: Bug, fast: bool) -> str:
    """What became of it: ``noticed by TEST``, or what is wrong."""
    path = COPY / bug.file
    text = path.read_text()
    if text.count(bug.old) != 1:
        return f"its text stands {text.count(bug.old)} times in {bug.file}"
    path.write_text(text.replace(bug.old, bug.new))
    try:
        if is_native(bug):
            build()
        code, output = run_tests(bug.tests, fast)
    finally:
        path.write_text(text)
    if code == 0:
        return "NOT NOTICED"
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if code == 1 and failed:
        return f"noticed by {failed[0].split(' - ')[0].split(' ', 1)[1]}"
    return f"noticed, exit status {code}" if code in (-6, -11) else f"no test ran: {output[-500:]}"


def main(words: list[str]) -> int:
    fast, words = "--fast" in words, [w for w in words if w != "--fast"]
    copy_tree()
    chosen = [b for b in BUGS if not words or any(w in " ".join(b) for w in words)]
    tried: Counter[str] = Counter()
    noticed: Counter[str] = Counter()
    for bug in sorted(chosen, key=is_native):
        began = time.perf_counter()
        told = plant(bug, fast)
        tried[layer(bug)] += 1
        noticed[layer(bug)] += told.startswith("noticed")
        first = bug.new.strip().splitlines()[0] if bug.new.strip() else "(nothing)"
        print(f"{time.perf_counter() - began:6.1f} s  {bug.file}: {first}\n          {told}",
              flush=True)  # fmt: skip
    if any(map(is_native, chosen)):
        build()
    for name in sorted(tried):
        print(f"{noticed[name]:4} of {tried[name]:3}  {name}")
    print(f"{noticed.total()} of {len(chosen)} noticed")
    return int(noticed.total() < LEAST * len(chosen))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
