"""Run every check that needs a GPU, in under 25 minutes: ``make gpu-check``.

Builds the CUDA kernels for this machine's GPU; runs the operators' tests with the native
kernels and with Triton's, tests of more than 2^31 elements, a short selection under
compute-sanitizer, and the operators' benchmarks; then the training step's tests, and the step's
time and other formulations' in every precision. Needs no network. Writes ``gpu-<device>.md``,
``.json`` and, if matplotlib is installed, ``.png`` into ``benchmarks/results/``. The table marks
steps that failed or had no time left; the exit code is 1 if any failed.

``--only`` runs selected parts, each of which takes less than ten minutes with the build, and
keeps the others' earlier results. ``--rehearse`` runs everything on the CPU, with the CPU's
kernels instead of the GPU's, and writes nothing into the results.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
# Seconds for the build and for each part. Their sum stays below 25 minutes.
BUILD = 200
PARTS = {"operators": 320, "step": 100, "fp32": 260, "tf32": 260, "bf16": 260}
STEP_TESTS = ("tests/training/test_step_on_gpu.py",)
# Every operator forward and backward, unaligned, and vectorized where sizes allow.
SHORT = "float32 and (test_alignment and offset or equals_the_reference and 4x16x7x7)"


@dataclass
class Step:
    """One step's outcome; ``operators`` maps an operator to [passed, failed, skipped]."""

    name: str
    outcome: str
    seconds: float = 0.0
    operators: dict[str, list[int]] = field(default_factory=dict)
    output: str = ""


