"""Run the benchmarks and write their table: ``python -m benchmarks.table``."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from gdfq.environment import environment

RESULTS = Path(__file__).parent / "results"
RIVALS = ("eager", "torch.compile", "aten", "copy")


def run(selection: str | None, device: str) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", str(Path(__file__).parent), "-q",
                   "-o", "python_files=bench_*.py", "-o", "addopts=", f"--benchmark-json={report}",
                   "--benchmark-disable-gc", "--benchmark-columns=median"]  # fmt: skip
        if selection:
            command += ["-k", selection]
        chosen = {**os.environ, "GDFQ_TEST_DEVICE": device}
        if subprocess.run(command, stdout=sys.stderr, env=chosen).returncode:
            raise SystemExit("a benchmark failed; no table was written")
        return json.loads(report.read_text())["benchmarks"]


def cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def markdown(benchmarks: list[dict], device: str) -> str:
    machine = environment()
    where = f"{machine['cpu']}, {machine['threads']} threads" if device == "cpu" else machine["gpu"]
    lines = [
        f"# Operators on {where}",
        "",
        f"torch {machine['torch']}, gdfq {machine['gdfq']}. A number is the rival's median time "
        "divided by ours, interleaved in one run: 2.00 means ours is twice as fast. `copy` is "
        "`Tensor.copy_` into memory that exists already, of as many bytes as the input.",
        "",
        "| benchmark | " + " | ".join(RIVALS) + " |",
        "|---" * (len(RIVALS) + 1) + "|",
    ]
    groups: dict[str, list[dict]] = defaultdict(list)
    for benchmark in benchmarks:
        ratios = benchmark["extra_info"]["ratios"]
        groups[benchmark["name"].split("[")[0]].append(ratios)
        name = benchmark["name"].removeprefix("test_")
        lines.append(f"| {name} | " + " | ".join(cell(ratios.get(r)) for r in RIVALS) + " |")
    lines += ["", "Geometric means:", "", "| operator | " + " | ".join(RIVALS) + " |",
              "|---" * (len(RIVALS) + 1) + "|"]  # fmt: skip
    for name, ratios in groups.items():
        means = []
        for rival in RIVALS:
            values = [r[rival] for r in ratios if rival in r]
            means.append(math.exp(sum(map(math.log, values)) / len(values)) if values else None)
        lines.append(f"| {name.removeprefix('test_')} | " + " | ".join(map(cell, means)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-k", dest="selection", help="only benchmarks whose name matches")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="default: results/operators-<device>.md")
    arguments = parser.parse_args()
    table = markdown(run(arguments.selection, arguments.device), arguments.device)
    out = arguments.out or RESULTS / f"operators-{arguments.device}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
