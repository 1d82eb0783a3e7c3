"""Write the table of what was verified where: ``python -m benchmarks.verified``.

Runs the operators' tests on every backend that this machine can run, counts them by operator, and
reads the results of ``make gpu-check`` in ``benchmarks/results/``. A cell is the number of tests
that passed, or "not run". ``--operator`` runs the tests of one operator alone, whose cells then
have their own date.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks import readme
from benchmarks.gpu_check import count, tested_with
from gdfq.ops import _backend

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
RECORD = RESULTS / "verified.json"
DOCUMENT = ROOT / "docs" / "verified.md"

# Column: pytest's arguments and the environment. The interpreter is slow: it runs one in 19 of each
# test's parameters, which divides no number of dtypes, layouts or shapes.
SUITES = {
    "reference": (["tests/ops"], {"GDFQ_BACKEND": "reference"}),
    "CPU": (["tests/ops"], {}),
    "CUDA on the stand-in": (["-p", "tests.standin.operators", "tests/ops"], {}),
    "CUDA compiled": (["tests/project/test_cuda_build.py"], {}),
    "Triton interpreted": (
        ["--every=19", "tests/ops"],
        {"GDFQ_BACKEND": "triton", "TRITON_INTERPRET": "1"},
    ),
    "Triton compiled": (["tests/triton/test_compiled.py"], {}),
}
GPU_SUITES = {"CUDA on a GPU": "operators, cuda", "Triton on a GPU": "operators, triton"}


def operators() -> list[str]:
    """Return every operator except backward ones, which count with their forward."""
    return [name for name in _backend.operators() if not name.endswith("_backward")]


def has_kernel(operator: str, column: str) -> bool:
    """Whether the column's backend has its own kernel for ``operator``."""
    if column.startswith("CUDA"):
        return any(f'"{operator}"' in source.read_text() for source in ROOT.glob("csrc/cuda/*.cpp"))
    return not column.startswith("Triton") or operator in _backend.triton_modules()


def run_suite(column: str, operator: str | None = None) -> dict[str, list[int]]:
    """Return passed, failed and skipped tests by operator, or of one operator."""
    arguments, environment = SUITES[column]
    chosen = [] if operator is None else ["-k", operator]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        # Two suites run side by side, and their tests are small.
        alone = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        subprocess.run(
            [*command, *chosen, f"--junitxml={report}"],
            cwd=ROOT,
            env={**os.environ, **alone, **environment},
            stdout=sys.stderr,
        )
        if not report.exists():
            return {}
        if arguments[-1] == "tests/ops":
            return count(report)
        return count_named(report)


def keep(record: dict, column: str, results: dict[str, list[int]], operator: str | None) -> None:
    """Put a suite's results, or one operator's, into ``record``."""
    today = datetime.date.today().isoformat()
    if operator is None:
        record[column] = {"date": today, "operators": results}
    elif operator in results:
        suite = record.setdefault(column, {"date": today, "operators": {}})
        suite["operators"][operator] = results[operator]
        suite.setdefault("dates", {})[operator] = today


def count_named(report: Path) -> dict[str, list[int]]:
    """Count tests that name an operator in their parameters, or that hold for all operators."""
    totals: dict[str, list[int]] = {name: [0, 0, 0] for name in operators()}
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        place = 1 if kinds & {"failure", "error"} else 2 if "skipped" in kinds else 0
        words = re.split(r"[\[\]-]", case.get("name", ""))
        named = [n for n in totals if n in words or f"{n}_backward" in words]
        for name in named or ([] if "triton" in case.get("classname", "") else totals):
            totals[name][place] += 1
    return totals


def cell(operator: str, column: str, record: dict) -> str:
    """Return one cell of the table."""
    suite = record.get(column)
    results = (suite or {}).get("operators", {})
    counts = results.get(operator) or results.get(tested_with().get(operator, ""))
    if not has_kernel(operator, column):
        return "no kernel"
    if not counts or counts[0] + counts[1] == 0:
        return "not run"
    failed = f", {counts[1]} FAILED" if counts[1] else ""
    date = (suite or {}).get("dates", {}).get(operator)
    return f"{counts[0]} passed{failed}" + (f" ({date})" if date else "")


def gpu_records() -> dict[str, dict]:
    """Return the newest GPU check's suites as columns."""
    checks = sorted(
        (json.loads(path.read_text()) for path in RESULTS.glob("gpu-*.json")),
        key=lambda check: check["date"],
    )
    columns = {}
    for check in checks:
        for column, name in GPU_SUITES.items():
            step = next((s for s in check["steps"] if s["name"] == name), None)
            if step and step["operators"]:
                date, device = check["date"][:10], check["device"]
                columns[column] = {"date": f"{date}, {device}", "operators": step["operators"]}
    return columns


def table(record: dict) -> str:
    """Return the table in Markdown."""
    record = {**record, **gpu_records()}
    columns = [*SUITES, *GPU_SUITES]
    lines = ["| operator | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for operator in operators():
        cells = [cell(operator, column, record) for column in columns]
        lines.append(f"| `{operator}` | " + " | ".join(cells) + " |")
    dates = [record[c]["date"] if c in record else "never" for c in columns]
    lines.append("| *last run* | " + " | ".join(dates) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SUITES, help="run only this suite")
    parser.add_argument("--operator", choices=operators(), help="run only this operator's tests")
    parser.add_argument(
        "--table", action="store_true", help="write the table without running tests"
    )
    arguments = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    chosen = [c for c in SUITES if arguments.only in (None, c)] if not arguments.table else []
    with ThreadPoolExecutor(2) as pool:
        run = partial(run_suite, operator=arguments.operator)
        for column, results in zip(chosen, pool.map(run, chosen), strict=True):
            keep(record, column, results, arguments.operator)
            RESULTS.mkdir(parents=True, exist_ok=True)
            RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    readme.write("verified", table(record), DOCUMENT)


if __name__ == "__main__":
    main()