class Check:
    """Run steps one after another, each part within its budget."""

    def __init__(self, rehearse: bool, selection: str | None, out: Path) -> None:
        self.rehearse = rehearse
        self.selection = selection
        self.out = out
        self.end = 0.0
        self.steps: list[Step] = []

    def begin(self, budget: float) -> None:
        """Start a part."""
        self.end = time.monotonic() + budget

    def left(self, limit: float) -> float:
        """Return the seconds left for a step."""
        return min(limit, self.end - time.monotonic())

    def run(self, name: str, command: list[str], limit: float, **environment: str) -> Step:
        """Run ``command``; an error, or more than ``limit`` seconds, is a failure."""
        left = self.left(limit)
        start = time.monotonic()
        if left < 10:
            step = Step(name, "not run: no time left")
        else:
            try:
                done = subprocess.run(
                    command,
                    cwd=ROOT,
                    env={**os.environ, **environment},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=left,
                )
                outcome = "passed" if done.returncode == 0 else f"failed (exit {done.returncode})"
                output = done.stdout
            except subprocess.TimeoutExpired as error:
                outcome, raw = f"failed (stopped after {left:.0f} s)", error.stdout or b""
                output = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
            step = Step(name, outcome, time.monotonic() - start, output=output[-6000:])
        self.steps.append(step)
        print(f"{step.name}: {step.outcome}, {step.seconds:.0f} s", flush=True)
        if step.outcome.startswith("failed"):
            print(step.output, flush=True)
        return step

    def skip(self, name: str, reason: str) -> None:
        """Record a step that cannot run here."""
        self.steps.append(Step(name, f"not run: {reason}"))
        print(f"{name}: not run: {reason}", flush=True)

    def tests(
        self,
        name: str,
        backend: str,
        limit: float,
        *arguments: str,
        prefix: tuple[str, ...] = (),
        selection: str | None = None,
    ) -> None:
        """Run the operators' tests on the device with one backend and count them by operator."""
        device = "cpu" if self.rehearse else "cuda"
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [*prefix, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
            command += [f"--junitxml={report}", *(arguments or ("tests/ops",))]
            chosen = " and ".join(f"({s})" for s in (selection, self.selection) if s)
            if chosen:
                command += ["-k", chosen]
            environment = {
                "GDFQ_TEST_DEVICE": device,
                "GDFQ_BACKEND": backend,
                # Ends before the step does, so that finished tests are counted.
                "GDFQ_TEST_SECONDS": str(0.8 * self.left(limit)),
            }
            step = self.run(name, command, limit, **environment)
            if report.exists():
                step.operators = count(report)
                late = report.read_text(encoding="utf-8").count('message="no time left"')
                step.outcome += f", {late} not run: no time left" if late else ""


# Test files shared by all operators.
SHARED_FILES = ("contract", "no_waiting", "large")


def tested_with() -> dict[str, str]:
    """Return the operators that share another's file, and with it its tests."""
    return {
        operator: path.stem
        for path in ROOT.glob("gdfq/ops/*.py")
        for operator in re.findall(r'register_reference\(\s*"(\w+)"', path.read_text())
        if operator != path.stem
    }


def count(report: Path) -> dict[str, list[int]]:
    """Return passed, failed and skipped tests by operator, from pytest's XML report.

    The test's file names the operator or, in a file shared by all operators, the test does.
    """
    files = {path.stem.removeprefix("test_") for path in ROOT.glob("tests/ops/test_*.py")}
    sharing = tested_with()
    names = files - set(SHARED_FILES) | set(sharing)
    operators: dict[str, list[int]] = {}
    for case in ET.parse(report).iter("testcase"):
        name = case.get("classname", "").rpartition(".test_")[2]
        if name in SHARED_FILES:
            found = [n for n in names if n in case.get("name", "")]
            name = max(found, key=len, default="")
        if name not in names:
            continue
        counts = operators.setdefault(sharing.get(name, name), [0, 0, 0])
        kinds = {child.tag for child in case}
        counts[1 if kinds & {"failure", "error"} else 2 if "skipped" in kinds else 0] += 1
    return operators


def find_tool(name: str) -> bool:
    """Whether a build tool is beside this interpreter or on the PATH."""
    return (Path(sys.executable).parent / name).exists() or shutil.which(name) is not None


def native_architecture() -> str:
    """Return the GPU's compute capability in CMake's notation."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}-real"


def device_name(rehearse: bool) -> str:
    """Return the GPU's name; exit without a GPU or without the required modules."""
    needed = ("torch", "setuptools", "pytest", "pytest_benchmark", "hypothesis")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    missing += [tool for tool in ("cmake", "ninja") if not find_tool(tool)]
    if missing:
        raise SystemExit(f"gpu-check: not installed: {', '.join(missing)}")
    import torch

    if rehearse:
        return "rehearsal on the CPU"
    if not torch.cuda.is_available():
        raise SystemExit("gpu-check: torch sees no GPU; `--rehearse` runs everything on the CPU")
    return torch.cuda.get_device_name()


def versions() -> dict[str, str]:
    """Return the versions behind a result, without importing gdfq, which may not build."""
    import torch

    answer = {"python": sys.version.split()[0], "torch": torch.__version__}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return answer


def markdown(device: str, steps: list[Step], benchmarks: str) -> str:
    """Return a check's table."""
    when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    lines = [f"# {device}", "", f"{when}; {json.dumps(versions())}", ""]
    lines += ["| step | outcome | seconds |", "|---|---|---|"]
    lines += [f"| {s.name} | {s.outcome} | {s.seconds:.0f} |" for s in steps]
    suites = [s for s in steps if s.operators]
    if suites:
        lines += ["", "Tests passed / failed / skipped by operator:", ""]
        lines.append("| operator | " + " | ".join(s.name for s in suites) + " |")
        lines.append("|---" * (len(suites) + 1) + "|")
        for operator in sorted({o for s in suites for o in s.operators}):
            cells = [" / ".join(map(str, s.operators.get(operator, ["-"]))) for s in suites]
            lines.append(f"| {operator} | " + " | ".join(cells) + " |")
    for step in steps:
        if step.name.startswith(BENCH) and step.outcome == "passed":
            lines += ["", f"## {step.name}", "", "```", step.output.strip(), "```"]
    failed = [s for s in steps if s.outcome.startswith("failed")]
    for step in failed:
        lines += ["", f"## {step.name}", "", "```", step.output.strip()[-3000:], "```"]
    return "\n".join([*lines, "", benchmarks])


BENCH = "gdfq bench"


def check_operators(check: Check, table: Path) -> None:
    """Run the operators' tests and benchmarks; the benchmarks' table goes to ``table``."""
    native, triton = ("cpu", "reference") if check.rehearse else ("cuda", "triton")
    check.tests(f"operators, {native}", native, 120)
    check.tests(f"operators, {triton}", triton, 180)
    step = "more than 2^31 elements"
    if check.rehearse:
        check.skip(step, "rehearsal")
    else:
        check.tests(step, native, 60, "tests/ops/test_large.py", "--large")
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        step = f"compute-sanitizer {tool}"
        if sanitizer is None or check.rehearse:
            check.skip(step, "rehearsal" if check.rehearse else "not on the PATH")
            continue
        prefix = (sanitizer, "--tool", tool, "--error-exitcode", "3")
        check.tests(step, native, 45, prefix=prefix, selection=SHORT)
    limit = 200.0
    command = [sys.executable, "-m", "benchmarks.table", "--out", str(table)]
    command += ["--device", "cpu" if check.rehearse else "cuda"]
    command += ["--seconds", f"{0.75 * check.left(limit):.0f}"]
    if check.selection:
        command += ["-k", check.selection]
    check.run("benchmarks", command, limit)


def check_speed(check: Check, precision: str) -> None:
    """Time ResNet-20's step at batch 200 and the rivals'; slow compilations come last."""
    if check.rehearse and precision == "tf32":
        check.skip(f"{BENCH}, tf32", "rehearsal")
        return
    command = [sys.executable, "-m", "gdfq", "bench", "--precision", precision]
    if check.rehearse:
        command += ["--device", "cpu", "--batch-size", "4", "--image-size", "8", "--steps", "2"]
    else:
        command += ["--device", "cuda", "--steps", "50"]
    eager = ["--against", "plain", "--against", "frozen"]
    check.run(f"{BENCH}, {precision}", [*command, *eager], 110, COLUMNS="120")
    compiled = f"{BENCH}, {precision}, compiled"
    if check.rehearse:
        check.skip(compiled, "rehearsal")
    else:
        command += ["--no-memory", "--against", "compile", "--against", "max-autotune"]
        check.run(compiled, command, 250, COLUMNS="120")


def earlier(figures: Path) -> dict:
    """Return this device's earlier results of other parts."""
    return json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {"steps": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="run everything on the CPU")
    parser.add_argument("-k", dest="selection", help="operators' tests and benchmarks that match")
    parser.add_argument("--only", action="append", choices=PARTS, help="run only this part")
    parser.add_argument("--out", type=Path, default=None, help="folder for the table")
    parser.add_argument("--skip-build", action="store_true", help="use the kernels as they are")
    arguments = parser.parse_args()
    device = device_name(arguments.rehearse)
    out = arguments.out or (Path(tempfile.mkdtemp()) if arguments.rehearse else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    check = Check(arguments.rehearse, arguments.selection, out)

    name = "gpu-" + re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    table, figures = out / f"{name}.md", out / f"{name}.json"
    before = earlier(figures) if arguments.only else {"steps": []}
    speed, text = before.get("benchmarks"), before.get("benchmarks_table", "")

    if not arguments.skip_build:
        cuda = {"GDFQ_CUDA": "off"}
        if not arguments.rehearse:
            cuda = {"GDFQ_CUDA": "on", "GDFQ_CUDA_ARCHITECTURES": native_architecture()}
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        check.begin(BUILD)
        check.run("build", build, BUILD, **cuda)
    # A selection applies to the operators' tests and benchmarks.
    for part in arguments.only or (["operators"] if arguments.selection else PARTS):
        check.begin(PARTS[part])
        if part == "operators":
            table.unlink(missing_ok=True)
            figures.unlink(missing_ok=True)
            check_operators(check, table)
            text = table.read_text(encoding="utf-8") if table.exists() else ""
            speed = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else None
        elif part == "step":
            check.tests("training step", "auto", PARTS[part], *STEP_TESTS)
        else:
            check_speed(check, part)

    done = {step.name for step in check.steps}
    steps = [Step(**step) for step in before["steps"] if step["name"] not in done] + check.steps
    table.write_text(markdown(device, steps, text), encoding="utf-8")
    record = {
        "device": device,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "steps": [asdict(step) for step in steps],
        "benchmarks": speed,
        "benchmarks_table": text,
    }
    figures.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"table: {table}")
    if any(step.outcome.startswith("failed") for step in check.steps):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
